//! Looks at a request and says what would be so if it were granted, or refuses it. Changes nothing.

mod report;
mod request;

use std::sync::Arc;

pub use self::request::Request;

use insula_proto::{
    VERSION,
    corpus::CorpusManifest,
    ids::{Digest, JobId, LeaseId, TaskIndex, WorkerId},
    job::JobSpec,
};

use super::{
    Core, choose,
    event::{Event, Loss},
    explain::explain,
    gang::{Lease, Seating},
    keep::{self, Kept},
    queue::TaskId,
    state::{Job, Phase, State},
    task::{TaskKind, TaskState},
    tokens::{self, Claim},
};

/// Why a request changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are the values in the messages")]
pub enum Refusal {
    /// No such job.
    #[error("{0} does not exist")]
    UnknownJob(JobId),
    /// No such worker.
    #[error("{0} is not registered, or its name was taken over: register again")]
    UnknownWorker(WorkerId),
    /// A worker of another build.
    #[error("worker '{name}' is insula {worker}, the coordinator is insula {VERSION}: expected the same version")]
    OtherVersion { name: String, worker: String },
    /// A worker whose name people could not read in a line of a log.
    #[error("worker name '{0}': expected 1 to 100 characters, none of them a line break")]
    NotAName(String),
    /// A request id that is none.
    #[error("request_id '{0}': expected 1 to 200 characters that are new for every job, such as a UUID")]
    NotARequestId(String),
    /// The request id of another job.
    #[error("request_id '{request_id}' was given to {job} with other settings: expected a new request_id")]
    RequestIdTaken { request_id: String, job: JobId },
    /// The lease is not, or no longer, the worker's.
    #[error("{lease} is not held by {worker} any more: ask for work again")]
    StaleLease { lease: LeaseId, worker: WorkerId },
    /// The word of a member of a gang on what the lead alone reports.
    #[error("{lease} does not lead the gang of {job}: expected the report from rank 0")]
    NotLead { lease: LeaseId, job: JobId },
    /// A pause that the job's recipe does not have.
    #[error(
        "pause_epoch {pause_epoch}: {job} has {epochs} epochs: expected 0 to go on to the end, or an epoch before the last"
    )]
    NoSuchPause { job: JobId, pause_epoch: u32, epochs: u32 },
    /// A job that has ended does not go on.
    #[error("{0} has ended: expected a job that is queued or running")]
    Ended(JobId),
    /// Tokens that another makes, or nobody was asked for.
    #[error("{key} is not claimed under {lease}: expected a claim before the tokens")]
    NotClaimed { key: Digest, lease: LeaseId },
    /// A result without the base it depends on.
    #[error("{job}: the report names no base_digest: expected the digest of the base it was computed with")]
    NoBase { job: JobId },
    /// A result of another base.
    #[error("{job}: computed with base {found}, but this job's base is {expected}")]
    OtherBase { job: JobId, expected: Digest, found: Digest },
    /// Embeddings of another encoder.
    #[error("{job}: embedded with encoder {found}, but this job's encoder is {expected}")]
    OtherEncoder { job: JobId, expected: Digest, found: Digest },
    /// Embeddings that are not this shard's.
    #[error("{job}: '{task}' has {expected} utterances, the embeddings have {found} rows")]
    WrongRows { job: JobId, task: String, expected: u64, found: u64 },
    /// A job that starts from one that leaves no adapter.
    #[error("adapter.from: {from} {problem}: expected a job that trains an adapter and has not failed")]
    NoStart { from: JobId, problem: &'static str },
    /// A report that does not fit its task.
    #[error("{job}: '{task}' cannot be answered with {found}")]
    WrongReport { job: JobId, task: String, found: &'static str },
    /// An epoch the recipe does not have.
    #[error("{job}: epoch {epoch} is out of range: expected 1 to {epochs}")]
    NoSuchEpoch { job: JobId, epoch: u32, epochs: u32 },
    /// A training that ended without all of its adapters.
    #[error("{job}: the training is said to have ended, but epoch {epoch} was not reported")]
    EpochMissing { job: JobId, epoch: u32 },
    /// An epoch without files.
    #[error("{job}: epoch {epoch} has no adapter files")]
    NoAdapter { job: JobId, epoch: u32 },
    /// Counts that are not this shard's.
    #[error(
        "{job}: '{task}' has {expected} utterances of {labels} labels, the {which} tally counts {found} of {found_labels}"
    )]
    WrongTally {
        job: JobId,
        task: String,
        which: &'static str,
        expected: u64,
        labels: usize,
        found: u64,
        found_labels: usize,
    },
}

/// What would be so, and what to tell who asked.
pub(super) struct Judgement {
    pub(super) events: Vec<Event>,
    pub(super) outcome: Outcome,
}

/// The answer, before the events are taken in.
pub(super) enum Outcome {
    Done,
    Submitted {
        job: JobId,
        existed: bool,
    },
    Registered(WorkerId),
    Leased {
        lease: Option<LeaseId>,
        reserved: Option<TaskId>,
    },
    Beat {
        stop: bool,
        lease: LeaseId,
        generation: u32,
    },
    Job(JobId),
    Claim(Claim),
    Explained(Vec<String>),
    Kept,
    /// The events come first; the same request is then judged again.
    AskAgain,
}

/// The answer to a request that was not refused.
#[derive(Debug, Clone)]
pub enum Answer {
    /// It is so.
    Done,
    /// The job of the request id.
    Submitted {
        /// Its id.
        job: JobId,
        /// Accepted before.
        existed: bool,
    },
    /// The worker's new id.
    Registered(WorkerId),
    /// Something to compute, if there is any.
    Leased(Option<Grant>),
    /// The lease is renewed, or its job has ended.
    Beat {
        /// Leave off.
        stop: bool,
        /// Leave after the update in hand.
        recalled: bool,
        /// The gang, where it is another than the asker knows.
        gang: Option<Seating>,
    },
    /// The job as it now is.
    Job(Arc<Job>),
    /// Whose a key's tokens are to make, or where they lie.
    Claim(Claim),
    /// In sentences.
    Explained(Vec<String>),
    /// Every digest that something refers to.
    Kept(Arc<Kept>),
}

/// A lease and what it is for.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The fence.
    pub lease: LeaseId,
    /// The job.
    pub job: Arc<Job>,
    /// Its task.
    pub task: TaskIndex,
}

/// Completes the answer from the state after the events.
pub(super) fn answer(state: &State, outcome: Outcome) -> Answer {
    match outcome {
        Outcome::Done | Outcome::AskAgain => Answer::Done,
        Outcome::Submitted { job, existed } => Answer::Submitted { job, existed },
        Outcome::Registered(worker) => Answer::Registered(worker),
        Outcome::Beat { stop, lease, generation } => Answer::Beat {
            stop,
            recalled: state.leases.get(&lease).is_some_and(|lease| lease.recalled.is_some()),
            gang: state.seating(lease).filter(|gang| gang.generation != generation),
        },
        Outcome::Job(job) => Answer::Job(state.jobs[&job].clone()),
        Outcome::Claim(claim) => Answer::Claim(claim),
        Outcome::Explained(sentences) => Answer::Explained(sentences),
        Outcome::Kept => Answer::Kept(Arc::new(keep::kept(state))),
        Outcome::Leased { lease, .. } => Answer::Leased(lease.map(|lease| {
            let Lease { job, task, .. } = state.leases[&lease];
            Grant { lease, job: state.jobs[&job].clone(), task }
        })),
    }
}

/// Judges one request.
pub(super) fn judge(core: &Core, now_ms: u64, request: &Request) -> Result<Judgement, Refusal> {
    let state = &core.state;
    match request {
        Request::Import { corpus } => Ok(done(import(state, corpus))),
        Request::Submit { request_id, spec, corpus } => submit(state, request_id, spec, corpus),
        Request::Cancel { job } => cancel(state, *job),
        Request::Resume { job, pause_epoch } => resume(state, *job, *pause_epoch),
        Request::Pin { job, pinned } => pin(state, *job, *pinned),
        Request::Register { .. } => register(state, request),
        Request::Lease { worker, only_job, heard, .. } => lease(core, now_ms, *worker, *only_job, *heard),
        Request::Heartbeat { .. } => heartbeat(core, now_ms, request),
        Request::Report { worker, lease, base, report } => {
            report::report(state, (*worker, *lease), base.as_ref(), report)
        }
        Request::ClaimTokens { worker, lease, key, spoilt } => {
            tokens::claim(state, (*worker, *lease), key, spoilt.as_ref())
        }
        Request::FulfilTokens { worker, lease, key, artifact } => {
            tokens::fulfil(state, (*worker, *lease), key, artifact)
        }
        Request::Explain { job } => match state.jobs.contains_key(job) {
            true => Ok(Judgement { events: vec![], outcome: Outcome::Explained(explain(core, now_ms, *job)) }),
            false => Err(Refusal::UnknownJob(*job)),
        },
        Request::Kept => Ok(Judgement { events: vec![], outcome: Outcome::Kept }),
        Request::Tick => Ok(done(tick(core, now_ms))),
    }
}

fn done(events: Vec<Event>) -> Judgement {
    Judgement { events, outcome: Outcome::Done }
}

fn import(state: &State, corpus: &CorpusManifest) -> Vec<Event> {
    match state.corpora.contains_key(&corpus.digest) {
        true => vec![],
        false => vec![Event::CorpusImported { corpus: corpus.clone() }],
    }
}

fn submit(state: &State, request_id: &str, spec: &JobSpec, corpus: &CorpusManifest) -> Result<Judgement, Refusal> {
    if !(1..=200).contains(&request_id.chars().count()) {
        return Err(Refusal::NotARequestId(request_id.chars().take(200).collect()));
    }
    if let Some(&job) = state.requests.get(request_id) {
        let same = *state.jobs[&job].spec == *spec;
        let taken = || Refusal::RequestIdTaken { request_id: request_id.into(), job };
        let outcome = Outcome::Submitted { job, existed: true };
        return if same { Ok(Judgement { events: vec![], outcome }) } else { Err(taken()) };
    }
    if let Some(from) = spec.starts_from() {
        let known = state.jobs.get(&from).ok_or(Refusal::NoStart { from, problem: "does not exist" })?;
        let lost = matches!(known.phase, Phase::Failed { .. } | Phase::Cancelled { .. });
        let problem = if lost { Some("has failed or was cancelled") } else { None };
        let problem = problem.or((!known.spec.trains()).then_some("trains nothing"));
        if let Some(problem) = problem {
            return Err(Refusal::NoStart { from, problem });
        }
    }
    let job = JobId(state.jobs.last_key_value().map_or(0, |(last, _)| last.0) + 1);
    let mut events = import(state, corpus);
    events.push(Event::JobSubmitted {
        job,
        request_id: request_id.into(),
        spec: Box::new(spec.clone()),
        corpus: corpus.digest.clone(),
        corpus_name: corpus.name.clone(),
    });
    Ok(Judgement { events, outcome: Outcome::Submitted { job, existed: false } })
}

fn cancel(state: &State, job: JobId) -> Result<Judgement, Refusal> {
    let found = state.jobs.get(&job).ok_or(Refusal::UnknownJob(job))?;
    let events = if found.phase.name().is_final() { vec![] } else { vec![Event::JobCancelled { job }] };
    Ok(Judgement { events, outcome: Outcome::Job(job) })
}

fn resume(state: &State, job: JobId, pause_epoch: u32) -> Result<Judgement, Refusal> {
    let found = state.jobs.get(&job).ok_or(Refusal::UnknownJob(job))?;
    if found.phase.name().is_final() {
        return Err(Refusal::Ended(job));
    }
    let epochs = found.epochs();
    if pause_epoch >= epochs {
        return Err(Refusal::NoSuchPause { job, pause_epoch, epochs });
    }
    // Never back: where it is to go on to the end, or farther already, nothing changes.
    let farther = found.pause_epoch != 0 && (pause_epoch == 0 || pause_epoch > found.pause_epoch);
    let events = if farther { vec![Event::JobResumed { job, pause_epoch }] } else { vec![] };
    Ok(Judgement { events, outcome: Outcome::Job(job) })
}

fn pin(state: &State, job: JobId, pinned: bool) -> Result<Judgement, Refusal> {
    let found = state.jobs.get(&job).ok_or(Refusal::UnknownJob(job))?;
    let events = if found.pinned == pinned { vec![] } else { vec![Event::JobPinned { job, pinned }] };
    Ok(Judgement { events, outcome: Outcome::Job(job) })
}

fn register(state: &State, request: &Request) -> Result<Judgement, Refusal> {
    let Request::Register { name, version, device, threads, address } = request else {
        unreachable!("only a registration is judged here")
    };
    if name.trim().is_empty() || name.chars().count() > 100 || name.contains(char::is_control) {
        return Err(Refusal::NotAName(name.chars().take(100).collect()));
    }
    if version != VERSION {
        return Err(Refusal::OtherVersion { name: name.clone(), worker: version.clone() });
    }
    let before = state.workers.values().find(|w| w.name == *name).and_then(|w| w.lease);
    let mut events: Vec<Event> = before.into_iter().map(|held| lost(state, held, Loss::NameTaken)).collect();
    let worker = WorkerId(state.last_worker + 1);
    events.push(Event::WorkerRegistered {
        worker,
        name: name.clone(),
        device: device.clone(),
        threads: *threads,
        address: address.clone(),
    });
    Ok(Judgement { events, outcome: Outcome::Registered(worker) })
}

/// Where the worker holds a lease that it has not heard of, it is given that. Where it has, that is lost first: what is
/// ready is known only once that is so.
fn lease(
    core: &Core,
    now_ms: u64,
    worker: WorkerId,
    only_job: Option<JobId>,
    heard: LeaseId,
) -> Result<Judgement, Refusal> {
    let state = &core.state;
    let asks = state.workers.get(&worker).ok_or(Refusal::UnknownWorker(worker))?;
    match asks.lease {
        Some(held) if held > heard => {
            return Ok(Judgement { events: vec![], outcome: Outcome::Leased { lease: Some(held), reserved: None } });
        }
        Some(held) => {
            return Ok(Judgement { events: vec![lost(state, held, Loss::AskedForWork)], outcome: Outcome::AskAgain });
        }
        None => {}
    }
    let choose::Choice { grant, reserved } = choose::choose(core, now_ms, worker, only_job);
    let Some(((job, task), takers)) = grant else {
        return Ok(Judgement { events: vec![], outcome: Outcome::Leased { lease: None, reserved } });
    };
    // The asker is the first of the takers.
    let first = state.last_lease + 1;
    let granted = (first..).map(LeaseId).zip(takers);
    let events = granted.map(|(lease, worker)| Event::LeaseGranted { lease, worker, job, task }).collect();
    Ok(Judgement { events, outcome: Outcome::Leased { lease: Some(LeaseId(first)), reserved } })
}

/// Leases that ran out; and where none did, those to call back.
fn tick(core: &Core, now_ms: u64) -> Vec<Event> {
    let expired = core.pulse.expired(now_ms);
    if expired.is_empty() {
        return choose::recalls(core, now_ms);
    }
    expired.into_iter().map(|lease| lost(&core.state, lease, Loss::Expired)).collect()
}

fn lost(state: &State, lease: LeaseId, how: Loss) -> Event {
    Event::LeaseLost { lease, job: state.leases[&lease].job, how }
}

fn heartbeat(core: &Core, now_ms: u64, request: &Request) -> Result<Judgement, Refusal> {
    let &Request::Heartbeat { worker, lease, ref progress, seated, generation } = request else {
        unreachable!("only a heartbeat is judged here")
    };
    let state = &core.state;
    let from = state.workers.get(&worker).ok_or(Refusal::UnknownWorker(worker))?;
    if from.revoked == Some(lease) {
        return Ok(Judgement { events: vec![], outcome: Outcome::Beat { stop: true, lease, generation } });
    }
    let held = held(state, worker, lease)?;
    let job = &state.jobs[&held.job];
    let task = job.task(held.task);
    let mut events = Vec::new();
    if let TaskState::Leased(gang) = &task.state
        && matches!(task.kind, TaskKind::Train { .. })
        && seated
        && !gang.seats.contains(&lease)
    {
        events.push(Event::Seated { lease, job: held.job });
    }
    let news = progress.as_ref().filter(|p| job.progress.as_deref() != Some(p));
    let news = news.filter(|_| core.pulse.progress_is_due(lease, now_ms));
    events.extend(news.map(|progress| Event::ProgressMade { lease, job: held.job, progress: progress.clone() }));
    Ok(Judgement { events, outcome: Outcome::Beat { stop: false, lease, generation } })
}

/// The live lease, if it is this worker's.
pub(super) fn held(state: &State, worker: WorkerId, lease: LeaseId) -> Result<Lease, Refusal> {
    let live = state.leases.get(&lease).filter(|live| live.worker == worker);
    live.copied().ok_or(Refusal::StaleLease { lease, worker })
}
