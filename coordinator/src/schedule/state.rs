//! What is so: jobs with their tasks, workers, live leases. The state is the fold of the journal and nothing else.
//!
//! ```text
//! job    Queued --first lease--> Running --all tasks done--> Succeeded
//!          |                        |-----retries used up---> Failed
//!          '------------------------'-----cancelled---------> Cancelled
//!
//! task   Waiting --inputs exist--> Ready --granted--> Leased --result--> Done
//!                                    ^------lost-------'  '--no retry left--> Failed
//! ```
//! An ended job has no ready and no leased task: what was unfinished waits forever.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use insula_proto::{
    corpus::{CorpusManifest, Split},
    ids::{Digest, JobId, LeaseId, TaskIndex, WorkerId},
    job::{Arm, JobSpec},
};

use super::{
    event::{Adapters, Artifact, Checkpoint, Evaluated, FailureClass, PhaseName, Progress, Trained},
    tokens::Tokens,
};

/// Everything the coordinator knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// Imported corpora.
    pub corpora: BTreeMap<Digest, Arc<CorpusManifest>>,
    /// All jobs. Shared, so that readers hold a job while it moves on; changed by copy.
    pub jobs: BTreeMap<JobId, Arc<Job>>,
    /// Which job a request id was given.
    pub requests: BTreeMap<String, JobId>,
    /// The latest registration of every name.
    pub workers: BTreeMap<WorkerId, Worker>,
    /// Live leases.
    pub leases: BTreeMap<LeaseId, Lease>,
    /// What can be handed out, oldest job first.
    pub ready: BTreeSet<(JobId, TaskIndex)>,
    /// What is tokenised, and who is at what.
    pub tokens: Tokens,
    /// The greatest worker id given, 0 before the first.
    pub last_worker: u64,
    /// The greatest lease id given, 0 before the first.
    pub last_lease: u64,
}

/// A registered worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Unique among the registered.
    pub name: String,
    /// `cpu`.
    pub device: String,
    /// Threads it computes with.
    pub threads: u32,
    /// The lease it holds.
    pub lease: Option<LeaseId>,
    /// The lease it was granted last, for reports that come twice.
    pub last: Option<(LeaseId, JobId, TaskIndex)>,
    /// The last lease taken from it because its job ended: its holder is told to leave off.
    pub revoked: Option<LeaseId>,
}

/// The right of a worker to compute a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Who holds it.
    pub worker: WorkerId,
    /// The job.
    pub job: JobId,
    /// Its task.
    pub task: TaskIndex,
}

/// A submitted job.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// What makes a second submit the same.
    pub request_id: String,
    /// What was asked for.
    pub spec: Arc<JobSpec>,
    /// The corpus, under this job's name for it.
    pub corpus: Arc<CorpusManifest>,
    /// When it was accepted, Unix time.
    pub submitted_ms: u64,
    /// Where it stands.
    pub phase: Phase,
    /// Grows with every event about the job; two equal revisions are the same job.
    pub revision: u64,
    /// What it takes, in the order it is handed out.
    pub tasks: Vec<Task>,
    /// The base's digest, fixed by the first report.
    pub base: Option<Digest>,
    /// What the training has brought so far.
    pub training: Training,
    /// The latest progress of any of its tasks.
    pub progress: Option<Progress>,
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Nothing of it was handed out yet.
    Queued,
    /// Handed out.
    Running,
    /// All tasks are done.
    Succeeded {
        /// Unix time.
        at_ms: u64,
    },
    /// A task's retries are used up.
    Failed {
        /// Unix time.
        at_ms: u64,
        /// Why, in a sentence.
        message: String,
    },
    /// A person stopped it.
    Cancelled {
        /// Unix time.
        at_ms: u64,
    },
}

impl Phase {
    /// Which one it is.
    pub fn name(&self) -> PhaseName {
        match self {
            Phase::Queued => PhaseName::Queued,
            Phase::Running => PhaseName::Running,
            Phase::Succeeded { .. } => PhaseName::Succeeded,
            Phase::Failed { .. } => PhaseName::Failed,
            Phase::Cancelled { .. } => PhaseName::Cancelled,
        }
    }

    /// When the job ended.
    pub fn finished_ms(&self) -> Option<u64> {
        match self {
            Phase::Queued | Phase::Running => None,
            Phase::Succeeded { at_ms } | Phase::Failed { at_ms, .. } | Phase::Cancelled { at_ms } => Some(*at_ms),
        }
    }
}

/// One thing a worker computes in one go.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// What.
    pub kind: TaskKind,
    /// Where it stands.
    pub state: TaskState,
    /// Leases granted for it.
    pub attempts: u32,
    /// Failures by class; the lost workers are those in a row without progress.
    pub failures: BTreeMap<FailureClass, u32>,
    /// What the holder of the latest lease reported, so that a report that comes twice counts once.
    pub accepted: Accepted,
}

/// The reports of one lease that were taken in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The latest lease of the task.
    pub lease: Option<LeaseId>,
    /// Digests of what its holder reported.
    pub reports: BTreeSet<Digest>,
}

/// What a task computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// The bare base on a shard of test.
    ZeroShot {
        /// The shard's place.
        shard: usize,
    },
    /// The adapter.
    Train,
    /// An epoch's adapter on a shard of dev.
    Dev {
        /// From 1.
        epoch: u32,
        /// The shard's place.
        shard: usize,
    },
    /// The best epoch's adapter on a shard of test.
    Trained {
        /// The shard's place.
        shard: usize,
    },
}

/// Where a task stands.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskState {
    /// Something it needs does not exist yet.
    Waiting,
    /// It can be handed out.
    Ready,
    /// A worker computes it.
    Leased(LeaseId),
    /// Trained.
    Trained(Arc<Trained>),
    /// Evaluated.
    Evaluated(Arc<Evaluated>),
    /// Its retries are used up.
    Failed,
}

impl TaskState {
    /// The word people read.
    pub fn as_str(&self) -> &'static str {
        match self {
            TaskState::Waiting => "waiting",
            TaskState::Ready => "ready",
            TaskState::Leased(_) => "leased",
            TaskState::Trained(_) | TaskState::Evaluated(_) => "done",
            TaskState::Failed => "failed",
        }
    }

    /// Whether there is a result.
    pub fn is_done(&self) -> bool {
        matches!(self, TaskState::Trained(_) | TaskState::Evaluated(_))
    }
}

/// What a training has brought so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Training {
    /// Newest first, at most two: the older is there for when the newer is damaged.
    pub checkpoints: Vec<Checkpoint>,
    /// Adapters by epoch.
    pub epochs: Adapters,
    /// Weighted F1 on dev by epoch, once all of the epoch's shards are evaluated.
    pub dev: BTreeMap<u32, f64>,
    /// The epoch chosen on dev.
    pub best: Option<u32>,
}

impl Job {
    /// The split and the place of the shard a task evaluates; `None` for training.
    pub fn shard_of(&self, kind: TaskKind) -> Option<(Split, usize)> {
        match kind {
            TaskKind::Train => None,
            TaskKind::Dev { shard, .. } => Some((Split::Dev, shard)),
            TaskKind::ZeroShot { shard } | TaskKind::Trained { shard } => Some((Split::Test, shard)),
        }
    }

    /// What a task does, for people.
    pub fn what(&self, index: TaskIndex) -> String {
        let of = |split: Split, shard: usize| match self.corpus.splits.get(&split).map_or(0, |s| s.shards.len()) {
            0 | 1 => split.to_string(),
            shards => format!("{split} {}/{shards}", shard + 1),
        };
        match self.task(index).kind {
            TaskKind::Train => "train".into(),
            TaskKind::ZeroShot { shard } => format!("evaluate zero-shot {}", of(Split::Test, shard)),
            TaskKind::Dev { epoch, shard } => format!("evaluate epoch {epoch} {}", of(Split::Dev, shard)),
            TaskKind::Trained { shard } => format!("evaluate trained {}", of(Split::Test, shard)),
        }
    }

    /// A task of this job.
    pub fn task(&self, index: TaskIndex) -> &Task {
        &self.tasks[index.0 as usize]
    }

    /// The adapter a task is to load; `None`: the bare base.
    pub fn adapter_of(&self, kind: TaskKind) -> Option<&Vec<Artifact>> {
        let epoch = match kind {
            TaskKind::ZeroShot { .. } | TaskKind::Train => return None,
            TaskKind::Dev { epoch, .. } => epoch,
            TaskKind::Trained { .. } => self.training.best?,
        };
        self.training.epochs.get(&epoch)
    }

    /// Whether it asks for an arm.
    pub fn has_arm(&self, arm: Arm) -> bool {
        self.spec.evaluate.arms.contains(&arm)
    }

    /// The results of the tasks that `pick` picks, in order.
    pub fn evaluated(&self, pick: impl Fn(TaskKind) -> bool) -> Vec<&Evaluated> {
        self.tasks
            .iter()
            .filter(|task| pick(task.kind))
            .filter_map(|task| match &task.state {
                TaskState::Evaluated(evaluated) => Some(&**evaluated),
                _ => None,
            })
            .collect()
    }

    /// What the training amounted to, once it ended.
    pub fn trained(&self) -> Option<&Trained> {
        self.tasks.iter().find_map(|task| match &task.state {
            TaskState::Trained(trained) => Some(&**trained),
            _ => None,
        })
    }
}

/// The tasks of a job, in the order they are handed out.
pub(super) fn tasks_of(spec: &JobSpec, corpus: &CorpusManifest) -> Vec<Task> {
    let shards = |split: Split| 0..corpus.splits.get(&split).map_or(0, |s| s.shards.len());
    let has = |arm: Arm| spec.evaluate.arms.contains(&arm);
    let mut kinds = Vec::new();
    if has(Arm::ZeroShot) {
        kinds.extend(shards(Split::Test).map(|shard| TaskKind::ZeroShot { shard }));
    }
    if has(Arm::Trained) {
        kinds.push(TaskKind::Train);
        for epoch in 1..=spec.train.epochs {
            kinds.extend(shards(Split::Dev).map(|shard| TaskKind::Dev { epoch, shard }));
        }
        kinds.extend(shards(Split::Test).map(|shard| TaskKind::Trained { shard }));
    }
    let task = |kind| Task {
        kind,
        state: TaskState::Waiting,
        attempts: 0,
        failures: BTreeMap::new(),
        accepted: Accepted::default(),
    };
    kinds.into_iter().map(task).collect()
}
