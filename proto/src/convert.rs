//! Between the wire's messages and the domain's types; nothing else in this crate names a prost type.

use std::{collections::BTreeMap, str::FromStr};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    corpus::{CorpusManifest, LabelSet, Part, Shard, SplitManifest},
    endpoint::EndpointSpec,
    ids::Digest,
    job::{
        AdapterSpec, BaseSpec, CorpusSpec, DataSpec, EvaluateSpec, JobSpec, LabelsSpec, Parameters, RetrievalSpec,
        ScheduleSpec, StageSpec, TrainSpec, Violation,
    },
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
    let v1::JobSpec { name, corpus, data, base, adapter, train, evaluate, seed, workers, .. } = message;
    let adapter = adapter.unwrap_or_default();
    JobSpec {
        name,
        seed,
        workers,
        corpus: corpus_spec(corpus.unwrap_or_default()).into(),
        corpora: message.corpora.into_iter().map(|(name, corpus)| (name, corpus_spec(corpus))).collect(),
        labels: labels_spec(message.labels.unwrap_or_default()).into(),
        data: parsed_data(&data.unwrap_or_default(), found),
        retrieval: parsed_retrieval(message.retrieval.unwrap_or_default(), found).into(),
        base: parsed_base(base.unwrap_or_default(), found).into(),
        adapter: AdapterSpec { r: adapter.r, alpha: adapter.alpha, targets: adapter.targets, from: adapter.from }
            .into(),
        train: parsed_train(&train.unwrap_or_default(), found),
        stages: message.stages.into_iter().map(|stage| parsed_stage(stage, found)).collect(),
        evaluate: parsed_evaluate(&evaluate.unwrap_or_default(), found).into(),
        endpoint: message.endpoint.map_or_else(EndpointSpec::default, Into::into).into(),
        schedule: message.schedule.map_or_else(ScheduleSpec::default, Into::into),
    }
}

impl From<v1::ScheduleSpec> for ScheduleSpec {
    fn from(message: v1::ScheduleSpec) -> Self {
        let v1::ScheduleSpec { min_workers, priority, user, pause_epoch } = message;
        Self { min_workers: min_workers.max(1), priority, user, pause_epoch }
    }
}

impl From<&ScheduleSpec> for v1::ScheduleSpec {
    fn from(spec: &ScheduleSpec) -> Self {
        let &ScheduleSpec { min_workers, priority, ref user, pause_epoch } = spec;
        Self { min_workers, priority, user: user.clone(), pause_epoch }
    }
}

fn labels_spec(message: v1::LabelsSpec) -> LabelsSpec {
    let map = message.map.into_iter().map(|(corpus, map)| (corpus, map.to.into_iter().collect())).collect();
    LabelsSpec { file: message.file, names: message.names, map }
}

fn parsed_data(data: &v1::DataSpec, found: &mut Vec<Violation>) -> DataSpec {
    let default = JobSpec::default().data;
    DataSpec {
        window: data.window,
        share: parsed(&data.share, "data.share", default.share, found),
        mix: word(&data.mix, "data.mix", "total or ratio", default.mix, found),
        template: word(&data.template, "data.template", "instructerc or plain", default.template, found),
    }
}

fn parsed_retrieval(message: v1::RetrievalSpec, found: &mut Vec<Violation>) -> RetrievalSpec {
    let v1::RetrievalSpec { k, encoder, encoder_digest, training, balanced } = message;
    if k == 0 && encoder.is_empty() {
        return RetrievalSpec::default();
    }
    RetrievalSpec {
        k,
        encoder,
        encoder_digest: parsed_digest(&encoder_digest, "retrieval.encoder_digest", found),
        training: word(&training, "retrieval.training", "any or same-label", Default::default(), found),
        balanced,
    }
}

fn parsed_base(base: v1::BaseSpec, found: &mut Vec<Violation>) -> BaseSpec {
    let default = JobSpec::default().base.precision;
    BaseSpec {
        source: base.source,
        digest: parsed_digest(&base.digest, "base.digest", found),
        precision: word(&base.precision, "base.precision", "f32, bf16, q8 or q4", default, found),
    }
}

fn parsed_train(t: &v1::TrainSpec, found: &mut Vec<Violation>) -> TrainSpec {
    let default = TrainSpec::default();
    let weights = if t.class_weights.is_empty() { "none" } else { &t.class_weights };
    let sum = if t.sum.is_empty() { "exact" } else { &t.sum };
    TrainSpec {
        epochs: t.epochs,
        batch: t.batch,
        lr: t.lr,
        warmup: t.warmup,
        beta1: t.beta1,
        beta2: t.beta2,
        eps: t.eps,
        weight_decay: t.weight_decay,
        clip_norm: t.clip_norm,
        batching: word(&t.batching, "train.batching", "dialogue or utterance", default.batching, found),
        slot_tokens: t.slot_tokens,
        recompute: t.recompute,
        checkpoint_updates: t.checkpoint_updates,
        updates: t.updates,
        class_weights: word(weights, "train.class_weights", "none or balanced", default.class_weights, found),
        parameters: trained_parameters(&t.parameters, found),
        sum: word(sum, "train.sum", "exact or fast", default.sum, found),
    }
}

/// What is trained; clients of 0.1.0 do not say.
fn trained_parameters(text: &str, found: &mut Vec<Violation>) -> Parameters {
    let default = Parameters::default();
    if text.is_empty() { default } else { word(text, "train.parameters", "lora or all", default, found) }
}

fn parsed_stage(stage: v1::StageSpec, found: &mut Vec<Violation>) -> StageSpec {
    let v1::StageSpec { objectives, impact_weight, epochs, updates, batch, lr, warmup } = stage;
    let mut parsed = Vec::new();
    for objective in &objectives {
        let main = crate::job::Objective::Main;
        parsed.push(word(objective, "stages.objectives", "main, speaker or impact", main, found));
    }
    StageSpec { objectives: parsed, impact_weight, epochs, updates, batch, lr, warmup }
}

fn parsed_evaluate(e: &v1::EvaluateSpec, found: &mut Vec<Violation>) -> EvaluateSpec {
    let default = JobSpec::default().evaluate;
    let mut arms = Vec::new();
    for arm in &e.arms {
        let expected = "zero-shot, few-shot, trained or shuffled-demonstrations";
        arms.push(word(arm, "evaluate.arms", expected, default.arms[0], found));
    }
    let dialogues = if e.dialogues.is_empty() { "1" } else { &e.dialogues };
    EvaluateSpec {
        mode: word(&e.mode, "evaluate.mode", "greedy or score", default.mode, found),
        max_new_tokens: e.max_new_tokens,
        arms,
        dialogues: parsed(dialogues, "evaluate.dialogues", default.dialogues, found),
        merge: e.merge,
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

/// A digest, or none where the text is empty or is no digest.
fn parsed_digest(text: &str, field: &str, found: &mut Vec<Violation>) -> Option<Digest> {
    if text.is_empty() {
        return None;
    }
    text.parse().map_err(|e: crate::ids::NotADigest| found.push(violation(field, e.to_string()))).ok()
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
        let AdapterSpec { r, alpha, targets, from } = AdapterSpec::clone(&spec.adapter);
        Self {
            name: spec.name.clone(),
            corpus: Some((&*spec.corpus).into()),
            data: Some(v1::DataSpec {
                window: spec.data.window,
                share: spec.data.share.to_string(),
                mix: name_of(&spec.data.mix),
                template: name_of(&spec.data.template),
            }),
            base: Some(v1::BaseSpec {
                source: spec.base.source.clone(),
                digest: digest_text(spec.base.digest.as_ref()),
                precision: name_of(&spec.base.precision),
            }),
            adapter: Some(v1::AdapterSpec { r, alpha, targets, from }),
            train: Some((&spec.train).into()),
            evaluate: Some((&*spec.evaluate).into()),
            seed: spec.seed,
            workers: spec.workers,
            corpora: spec.corpora.iter().map(|(name, corpus)| (name.clone(), corpus.into())).collect(),
            labels: Some((&*spec.labels).into()),
            retrieval: Some((&*spec.retrieval).into()),
            stages: spec.stages.iter().map(v1::StageSpec::from).collect(),
            endpoint: Some((&*spec.endpoint).into()),
            schedule: Some((&spec.schedule).into()),
        }
    }
}

fn digest_text(digest: Option<&Digest>) -> String {
    digest.map(Digest::to_string).unwrap_or_default()
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

impl From<&TrainSpec> for v1::TrainSpec {
    fn from(t: &TrainSpec) -> Self {
        Self {
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
            updates: t.updates,
            class_weights: name_of(&t.class_weights),
            parameters: name_of(&t.parameters),
            sum: name_of(&t.sum),
        }
    }
}

impl From<&EvaluateSpec> for v1::EvaluateSpec {
    fn from(e: &EvaluateSpec) -> Self {
        Self {
            mode: name_of(&e.mode),
            max_new_tokens: e.max_new_tokens,
            arms: e.arms.iter().map(name_of).collect(),
            merge: e.merge,
            dialogues: e.dialogues.to_string(),
        }
    }
}

impl From<&LabelsSpec> for v1::LabelsSpec {
    fn from(labels: &LabelsSpec) -> Self {
        let LabelsSpec { file, names, map } = labels.clone();
        let of = |(corpus, map): (String, BTreeMap<_, _>)| (corpus, v1::LabelMap { to: map.into_iter().collect() });
        Self { file, names, map: map.into_iter().map(of).collect() }
    }
}

impl From<&RetrievalSpec> for v1::RetrievalSpec {
    fn from(retrieval: &RetrievalSpec) -> Self {
        Self {
            k: retrieval.k,
            encoder: retrieval.encoder.clone(),
            encoder_digest: digest_text(retrieval.encoder_digest.as_ref()),
            training: name_of(&retrieval.training),
            balanced: retrieval.balanced,
        }
    }
}

impl From<&StageSpec> for v1::StageSpec {
    fn from(stage: &StageSpec) -> Self {
        let StageSpec { objectives, impact_weight, epochs, updates, batch, lr, warmup } = stage.clone();
        let objectives = objectives.iter().map(name_of).collect();
        Self { objectives, impact_weight, epochs, updates, batch, lr, warmup }
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
        let Shard { digest, bytes, dialogues, utterances, part } = shard.clone();
        Self { digest: digest.to_string(), bytes, dialogues, utterances, part }
    }
}

impl TryFrom<v1::Shard> for Shard {
    type Error = Malformed;
    fn try_from(message: v1::Shard) -> Result<Self, Malformed> {
        let v1::Shard { digest, bytes, dialogues, utterances, part } = message;
        Ok(Self { digest: digest.parse().map_err(malformed("shard.digest"))?, bytes, dialogues, utterances, part })
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
            parts: corpus.parts.iter().map(v1::CorpusPart::from).collect(),
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
            parts: message.parts.into_iter().map(Part::try_from).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Part> for v1::CorpusPart {
    fn from(part: &Part) -> Self {
        Self { name: part.name.clone(), digest: part.digest.to_string(), speakers: part.speakers }
    }
}

impl TryFrom<v1::CorpusPart> for Part {
    type Error = Malformed;
    fn try_from(message: v1::CorpusPart) -> Result<Self, Malformed> {
        let v1::CorpusPart { name, digest, speakers } = message;
        Ok(Self { name, digest: digest.parse().map_err(malformed("corpus.parts"))?, speakers })
    }
}

impl From<&Tally> for v1::Tally {
    fn from(tally: &Tally) -> Self {
        let labels = u32::try_from(tally.labels()).expect("a label set has at most 1000 labels");
        Self { labels, counts: tally.counts().collect() }
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

    /// A job that says something of everything that may be left unsaid.
    fn whole_spec() -> JobSpec {
        let text = r#"{"meld": {"path": "a"}, "emorynlp": {"path": "b", "rename": {"Joy": "Joyful"}}}"#;
        let stages = r#"[{"objectives": ["speaker"], "epochs": 3, "lr": 0.5},
            {"objectives": ["main", "impact"], "impact_weight": 0.1, "updates": 40, "batch": 8, "warmup": 0.0}]"#;
        let mut spec = JobSpec { corpora: serde_json::from_str(text).unwrap(), ..JobSpec::default() };
        spec.stages = serde_json::from_str(stages).unwrap();
        spec.labels.names = vec!["joyful".into(), "sad".into()];
        spec.labels.map = serde_json::from_str(r#"{"meld": {"joyful": "joyful", "sad": "sad"}}"#).unwrap();
        spec.data.mix = crate::job::Mix::Ratio;
        spec.retrieval.k = 1;
        spec.retrieval.training = crate::job::Candidates::SameLabel;
        spec.adapter.from = "job-3".into();
        spec.train.class_weights = crate::job::ClassWeights::Balanced;
        spec.train.sum = crate::job::Sum::Fast;
        spec.evaluate.dialogues = "1/8".parse().unwrap();
        spec
    }

    #[test]
    fn a_job_spec_survives_the_wire() {
        assert_eq!(job_spec((&spec()).into()), Ok(spec()));
        assert_eq!(job_spec((&whole_spec()).into()), Ok(whole_spec()));
    }

    #[test]
    fn a_client_that_does_not_say_what_is_trained_means_an_adapter() {
        let mut message = v1::JobSpec::from(&spec());
        message.train.as_mut().unwrap().parameters.clear();
        assert_eq!(job_spec(message).unwrap().train.parameters, Parameters::Lora);
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
