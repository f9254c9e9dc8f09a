//! Between the wire's messages and the domain's types; nothing else in this crate names a prost type.

use std::{collections::BTreeMap, str::FromStr};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    corpus::{CorpusManifest, LabelSet, Shard, SplitManifest},
    endpoint::EndpointSpec,
    ids::Digest,
    job::{AdapterSpec, BaseSpec, CorpusSpec, DataSpec, EvaluateSpec, JobSpec, TrainSpec, Violation},
    tally::Tally,
    v1,
};

/// A message that does not mean anything in the domain: which field, and what was expected.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Malformed {
    field: &'static str,
    problem: String,
}

/// Turns any parse error into a [`Malformed`] that names the field.
fn malformed<E: std::fmt::Display>(field: &'static str) -> impl Fn(E) -> Malformed {
    move |error| Malformed { field, problem: error.to_string() }
}

/// The job a message describes, checked whole: types, then [`JobSpec::violations`].
///
/// # Errors
/// Every setting that cannot work, with its key as in the job file.
pub fn job_spec(message: v1::JobSpec) -> Result<JobSpec, Vec<Violation>> {
    let mut found = Vec::new();
    let spec = parsed_job_spec(message, &mut found);
    found.extend(spec.violations());
    if found.is_empty() { Ok(spec) } else { Err(found) }
}

/// The job with the default where a field did not parse; what did not parse is added to `found`.
fn parsed_job_spec(message: v1::JobSpec, found: &mut Vec<Violation>) -> JobSpec {
    let default = JobSpec::default();
    let v1::JobSpec { name, corpus, data, base, adapter, train, evaluate, seed, workers, endpoint } = message;
    let corpus = corpus_spec(corpus.unwrap_or_default());
    let data = data.unwrap_or_default();
    let data = DataSpec { window: data.window, share: parsed(&data.share, "data.share", default.data.share, found) };
    let base = base.unwrap_or_default();
    let digest = (!base.digest.is_empty()).then(|| parsed_digest(&base.digest, found)).flatten();
    let precision = word(&base.precision, "base.precision", "f32, bf16, q8 or q4", default.base.precision, found);
    let base = BaseSpec { source: base.source, digest, precision };
    let adapter = adapter.unwrap_or_default();
    let adapter = AdapterSpec { r: adapter.r, alpha: adapter.alpha, targets: adapter.targets };
    let t = train.unwrap_or_default();
    let train = TrainSpec {
        epochs: t.epochs,
        batch: t.batch,
        lr: t.lr,
        warmup: t.warmup,
        beta1: t.beta1,
        beta2: t.beta2,
        eps: t.eps,
        weight_decay: t.weight_decay,
        clip_norm: t.clip_norm,
        batching: word(&t.batching, "train.batching", "dialogue or utterance", default.train.batching, found),
        slot_tokens: t.slot_tokens,
        recompute: t.recompute,
        checkpoint_updates: t.checkpoint_updates,
    };
    let e = evaluate.unwrap_or_default();
    let mut arms = Vec::new();
    for arm in &e.arms {
        let arm = word(arm, "evaluate.arms", "zero-shot or trained", default.evaluate.arms[0], found);
        arms.push(arm);
    }
    let mode = word(&e.mode, "evaluate.mode", "greedy or score", default.evaluate.mode, found);
    let evaluate = EvaluateSpec { mode, max_new_tokens: e.max_new_tokens, arms, merge: e.merge };
    let endpoint = endpoint.map_or_else(EndpointSpec::default, Into::into);
    JobSpec { name, seed, workers, corpus, data, base, adapter, train, evaluate, endpoint }
}

impl From<v1::EndpointSpec> for EndpointSpec {
    fn from(message: v1::EndpointSpec) -> Self {
        let v1::EndpointSpec { key_env, concurrency, retries, timeout_s, max_usd, .. } = message;
        let (usd_per_million_input, usd_per_million_output) =
            (message.usd_per_million_input, message.usd_per_million_output);
        Self { key_env, concurrency, retries, timeout_s, usd_per_million_input, usd_per_million_output, max_usd }
    }
}

impl From<&EndpointSpec> for v1::EndpointSpec {
    fn from(spec: &EndpointSpec) -> Self {
        Self {
            key_env: spec.key_env.clone(),
            concurrency: spec.concurrency,
            retries: spec.retries,
            timeout_s: spec.timeout_s,
            usd_per_million_input: spec.usd_per_million_input,
            usd_per_million_output: spec.usd_per_million_output,
            max_usd: spec.max_usd,
        }
    }
}

/// Where a corpus lies, as a message says it.
pub fn corpus_spec(message: v1::CorpusSpec) -> CorpusSpec {
    let v1::CorpusSpec { layout, path, labels, rename } = message;
    CorpusSpec { layout, path, labels, rename: rename.into_iter().collect::<BTreeMap<_, _>>() }
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(text: &str, field: &str, default: T, found: &mut Vec<Violation>) -> T {
    text.parse().unwrap_or_else(|error: T::Err| {
        found.push(Violation { field: field.into(), description: error.to_string() });
        default
    })
}

fn parsed_digest(text: &str, found: &mut Vec<Violation>) -> Option<Digest> {
    text.parse().map_err(|e: crate::ids::NotADigest| found.push(violation("base.digest", e.to_string()))).ok()
}

fn violation(field: &str, description: String) -> Violation {
    Violation { field: field.into(), description }
}

/// One of an enum's words, by the names serde gives its variants.
fn word<T: DeserializeOwned>(text: &str, field: &str, expected: &str, default: T, found: &mut Vec<Violation>) -> T {
    serde_json::from_value(text.into()).unwrap_or_else(|_| {
        found.push(violation(field, format!("'{text}': expected {expected}")));
        default
    })
}

/// The name serde gives a variant without fields.
fn name_of<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        other => unreachable!("a variant without fields serialises to its name, got {other:?}"),
    }
}

impl From<&JobSpec> for v1::JobSpec {
    fn from(spec: &JobSpec) -> Self {
        let t = &spec.train;
        let train = v1::TrainSpec {
            epochs: t.epochs,
            batch: t.batch,
            lr: t.lr,
            warmup: t.warmup,
            beta1: t.beta1,
            beta2: t.beta2,
            eps: t.eps,
            weight_decay: t.weight_decay,
            clip_norm: t.clip_norm,
            batching: name_of(&t.batching),
            slot_tokens: t.slot_tokens,
            recompute: t.recompute,
            checkpoint_updates: t.checkpoint_updates,
        };
        let base = v1::BaseSpec {
            source: spec.base.source.clone(),
            digest: spec.base.digest.as_ref().map(Digest::to_string).unwrap_or_default(),
            precision: name_of(&spec.base.precision),
        };
        let evaluate = v1::EvaluateSpec {
            mode: name_of(&spec.evaluate.mode),
            max_new_tokens: spec.evaluate.max_new_tokens,
            arms: spec.evaluate.arms.iter().map(name_of).collect(),
            merge: spec.evaluate.merge,
        };
        let adapter =
            v1::AdapterSpec { r: spec.adapter.r, alpha: spec.adapter.alpha, targets: spec.adapter.targets.clone() };
        Self {
            name: spec.name.clone(),
            corpus: Some((&spec.corpus).into()),
            data: Some(v1::DataSpec { window: spec.data.window, share: spec.data.share.to_string() }),
            base: Some(base),
            adapter: Some(adapter),
            train: Some(train),
            evaluate: Some(evaluate),
            seed: spec.seed,
            workers: spec.workers,
            endpoint: Some((&spec.endpoint).into()),
        }
    }
}

impl From<&CorpusSpec> for v1::CorpusSpec {
    fn from(spec: &CorpusSpec) -> Self {
        let CorpusSpec { layout, path, labels, rename } = spec.clone();
        Self { layout, path, labels, rename: rename.into_iter().collect() }
    }
}

impl From<&Shard> for v1::Shard {
    fn from(shard: &Shard) -> Self {
        let Shard { digest, bytes, dialogues, utterances } = shard.clone();
        Self { digest: digest.to_string(), bytes, dialogues, utterances }
    }
}

impl TryFrom<v1::Shard> for Shard {
    type Error = Malformed;
    fn try_from(message: v1::Shard) -> Result<Self, Malformed> {
        let v1::Shard { digest, bytes, dialogues, utterances } = message;
        Ok(Self { digest: digest.parse().map_err(malformed("shard.digest"))?, bytes, dialogues, utterances })
    }
}

impl From<&CorpusManifest> for v1::CorpusManifest {
    fn from(corpus: &CorpusManifest) -> Self {
        let split = |(split, manifest): (&crate::corpus::Split, &SplitManifest)| v1::SplitManifest {
            split: split.to_string(),
            dialogues: manifest.dialogues(),
            utterances: manifest.utterances(),
            shards: manifest.shards.iter().map(v1::Shard::from).collect(),
        };
        Self {
            name: corpus.name.clone(),
            digest: corpus.digest.to_string(),
            labels: corpus.labels.names().to_vec(),
            splits: corpus.splits.iter().map(split).collect(),
        }
    }
}

impl TryFrom<v1::CorpusManifest> for CorpusManifest {
    type Error = Malformed;
    fn try_from(message: v1::CorpusManifest) -> Result<Self, Malformed> {
        let mut splits = BTreeMap::new();
        for split in message.splits {
            let shards = split.shards.into_iter().map(Shard::try_from).collect::<Result<_, _>>()?;
            splits.insert(split.split.parse().map_err(malformed("corpus.splits"))?, SplitManifest { shards });
        }
        Ok(Self {
            name: message.name,
            digest: message.digest.parse().map_err(malformed("corpus.digest"))?,
            labels: LabelSet::new(message.labels).map_err(malformed("corpus.labels"))?,
            splits,
        })
    }
}

impl From<&Tally> for v1::Tally {
    fn from(tally: &Tally) -> Self {
        let labels = u32::try_from(tally.labels()).expect("a label set has at most 1000 labels");
        Self { labels, counts: tally.counts().to_vec() }
    }
}

impl TryFrom<v1::Tally> for Tally {
    type Error = Malformed;
    fn try_from(message: v1::Tally) -> Result<Self, Malformed> {
        Tally::from_counts(message.labels as usize, message.counts).map_err(malformed("tally"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Arm;

    fn spec() -> JobSpec {
        let mut spec = JobSpec::default();
        spec.corpus.path = "corpora/meld".into();
        spec.data.share = "1/16".parse().unwrap();
        spec.base.digest = Some(Digest::of(b"base"));
        spec.evaluate.arms = vec![Arm::Trained];
        (spec.endpoint.key_env, spec.endpoint.usd_per_million_output) = (String::new(), 0.6);
        spec
    }

    #[test]
    fn a_job_spec_survives_the_wire() {
        assert_eq!(job_spec((&spec()).into()), Ok(spec()));
    }

    #[test]
    fn fields_that_do_not_parse_are_all_named() {
        let mut message = v1::JobSpec::from(&spec());
        message.data.as_mut().unwrap().share = "2".into();
        message.evaluate.as_mut().unwrap().mode = "loud".into();
        message.train.as_mut().unwrap().lr = -1.0;
        let fields: Vec<_> = job_spec(message).unwrap_err().into_iter().map(|v| v.field).collect();
        assert_eq!(fields, ["data.share", "evaluate.mode", "train.lr"]);
    }

    #[test]
    fn a_tally_survives_the_wire_and_a_lying_one_is_refused() {
        let mut tally = Tally::new(2);
        tally.count(crate::corpus::Label(1), None);
        assert_eq!(Tally::try_from(v1::Tally::from(&tally)).unwrap(), tally);
        assert!(Tally::try_from(v1::Tally { labels: 3, counts: vec![1] }).is_err());
    }
}
