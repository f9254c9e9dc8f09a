//! Between the schedule's types and the wire's messages.

use insula_proto::{
    corpus::Split,
    ids::{Digest, LeaseId, TaskIndex},
    job::Arm,
    tally::Tally,
    v1,
};
use tonic::Status;

use super::invalid;
use crate::{
    schedule::{
        Grant, Job, Seating,
        event::{
            Artifact, Checkpoint, Embedded, Evaluated, ExternalUsage, FailureClass, LedgerSegment, PhaseName, Progress,
            Report, Story, Trained,
        },
        state::{Phase, Training},
        task::{Task, TaskKind, TaskState},
        tokens::Claim,
    },
    shell::{
        board::Posted,
        secret::Secret,
        store::{Token, Told},
    },
};

/// A job as readers see it; holders of leases are named by the board.
pub(super) fn job(job: &Job, posted: &Posted) -> v1::Job {
    let tasks = (0..).zip(&job.tasks).map(|(index, task)| v1::Task {
        index,
        what: job.what(TaskIndex(index)),
        state: task.state.as_str().into(),
        worker: match &task.state {
            TaskState::Leased(gang) => {
                let name = |lease: &LeaseId| {
                    let holder = posted.workers.iter().find(|w| w.worker.lease == Some(*lease));
                    holder.map(|w| w.worker.name.clone())
                };
                gang.holders.iter().filter_map(name).collect::<Vec<_>>().join(", ")
            }
            _ => String::new(),
        },
        attempts: task.attempts,
    });
    v1::Job { tasks: tasks.collect(), ..job_head(job) }
}

/// A job without its tasks.
pub(super) fn job_head(job: &Job) -> v1::Job {
    let failure = match &job.phase {
        Phase::Failed { message, .. } => message.clone(),
        _ => String::new(),
    };
    v1::Job {
        job_id: job.id.to_string(),
        spec: Some((&*job.spec).into()),
        state: job_state(job.phase.name()).into(),
        submitted_ms: signed(job.submitted_ms),
        finished_ms: job.phase.finished_ms().map_or(0, signed),
        failure,
        tasks: vec![],
        progress: job.progress.as_deref().map(progress),
        epochs: epochs(job),
        paused_epoch: if paused(job) { job.pause_epoch } else { 0 },
        pinned: job.pinned,
    }
}

/// The last stage's epochs, as far as they are evaluated on dev.
fn epochs(job: &Job) -> Vec<v1::EpochScored> {
    let Training { dev, best, .. } = job.training();
    let scored =
        |(&epoch, &weighted_f1): (&u32, &f64)| v1::EpochScored { epoch, weighted_f1, best: *best == Some(epoch) };
    dev.iter().map(scored).collect()
}

/// Whether a job waits to be told to go on: its training has come to its pause, and nobody computes it any more.
fn paused(job: &Job) -> bool {
    let trains = |task: &Task| {
        matches!(task.kind, TaskKind::Train { .. }) && matches!(task.state, TaskState::Leased(_) | TaskState::Ready)
    };
    !job.phase.name().is_final() && job.pauses() && !job.tasks.iter().any(trains)
}

/// A gang as a member is told of it; the key is the generation's own.
pub(super) fn gang(seating: &Seating, secret: &Secret) -> v1::Gang {
    let Seating { job, task, generation, rank, seats } = seating;
    let seat = |(lease, worker, address): &(LeaseId, String, String)| {
        let (worker, address) = (worker.clone(), address.clone());
        v1::Seat { lease_id: lease.0, worker, address }
    };
    v1::Gang {
        generation: *generation,
        rank: u32::try_from(*rank).expect("a gang has fewer than 2^32 seats"),
        seats: seats.iter().map(seat).collect(),
        key: secret.key_of(*job, *task, *generation).to_vec(),
    }
}

/// A piece of the ledger.
pub(super) fn ledger_segment(segment: &LedgerSegment) -> v1::LedgerSegment {
    let lines = artifacts(std::slice::from_ref(&segment.lines)).pop();
    v1::LedgerSegment { first: segment.first, last: segment.last, lines }
}

pub(super) fn job_state(phase: PhaseName) -> v1::JobState {
    match phase {
        PhaseName::Queued => v1::JobState::Queued,
        PhaseName::Running => v1::JobState::Running,
        PhaseName::Succeeded => v1::JobState::Succeeded,
        PhaseName::Failed => v1::JobState::Failed,
        PhaseName::Cancelled => v1::JobState::Cancelled,
    }
}

/// Whose a key's tokens are to make, or where they lie.
pub(super) fn claim(claim: Claim) -> v1::ClaimTokensResponse {
    let (artifact, granted) = match claim {
        Claim::Cached(artifact) => (artifact.to_string(), false),
        Claim::Granted => (String::new(), true),
        Claim::Busy => (String::new(), false),
    };
    v1::ClaimTokensResponse { artifact, granted }
}

/// A story, with the token after which a watcher goes on.
pub(super) fn job_event(told: Told) -> v1::JobEvent {
    use v1::job_event::Event;
    let event = match told.story {
        Story::State { state } => Event::State(job_state(state).into()),
        Story::Note { text } => Event::Note(text),
        Story::Progress { progress: p } => Event::Progress(progress(&p)),
        Story::Task { index, what, state, worker } => {
            Event::Task(v1::TaskChanged { index: index.0, what, state, worker })
        }
        Story::Epoch { epoch, weighted_f1, best } => Event::Epoch(v1::EpochScored { epoch, weighted_f1, best }),
    };
    v1::JobEvent { resume_token: token_text(told.token), at_ms: signed(told.at_ms), event: Some(event) }
}

pub(super) fn token_text(token: Token) -> String {
    format!("{}.{}", token.seq, token.part)
}

/// Where a watcher goes on; `None` where the text is no token.
pub(super) fn token(text: &str) -> Option<Token> {
    let (seq, part) = text.split_once('.')?;
    Some(Token { seq: seq.parse().ok()?, part: part.parse().ok()? })
}

/// A lease with everything its holder needs.
pub(super) fn lease(grant: &Grant) -> v1::Lease {
    let job = &*grant.job;
    let kind = job.task(grant.task).kind;
    v1::Lease {
        lease_id: grant.lease.0,
        job_id: job.id.to_string(),
        task_index: grant.task.0,
        what: job.what(grant.task),
        spec: Some((&*job.spec).into()),
        corpus: Some((&*job.corpus).into()),
        base_digest: job.base.as_ref().map(Digest::to_string).unwrap_or_default(),
        task: Some(task(job, kind)),
    }
}

fn task(job: &Job, kind: TaskKind) -> v1::lease::Task {
    let adapter = job.adapter_of(kind).map(|files| artifacts(files)).unwrap_or_default();
    let embeddings = |split| job.embeddings(split).unwrap_or_default().into_iter().map(embedding).collect::<Vec<_>>();
    let shard = |split: Split, place: usize| v1::Shard::from(&job.corpus.splits[&split].shards[place]);
    match kind {
        TaskKind::Train { stage } => {
            let kept = job.stages[stage].checkpoints.iter();
            let checkpoints = kept
                .map(|c| v1::Checkpoint {
                    update: c.update,
                    manifest_digest: c.manifest.to_string(),
                    ..Default::default()
                })
                .collect();
            let pause_epoch = job.pause_of(stage);
            let stage = u32::try_from(stage).expect("a job has fewer than 2^32 stages");
            v1::lease::Task::Train(v1::TrainTask {
                checkpoints,
                stage,
                adapter,
                embeddings: embeddings(Split::Train),
                pause_epoch,
            })
        }
        TaskKind::Embed { split, shard: place } => v1::lease::Task::Embed(v1::EmbedTask {
            split: split.to_string(),
            shard: Some(shard(split, place)),
            encoder_digest: job.encoder().map(Digest::to_string).unwrap_or_default(),
        }),
        TaskKind::ZeroShot { .. }
        | TaskKind::FewShot { .. }
        | TaskKind::Dev { .. }
        | TaskKind::Trained { .. }
        | TaskKind::Shuffled { .. } => {
            let (split, place) = job.shard_of(kind).expect("an evaluation is of a shard");
            let retrieves = kind.arm() != Some(Arm::ZeroShot);
            let of_shard = embeddings(split).into_iter().skip(place).take(1);
            v1::lease::Task::Evaluate(v1::EvaluateTask {
                arm: kind.arm().unwrap_or(Arm::Trained).as_str().into(),
                split: split.to_string(),
                shards: vec![shard(split, place)],
                adapter,
                train_embeddings: if retrieves { embeddings(Split::Train) } else { vec![] },
                embeddings: of_shard.filter(|_| retrieves).collect(),
                spent_usd: ExternalUsage::sum(job.evaluated(|_| true).iter().filter_map(|e| e.external))
                    .map_or(0.0, |e| e.usd),
            })
        }
    }
}

fn embedding(embedded: &Embedded) -> v1::Embedding {
    v1::Embedding {
        encoder_digest: embedded.encoder.to_string(),
        artifact: embedded.embeddings.digest.to_string(),
        width: embedded.width,
    }
}

pub(super) fn artifacts(files: &[Artifact]) -> Vec<v1::Artifact> {
    let artifact = |a: &Artifact| v1::Artifact { name: a.name.clone(), digest: a.digest.to_string(), bytes: a.bytes };
    files.iter().map(artifact).collect()
}

fn progress(p: &Progress) -> v1::Progress {
    v1::Progress {
        update: p.update,
        updates: p.updates,
        epoch: p.epoch,
        loss: p.loss.unwrap_or(f64::NAN),
        lr: p.lr,
        samples_per_s: p.samples_per_s,
        done: p.done,
        total: p.total,
        what: p.what.clone(),
    }
}

/// A worker's progress; numbers that are not finite could not be journalled.
pub(super) fn parsed_progress(p: v1::Progress) -> Progress {
    let v1::Progress { update, updates, epoch, loss, lr, samples_per_s, done, total, what } = p;
    let loss = loss.is_finite().then_some(loss);
    Progress { update, updates, epoch, loss, lr: finite(lr), samples_per_s: finite(samples_per_s), done, total, what }
}

fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn parsed_artifact(artifact: v1::Artifact) -> Result<Artifact, Status> {
    let digest = artifact.digest.parse().map_err(invalid("artifact.digest"))?;
    Ok(Artifact { name: artifact.name, digest, bytes: artifact.bytes })
}

fn parsed_tally(tally: Option<v1::Tally>, field: &'static str) -> Result<Tally, Status> {
    tally.ok_or("is missing: expected counts").map_err(invalid(field))?.try_into().map_err(invalid(field))
}

/// What a worker reports.
pub(super) fn parsed_report(report: Option<v1::report_request::Report>) -> Result<Report, Status> {
    use v1::report_request::Report as Wire;
    Ok(match report.ok_or("is missing: expected one of its kinds").map_err(invalid("report"))? {
        Wire::Checkpoint(c) => {
            let manifest = c.manifest_digest.parse().map_err(invalid("checkpoint.manifest_digest"))?;
            let state = c.state.map(parsed_artifact).transpose()?;
            let ledger = c.ledger.map(|segment| parsed_segment(segment, c.update)).transpose()?;
            Report::Checkpoint(Checkpoint { update: c.update, manifest, state, ledger })
        }
        Wire::Epoch(e) => {
            let adapter = e.adapter.into_iter().map(parsed_artifact).collect::<Result<_, _>>()?;
            Report::EpochTrained { epoch: e.epoch, adapter }
        }
        Wire::Trained(t) => Report::Trained(Trained {
            updates: t.updates,
            samples: t.samples,
            tokens: t.tokens,
            tree_tokens: t.tree_tokens,
            seconds: finite(t.seconds),
            peak_rss_bytes: t.peak_rss_bytes,
            losses: t.losses.into_iter().map(|loss| loss.is_finite().then_some(loss)).collect(),
            dropped_utterances: t.dropped_utterances,
        }),
        Wire::Evaluated(e) => Report::Evaluated(Evaluated {
            strict: parsed_tally(e.strict, "evaluated.strict")?,
            paper: parsed_tally(e.paper, "evaluated.paper")?,
            close_margins: e.close_margins,
            dropped_utterances: e.dropped_utterances,
            tree_tokens: e.tree_tokens,
            seconds: finite(e.seconds),
            peak_rss_bytes: e.peak_rss_bytes,
            predictions: parsed_artifact(e.predictions.unwrap_or_default())?,
            copied: e.copied,
            external: e.external.map(parsed_usage),
        }),
        Wire::Embedded(e) => Report::Embedded(Embedded {
            encoder: e.encoder_digest.parse().map_err(invalid("embedded.encoder_digest"))?,
            rows: e.rows,
            width: e.width,
            embeddings: parsed_artifact(e.embeddings.unwrap_or_default())?,
            cached: e.cached,
            seconds: finite(e.seconds),
        }),
        Wire::Failed(f) => Report::Failed { class: failure_class(f.class()), message: f.message },
        Wire::Released(r) => Report::Released { reason: r.reason },
    })
}

fn parsed_segment(segment: v1::LedgerSegment, update: u32) -> Result<LedgerSegment, Status> {
    let v1::LedgerSegment { first, last, lines } = segment;
    if first == 0 || last < first || last > update {
        let expected = format!("expected the first from 1 up, and none after the checkpoint's {update}");
        return Err(invalid("checkpoint.ledger")(format!("updates {first} to {last}: {expected}")));
    }
    Ok(LedgerSegment { first, last, lines: parsed_artifact(lines.unwrap_or_default())? })
}

fn parsed_usage(usage: v1::ExternalUsage) -> ExternalUsage {
    let v1::ExternalUsage { input_tokens, output_tokens, usd, cached } = usage;
    ExternalUsage { input_tokens, output_tokens, usd: finite(usd), cached }
}

/// A class nobody named is ours.
fn failure_class(class: v1::FailureClass) -> FailureClass {
    match class {
        v1::FailureClass::LostWorker => FailureClass::LostWorker,
        v1::FailureClass::OutOfMemory => FailureClass::OutOfMemory,
        v1::FailureClass::BadData => FailureClass::BadData,
        v1::FailureClass::Endpoint => FailureClass::Endpoint,
        v1::FailureClass::Device => FailureClass::Device,
        v1::FailureClass::Bug | v1::FailureClass::Unspecified => FailureClass::Bug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_other_text_is_none() {
        let there = Token { seq: 12, part: 3 };
        assert_eq!(token(&token_text(there)), Some(there));
        assert_eq!((token("12"), token("a.b"), token("")), (None, None, None));
    }

    #[test]
    fn a_loss_that_is_not_finite_is_kept_out_of_the_journal() {
        let losses = vec![1.5, f32::NAN, f32::INFINITY];
        let trained = v1::Trained { losses, seconds: f64::NAN, ..Default::default() };
        let report = parsed_report(Some(v1::report_request::Report::Trained(trained))).unwrap();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(matches!(report, Report::Trained(t) if t.losses == [Some(1.5), None, None] && t.seconds == 0.0));
    }
}
