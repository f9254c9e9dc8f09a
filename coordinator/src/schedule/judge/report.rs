//! Reports: who may say what, once.

use std::collections::BTreeSet;

use insula_proto::{
    ids::{Digest, LeaseId, TaskIndex, WorkerId},
    tally::Tally,
};

use super::{
    super::{
        event::{Artifact, Embedded, Event, Report},
        state::{Job, State, Worker},
        task::{TaskKind, TaskState},
    },
    Judgement, Refusal, done, held,
};

pub(super) fn report(
    state: &State,
    (worker, lease): (WorkerId, LeaseId),
    base: Option<&Digest>,
    report: &Report,
) -> Result<Judgement, Refusal> {
    let from = state.workers.get(&worker).ok_or(Refusal::UnknownWorker(worker))?;
    if was_accepted(state, from, lease, report) || is_late_release(from.revoked, lease, report) {
        return Ok(done(vec![]));
    }
    let held = held(state, worker, lease)?;
    let job = &state.jobs[&held.job];
    let leads = matches!(report, Report::Checkpoint(_) | Report::EpochTrained { .. } | Report::Trained(_));
    if let TaskState::Leased(gang) = &job.task(held.task).state
        && leads
        && gang.lead() != Some(lease)
    {
        return Err(Refusal::NotLead { lease, job: job.id });
    }
    fits(job, held.task, report)?;
    let base = base_of(job, base, report)?;
    if is_known_epoch(job, held.task, report) {
        return Ok(done(vec![]));
    }
    let report = Box::new(report.clone());
    Ok(done(vec![Event::Reported { lease, job: held.job, base, report }]))
}

/// The same words under the same lease, taken in before.
fn was_accepted(state: &State, from: &Worker, lease: LeaseId, report: &Report) -> bool {
    let Some((job, task)) = from.last.filter(|(last, ..)| *last == lease).map(|(_, job, task)| (job, task)) else {
        return false;
    };
    state.jobs[&job].task(task).accepted.has(lease, &report.digest())
}

/// A worker that was told to stop gives back what it no longer holds.
fn is_late_release(revoked: Option<LeaseId>, lease: LeaseId, report: &Report) -> bool {
    revoked == Some(lease) && matches!(report, Report::Released { .. })
}

/// An epoch that a training reports again after it resumed, with the adapter it had then.
fn is_known_epoch(job: &Job, task: TaskIndex, report: &Report) -> bool {
    let digests =
        |files: &[Artifact]| files.iter().map(|f| (f.name.clone(), f.digest.clone())).collect::<BTreeSet<_>>();
    match (report, job.task(task).kind) {
        (Report::EpochTrained { epoch, adapter }, TaskKind::Train { stage }) => {
            job.stages[stage].epochs.get(epoch).is_some_and(|known| digests(known) == digests(adapter))
        }
        _ => false,
    }
}

/// The base of a result, which must be the job's.
fn base_of(job: &Job, base: Option<&Digest>, report: &Report) -> Result<Option<Digest>, Refusal> {
    if matches!(report, Report::Failed { .. } | Report::Released { .. } | Report::Embedded(_)) {
        return Ok(None);
    }
    let found = base.ok_or(Refusal::NoBase { job: job.id })?;
    match job.base.as_ref().or(job.spec.base.digest.as_ref()) {
        Some(expected) if expected != found => {
            Err(Refusal::OtherBase { job: job.id, expected: expected.clone(), found: found.clone() })
        }
        _ => Ok(Some(found.clone())),
    }
}

/// Whether the report can be the answer to the task.
fn fits(job: &Job, index: TaskIndex, report: &Report) -> Result<(), Refusal> {
    let kind = job.task(index).kind;
    let wrong = |found| Refusal::WrongReport { job: job.id, task: job.what(index), found };
    match (report, kind) {
        (Report::Failed { .. } | Report::Released { .. }, _) => Ok(()),
        (Report::Embedded(embedded), TaskKind::Embed { .. }) => fits_embedded(job, index, embedded),
        (Report::Embedded(_), _) => Err(wrong("embeddings")),
        (Report::Evaluated(_), TaskKind::Train { .. } | TaskKind::Embed { .. }) => Err(wrong("an evaluation")),
        (Report::Evaluated(evaluated), _) => {
            fits_shard(job, index, "strict", &evaluated.strict)?;
            fits_shard(job, index, "paper", &evaluated.paper)
        }
        (training, TaskKind::Train { stage }) => fits_stage(job, stage, training),
        (Report::Checkpoint(_) | Report::EpochTrained { .. } | Report::Trained(_), _) => Err(wrong("a training")),
    }
}

/// Whether a training may say so: its epochs are the recipe's, each has an adapter, and all are there in the end.
fn fits_stage(job: &Job, stage: usize, report: &Report) -> Result<(), Refusal> {
    let (job_id, epochs) = (job.id, job.stage_specs()[stage].train.epochs);
    match report {
        Report::EpochTrained { epoch, .. } if !(1..=epochs).contains(epoch) => {
            Err(Refusal::NoSuchEpoch { job: job_id, epoch: *epoch, epochs })
        }
        Report::EpochTrained { epoch, adapter } if adapter.is_empty() => {
            Err(Refusal::NoAdapter { job: job_id, epoch: *epoch })
        }
        Report::Trained(_) => match (1..=epochs).find(|epoch| !job.stages[stage].epochs.contains_key(epoch)) {
            Some(epoch) => Err(Refusal::EpochMissing { job: job_id, epoch }),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Whether every utterance of the shard was embedded once, by the encoder of the shards before.
fn fits_embedded(job: &Job, index: TaskIndex, embedded: &Embedded) -> Result<(), Refusal> {
    let (split, shard) = job.shard_of(job.task(index).kind).expect("embeddings are of a shard");
    let expected = u64::from(job.corpus.splits[&split].shards[shard].utterances);
    if embedded.rows != expected {
        let task = job.what(index);
        return Err(Refusal::WrongRows { job: job.id, task, expected, found: embedded.rows });
    }
    match job.encoder().or(job.spec.retrieval.encoder_digest.as_ref()) {
        Some(encoder) if *encoder != embedded.encoder => {
            Err(Refusal::OtherEncoder { job: job.id, expected: encoder.clone(), found: embedded.encoder.clone() })
        }
        _ => Ok(()),
    }
}

/// Every utterance of the shard was answered once.
fn fits_shard(job: &Job, index: TaskIndex, which: &'static str, tally: &Tally) -> Result<(), Refusal> {
    let (split, shard) = job.shard_of(job.task(index).kind).expect("an evaluation has a shard");
    let expected = u64::from(job.corpus.splits[&split].shards[shard].utterances);
    let (labels, found_labels, found) = (job.corpus.labels.len(), tally.labels(), tally.total());
    if (expected, labels) == (found, found_labels) {
        return Ok(());
    }
    let task = job.what(index);
    Err(Refusal::WrongTally { job: job.id, task, which, expected, labels, found, found_labels })
}
