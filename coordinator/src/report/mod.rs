//! From a finished job to what a paper prints: metrics with provenance.
//!
//! Pure: [`build`] reads the job's state, [`Report::to_json`], [`markdown::render`] and [`text::render`] write it down.
//! Values are fractions from 0 to 1 as scikit-learn gives them; only tables print per cent. The JSON's names are a
//! contract that scripts rely on: they may be added to, not renamed.

pub mod markdown;
mod rows;
pub mod text;

use std::collections::BTreeMap;

use insula_proto::{
    VERSION,
    corpus::{Part, Split},
    ids::{Digest, JobId},
    job::{Arm, Candidates, EvaluateMode, JobSpec},
    tally::Tally,
};
use serde::{Deserialize, Serialize};

use crate::{
    metric::Metric,
    schedule::{
        event::{Artifact, Evaluated, ExternalUsage, PhaseName, Trained},
        state::Job,
        task::TaskKind,
    },
};

/// The commit this was built from, or `unknown`.
pub const COMMIT: &str = env!("INSULA_COMMIT");

/// Metrics with provenance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// One per arm, zero-shot first.
    pub arms: Vec<ArmReport>,
    /// What the training amounted to, its last stage where it has several; absent where nothing was trained.
    pub training: Option<TrainingReport>,
    /// The stages before the last, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_stages: Vec<StageReport>,
    /// What a reader should know before believing a number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What all of it was made from.
    pub provenance: Provenance,
}

/// One arm on one split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArmReport {
    /// `zero-shot`, `few-shot`, `trained` or `shuffled-demonstrations`.
    pub name: String,
    /// The corpus's name.
    pub corpus: String,
    /// Always `test`.
    pub split: Split,
    /// Utterances answered.
    pub samples: u64,
    /// Mean F1 weighted by support; an unreadable answer is wrong.
    pub weighted_f1: f64,
    /// Plain mean F1 over all labels.
    pub macro_f1: f64,
    /// Part of the answers that are right.
    pub accuracy: f64,
    /// Answers that are no label.
    pub unreadable: u64,
    /// Weighted F1 where unreadable answers are repaired as the paper does.
    pub paper_weighted_f1: f64,
    /// Macro F1 of the repaired answers.
    pub paper_macro_f1: f64,
    /// Accuracy of the repaired answers.
    pub paper_accuracy: f64,
    /// Per label, in the label set's order.
    pub labels: Vec<LabelRow>,
    /// Who was taken for whom.
    pub confusion: Confusion,
    /// Answers that are the label of the prompt's first demonstration; 0 where there are none.
    #[serde(default)]
    pub copied: u64,
    /// Answers decided by less than 0.05 nat.
    pub close_margins: u64,
    /// Oldest utterances left out of prompts longer than the base's context.
    pub dropped_utterances: u64,
    /// Tokens computed.
    pub tree_tokens: u64,
    /// Time computing, all workers added.
    pub seconds: f64,
    /// Samples over that time.
    pub samples_per_s: f64,
    /// Greatest memory of any worker.
    pub peak_rss_bytes: u64,
    /// What the answers took where the base is an endpoint; absent where it was computed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalUsage>,
}

/// One label's metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelRow {
    /// The label.
    pub label: String,
    /// Right answers among those that say it.
    pub precision: f64,
    /// Right answers among those that should.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub f1: f64,
    /// Answers that should say it.
    pub support: u64,
}

/// Confusion counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// What a row's gold label is.
    pub rows: Vec<String>,
    /// What a column's answer is; the last is `unreadable`.
    pub columns: Vec<String>,
    /// Counts by row and column.
    pub counts: Vec<Vec<u64>>,
}

/// What a training amounted to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingReport {
    /// Optimizer steps.
    pub updates: u32,
    /// Each epoch's weighted F1 on dev.
    pub epochs: Vec<EpochReport>,
    /// The epoch of greatest weighted F1 on dev, of equals the earliest; its adapter is the job's.
    pub best_epoch: u32,
    /// Examples computed, all epochs.
    pub samples: u64,
    /// Tokens of the separate prompts.
    pub tokens: u64,
    /// Tokens computed.
    pub tree_tokens: u64,
    /// Time computing.
    pub seconds: f64,
    /// Samples over that time.
    pub samples_per_s: f64,
    /// Greatest memory of the worker.
    pub peak_rss_bytes: u64,
    /// Oldest utterances left out of prompts.
    pub dropped_utterances: u64,
    /// One per update, nat per supervised token; null where it was not finite.
    pub losses: Vec<Option<f32>>,
}

/// A stage of the training before its last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// What it asked: `speaker`.
    pub objectives: String,
    /// Optimizer steps.
    pub updates: u32,
    /// Examples computed, all epochs.
    pub samples: u64,
    /// Time computing.
    pub seconds: f64,
    /// The last update's, nat per supervised token.
    pub last_loss: Option<f32>,
}

/// One epoch's score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    /// From 1.
    pub epoch: u32,
    /// On dev.
    pub weighted_f1: f64,
    /// Whether it was chosen.
    pub best: bool,
}

/// What a result was made from: enough to make it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Of coordinator and workers.
    pub insula_version: String,
    /// It was built from.
    pub commit: String,
    /// The job.
    pub job_id: String,
    /// The data.
    pub corpus: CorpusProvenance,
    /// The frozen model.
    pub base: BaseProvenance,
    /// Every setting of the job.
    pub recipe: JobSpec,
    /// The only source of randomness.
    pub seed: u64,
    /// How answers were taken.
    pub evaluate: EvaluateMode,
    /// Training samples after `data.share`; 0 where nothing was trained.
    pub samples_trained_on: u64,
    /// Optimizer steps; 0 where nothing was trained.
    pub updates: u32,
    /// The epoch chosen on dev.
    pub best_epoch: Option<u32>,
    /// Unix time, milliseconds.
    pub submitted_at_ms: u64,
    /// Unix time, milliseconds.
    pub finished_at_ms: u64,
}

/// The data a result was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusProvenance {
    /// Its name.
    pub name: String,
    /// Of labels and shards.
    pub digest: Digest,
    /// The corpora it was put together from.
    #[serde(default)]
    pub parts: Vec<Part>,
    /// In prompt order.
    pub labels: Vec<String>,
    /// How much of it.
    pub splits: BTreeMap<Split, SplitSize>,
}

/// How large a split is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitSize {
    /// Dialogues.
    pub dialogues: u64,
    /// Utterances.
    pub utterances: u64,
}

/// The frozen model a result was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseProvenance {
    /// As the job names it.
    pub source: String,
    /// As the workers computed it.
    pub digest: Option<Digest>,
}

/// A job that has no report.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{job} is {state}: expected a job that succeeded")]
pub struct NotFinished {
    job: JobId,
    state: &'static str,
}

/// The report of a job that succeeded.
///
/// # Errors
/// When the job has not succeeded (yet).
pub fn build(job: &Job) -> Result<Report, NotFinished> {
    let state = match job.phase.name() {
        PhaseName::Succeeded => "",
        PhaseName::Queued => "queued",
        PhaseName::Running => "running",
        PhaseName::Failed => "failed",
        PhaseName::Cancelled => "cancelled",
    };
    if !state.is_empty() {
        return Err(NotFinished { job: job.id, state });
    }
    let parts = 0..u32::try_from(job.corpus.parts.len().max(1)).expect("a mix has fewer than 2^32 corpora");
    let arms: Vec<_> = arms_of(job).flat_map(|arm| parts.clone().map(move |part| arm_report(job, arm, part))).collect();
    let warnings = warnings(job, &arms);
    let (training, earlier_stages) = (training_report(job), earlier_stages(job));
    Ok(Report { arms, training, earlier_stages, warnings, provenance: provenance(job) })
}

/// The predictions of all arms, JSON lines to be concatenated in this order.
pub fn predictions(job: &Job) -> Vec<Artifact> {
    let of_arm = |arm| job.evaluated(move |kind| kind.arm() == Some(arm));
    arms_of(job).flat_map(of_arm).map(|e| e.predictions.clone()).collect()
}

/// The best epoch's adapter; empty where nothing was trained.
pub fn adapter(job: &Job) -> Vec<Artifact> {
    job.adapter_of(TaskKind::Trained { shard: 0 }).cloned().unwrap_or_default()
}

impl Report {
    /// The whole report as `report.json` has it.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report has only text keys");
        text.push('\n');
        text
    }

    /// A report read back from `report.json`.
    ///
    /// # Errors
    /// When the text is not what [`Report::to_json`] writes.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

fn arms_of(job: &Job) -> impl Iterator<Item = Arm> {
    Arm::ALL.into_iter().filter(|arm| job.has_arm(*arm))
}

/// An arm on one of the corpora.
fn arm_report(job: &Job, arm: Arm, part: u32) -> ArmReport {
    let of_part = |kind| {
        let shard = job.shard_of(kind).map(|(split, place)| &job.corpus.splits[&split].shards[place]);
        shard.is_some_and(|shard| shard.part == part)
    };
    let parts = job.evaluated(|kind| kind.arm() == Some(arm) && of_part(kind));
    let sum = |pick: fn(&Evaluated) -> &Tally| {
        let mut whole = Tally::new(job.corpus.labels.len());
        parts.iter().for_each(|part| whole.add(pick(part)));
        whole
    };
    let total = |pick: fn(&Evaluated) -> u64| parts.iter().map(|part| pick(part)).sum::<u64>();
    let tally = sum(|part| &part.strict);
    let (strict, paper) = (Metric::of(&tally), Metric::of(&sum(|part| &part.paper)));
    let seconds: f64 = parts.iter().map(|part| part.seconds).sum();
    ArmReport {
        name: arm.as_str().into(),
        corpus: part_name(job, part),
        split: Split::Test,
        samples: strict.samples,
        weighted_f1: strict.weighted_f1,
        macro_f1: strict.macro_f1,
        accuracy: strict.accuracy,
        unreadable: strict.unreadable,
        paper_weighted_f1: paper.weighted_f1,
        paper_macro_f1: paper.macro_f1,
        paper_accuracy: paper.accuracy,
        labels: label_rows(job, &strict),
        confusion: confusion(job, &tally),
        copied: total(|part| part.copied),
        close_margins: total(|part| part.close_margins),
        dropped_utterances: total(|part| part.dropped_utterances),
        tree_tokens: total(|part| part.tree_tokens),
        seconds,
        samples_per_s: per_second(strict.samples, seconds),
        peak_rss_bytes: parts.iter().map(|part| part.peak_rss_bytes).max().unwrap_or(0),
        external: ExternalUsage::sum(parts.iter().filter_map(|part| part.external)),
    }
}

fn part_name(job: &Job, part: u32) -> String {
    match job.corpus.parts.as_slice() {
        [] | [_] => job.corpus.name.clone(),
        parts => parts[part as usize].name.clone(),
    }
}

/// Part of the accuracy that may go when demonstrations' labels are drawn at random; beyond it the answers hang on them.
const LEAK: f64 = 0.05;

/// What a reader should know: demonstrations that give the answer away.
fn warnings(job: &Job, arms: &[ArmReport]) -> Vec<String> {
    let mut warnings = Vec::new();
    let retrieval = &job.spec.retrieval;
    if job.spec.trains() && retrieval.k > 0 && retrieval.training == Candidates::SameLabel {
        warnings.push(
            "training demonstrations were chosen among examples of the sample's own label, so each gave its answer away"
                .to_owned(),
        );
    }
    let shuffled = arms.iter().filter(|arm| arm.name == Arm::ShuffledDemonstrations.as_str());
    for shuffled in shuffled {
        let of_corpus = |arm: &&ArmReport| arm.name == Arm::Trained.as_str() && arm.corpus == shuffled.corpus;
        let Some(trained) = arms.iter().find(of_corpus) else { continue };
        if trained.accuracy - shuffled.accuracy > LEAK {
            let percent = rows::percent;
            warnings.push(format!(
                "label leak on {}: accuracy falls from {} to {} per cent when demonstrations' labels are drawn at random, \
                 and {} of {} answers then are the demonstration's label",
                trained.corpus,
                percent(trained.accuracy),
                percent(shuffled.accuracy),
                shuffled.copied,
                shuffled.samples,
            ));
        }
    }
    warnings
}

fn label_rows(job: &Job, metric: &Metric) -> Vec<LabelRow> {
    let row = |(label, m): (&String, &crate::metric::LabelMetric)| LabelRow {
        label: label.clone(),
        precision: m.precision,
        recall: m.recall,
        f1: m.f1,
        support: m.support,
    };
    job.corpus.labels.names().iter().zip(&metric.labels).map(row).collect()
}

fn confusion(job: &Job, tally: &Tally) -> Confusion {
    let rows = job.corpus.labels.names().to_vec();
    let columns = rows.iter().cloned().chain(["unreadable".to_owned()]).collect();
    let counts: Vec<u64> = tally.counts().collect();
    let counts = counts.chunks(tally.labels() + 1).map(<[u64]>::to_vec).collect();
    Confusion { rows, columns, counts }
}

fn training_report(job: &Job) -> Option<TrainingReport> {
    let training = job.training();
    let best_epoch = training.best?;
    let trained = *job.trained().last()?;
    let epoch = |(&epoch, &weighted_f1)| EpochReport { epoch, weighted_f1, best: epoch == best_epoch };
    Some(TrainingReport {
        updates: trained.updates,
        epochs: training.dev.iter().map(epoch).collect(),
        best_epoch,
        samples: trained.samples,
        tokens: trained.tokens,
        tree_tokens: trained.tree_tokens,
        seconds: trained.seconds,
        samples_per_s: per_second(trained.samples, trained.seconds),
        peak_rss_bytes: trained.peak_rss_bytes,
        dropped_utterances: trained.dropped_utterances,
        losses: trained.losses.clone(),
    })
}

fn earlier_stages(job: &Job) -> Vec<StageReport> {
    let trained = job.trained();
    let earlier = trained.len().saturating_sub(1);
    let stage = |(stage, trained): (insula_proto::job::Stage, &&Trained)| StageReport {
        objectives: stage.name(),
        updates: trained.updates,
        samples: trained.samples,
        seconds: trained.seconds,
        last_loss: trained.losses.last().copied().flatten(),
    };
    job.stage_specs().into_iter().zip(&trained[..earlier]).map(stage).collect()
}

fn provenance(job: &Job) -> Provenance {
    let size = |split: &insula_proto::corpus::SplitManifest| SplitSize {
        dialogues: split.dialogues(),
        utterances: split.utterances(),
    };
    let sampled = job.spec.sampled(&job.corpus.utterances_by_part(Split::Train));
    let trained = job.trained().last().copied();
    Provenance {
        insula_version: VERSION.into(),
        commit: COMMIT.into(),
        job_id: job.id.to_string(),
        corpus: CorpusProvenance {
            name: job.corpus.name.clone(),
            digest: job.corpus.digest.clone(),
            parts: job.corpus.parts.clone(),
            labels: job.corpus.labels.names().to_vec(),
            splits: job.corpus.splits.iter().map(|(split, manifest)| (*split, size(manifest))).collect(),
        },
        base: BaseProvenance { source: job.spec.base.source.clone(), digest: job.base.clone() },
        recipe: JobSpec::clone(&job.spec),
        seed: job.spec.seed,
        evaluate: job.spec.evaluate.mode,
        samples_trained_on: trained.map_or(0, |_| sampled),
        updates: trained.map_or(0, |trained| trained.updates),
        best_epoch: job.training().best,
        submitted_at_ms: job.submitted_ms,
        finished_at_ms: job.phase.finished_ms().unwrap_or(0),
    }
}

fn per_second(samples: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { samples as f64 / seconds } else { 0.0 }
}
