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
    job::{Arm, JobSpec, Stage},
};

use super::{
    event::{Adapters, Artifact, Checkpoint, Embedded, Evaluated, LedgerSegment, PhaseName, Progress, Trained},
    gang::{Lease, Seating},
    queue::Queue,
    task::{Task, TaskKind, TaskState},
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
    pub requests: BTreeMap<Arc<str>, JobId>,
    /// The latest registration of every name.
    pub workers: BTreeMap<WorkerId, Worker>,
    /// Live leases.
    pub leases: BTreeMap<LeaseId, Lease>,
    /// What can be handed out.
    pub ready: Queue,
    /// Trainings that have holders: more workers may join these.
    pub training: BTreeSet<(JobId, TaskIndex)>,
    /// Jobs that wait for another's end, by that other: so that an end costs what waits for it, not all jobs.
    pub awaited: BTreeMap<JobId, BTreeSet<JobId>>,
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
    /// Where the others of a gang reach it; empty: nowhere.
    pub address: String,
    /// The lease it holds.
    pub lease: Option<LeaseId>,
    /// The lease it was granted last, for reports that come twice.
    pub last: Option<(LeaseId, JobId, TaskIndex)>,
    /// The last lease taken from it because its job ended: its holder is told to leave off.
    pub revoked: Option<LeaseId>,
}

/// A submitted job.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// What makes a second submit the same.
    pub request_id: Arc<str>,
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
    /// What each stage of the training has brought so far; the last one's is what is evaluated.
    pub stages: Vec<Training>,
    /// The adapter of the job it starts from, once that has succeeded; empty: none.
    pub start: Vec<Artifact>,
    /// The latest progress of any of its tasks.
    pub progress: Option<Box<Progress>>,
    /// The epoch after which its last stage pauses; 0: none.
    pub pause_epoch: u32,
    /// Whether its artifacts are kept through every pruning.
    pub pinned: bool,
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

/// What a training has brought so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Training {
    /// Newest first, at most two: the older is there for when the newer is damaged.
    pub checkpoints: Vec<Checkpoint>,
    /// Adapters by epoch.
    pub epochs: Adapters,
    /// What the updates up to the newest checkpoint were made of, in order.
    pub ledger: Vec<LedgerSegment>,
    /// Weighted F1 on dev by epoch, once all of the epoch's shards are evaluated.
    pub dev: BTreeMap<u32, f64>,
    /// The epoch chosen on dev.
    pub best: Option<u32>,
}

impl State {
    /// The gang of a training, for the holder of this lease: `None` until it is seated and enough others are.
    pub fn seating(&self, lease: LeaseId) -> Option<Seating> {
        let Lease { job: id, task: index, .. } = *self.leases.get(&lease)?;
        let job = &self.jobs[&id];
        let task = job.task(index);
        let TaskState::Leased(gang) = &task.state else { return None };
        let rank = gang.seats.iter().position(|seat| *seat == lease)?;
        if gang.seats.len() < job.min_workers(task.kind) {
            return None;
        }
        let seat = |lease: &LeaseId| {
            let worker = &self.workers[&self.leases[lease].worker];
            (*lease, worker.name.clone(), worker.address.clone())
        };
        let seats = gang.seats.iter().map(seat).collect();
        Some(Seating { job: id, task: index, generation: task.generation, rank, seats })
    }
}

impl Job {
    /// The stages of its training.
    pub fn stage_specs(&self) -> Vec<Stage> {
        self.spec.training_stages()
    }

    /// What the last stage has brought so far: the one that is evaluated.
    pub fn training(&self) -> &Training {
        self.stages.last().expect("a training has at least one stage")
    }

    /// Epochs of the last stage.
    pub fn epochs(&self) -> u32 {
        self.stage_specs().last().expect("a training has at least one stage").train.epochs
    }

    /// The split and the place of the shard a task is about; `None` for training.
    pub fn shard_of(&self, kind: TaskKind) -> Option<(Split, usize)> {
        match kind {
            TaskKind::Train { .. } => None,
            TaskKind::Embed { split, shard } => Some((split, shard)),
            TaskKind::Dev { shard, .. } => Some((Split::Dev, shard)),
            TaskKind::ZeroShot { shard }
            | TaskKind::FewShot { shard }
            | TaskKind::Trained { shard }
            | TaskKind::Shuffled { shard } => Some((Split::Test, shard)),
        }
    }

    /// What a task does, for people.
    pub fn what(&self, index: TaskIndex) -> String {
        let kind = self.task(index).kind;
        let shard = self.shard_of(kind).map_or_else(String::new, |(split, shard)| {
            match self.corpus.splits.get(&split).map_or(0, |s| s.shards.len()) {
                0 | 1 => split.to_string(),
                shards => format!("{split} {}/{shards}", shard + 1),
            }
        });
        match kind {
            TaskKind::Embed { .. } => format!("embed {shard}"),
            TaskKind::Train { stage } => match self.stages.len() {
                1 => "train".into(),
                _ => format!("train {}", self.stage_specs()[stage].name()),
            },
            TaskKind::Dev { epoch, .. } => format!("evaluate epoch {epoch} {shard}"),
            TaskKind::ZeroShot { .. }
            | TaskKind::FewShot { .. }
            | TaskKind::Trained { .. }
            | TaskKind::Shuffled { .. } => {
                format!("evaluate {} {shard}", kind.arm().map_or("", Arm::as_str))
            }
        }
    }

    /// A task of this job.
    pub fn task(&self, index: TaskIndex) -> &Task {
        &self.tasks[index.0 as usize]
    }

    /// Whether a task may be handed out: what it needs exists, and it does not pause.
    pub fn can_start(&self, kind: TaskKind) -> bool {
        self.has_inputs(kind) && !(self.pauses() && self.is_last_stage(kind))
    }

    fn is_last_stage(&self, kind: TaskKind) -> bool {
        kind == TaskKind::Train { stage: self.stages.len() - 1 }
    }

    /// Whether the last stage has come to where it is to pause.
    pub fn pauses(&self) -> bool {
        (1..self.epochs()).contains(&self.pause_epoch) && self.training().epochs.contains_key(&self.pause_epoch)
    }

    /// The epoch after which a stage pauses; 0: none.
    pub fn pause_of(&self, stage: usize) -> u32 {
        if self.is_last_stage(TaskKind::Train { stage }) && self.pause_epoch < self.epochs() {
            self.pause_epoch
        } else {
            0
        }
    }

    /// The least workers that a task is handed to.
    pub fn min_workers(&self, kind: TaskKind) -> usize {
        if matches!(kind, TaskKind::Train { .. }) { self.spec.schedule.min_workers as usize } else { 1 }
    }

    /// Whether what a task needs exists.
    pub fn has_inputs(&self, kind: TaskKind) -> bool {
        match kind {
            TaskKind::Embed { .. } | TaskKind::ZeroShot { .. } => true,
            TaskKind::FewShot { .. } => {
                self.embeddings(Split::Train).is_some() && self.embeddings(Split::Test).is_some()
            }
            TaskKind::Train { stage: 0 } => {
                (self.spec.starts_from().is_none() || !self.start.is_empty()) && self.embeddings(Split::Train).is_some()
            }
            TaskKind::Train { stage } => self.stage_adapter(stage - 1).is_some(),
            TaskKind::Dev { .. } | TaskKind::Trained { .. } | TaskKind::Shuffled { .. } => {
                let (split, _) = self.shard_of(kind).expect("an evaluation is of a shard");
                self.adapter_of(kind).is_some() && self.embeddings(split).is_some()
            }
        }
    }

    /// The adapter a task is to load or to start from; `None`: the bare base, a fresh adapter, or not there yet.
    pub fn adapter_of(&self, kind: TaskKind) -> Option<&Vec<Artifact>> {
        match kind {
            TaskKind::Embed { .. } | TaskKind::ZeroShot { .. } | TaskKind::FewShot { .. } => None,
            TaskKind::Train { stage: 0 } => Some(&self.start).filter(|files| !files.is_empty()),
            TaskKind::Train { stage } => self.stage_adapter(stage - 1),
            TaskKind::Dev { epoch, .. } => self.training().epochs.get(&epoch),
            TaskKind::Trained { .. } | TaskKind::Shuffled { .. } => self.training().epochs.get(&self.training().best?),
        }
    }

    /// What a stage that is not evaluated leaves to the next: its last epoch's adapter, once the stage has ended.
    fn stage_adapter(&self, stage: usize) -> Option<&Vec<Artifact>> {
        let ended = |task: &&Task| task.kind == TaskKind::Train { stage } && task.state.is_done();
        self.tasks.iter().find(ended)?;
        self.stages[stage].epochs.last_key_value().map(|(_, adapter)| adapter)
    }

    /// The embeddings of a split's shards, in order; empty where nothing is retrieved, `None` where some are missing.
    pub fn embeddings(&self, split: Split) -> Option<Vec<&Embedded>> {
        let of_split =
            self.tasks.iter().filter(|task| matches!(task.kind, TaskKind::Embed { split: s, .. } if s == split));
        of_split
            .map(|task| match &task.state {
                TaskState::Embedded(embedded) => Some(&**embedded),
                _ => None,
            })
            .collect()
    }

    /// The sentence encoder's digest, fixed by the first shard it embedded.
    pub fn encoder(&self) -> Option<&Digest> {
        self.tasks.iter().find_map(|task| match &task.state {
            TaskState::Embedded(embedded) => Some(&embedded.encoder),
            _ => None,
        })
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

    /// What each stage of the training amounted to, in order, as far as they ended.
    pub fn trained(&self) -> Vec<&Trained> {
        self.tasks
            .iter()
            .filter_map(|task| match &task.state {
                TaskState::Trained(trained) => Some(&**trained),
                _ => None,
            })
            .collect()
    }
}
