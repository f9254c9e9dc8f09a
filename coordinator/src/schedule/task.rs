//! What a job takes, one thing a worker computes at a time: what, and where it stands.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use insula_proto::{
    corpus::{CorpusManifest, Split},
    ids::{Digest, LeaseId, WorkerId},
    job::{Arm, JobSpec},
};

use super::{
    event::{Embedded, Evaluated, FailureClass, Trained},
    gang::Gang,
};

/// One thing a worker computes in one go.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// What.
    pub kind: TaskKind,
    /// Where it stands.
    pub state: TaskState,
    /// Leases granted for it.
    pub attempts: u32,
    /// Changes of its gang's seats.
    pub generation: u32,
    /// Failures by class; the lost workers are those in a row without progress.
    pub failures: BTreeMap<FailureClass, u32>,
    /// What the latest holders reported, so that a report that comes twice counts once.
    pub accepted: Accepted,
    /// Workers that failed before they had a seat, while others computed: they are not asked again as long as these do.
    pub unfit: BTreeSet<WorkerId>,
}

/// The reports of the latest holders that were taken in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted(Vec<(LeaseId, [u8; 32])>);

impl Accepted {
    /// `closes`: it is the last one under its lease.
    pub(super) fn insert(&mut self, lease: LeaseId, report: &Digest, closes: bool) {
        self.0.push((lease, report.bytes()));
        if closes {
            self.0.shrink_to_fit();
        }
    }

    /// Whether a report of these words was taken in under the lease.
    pub fn has(&self, lease: LeaseId, report: &Digest) -> bool {
        self.0.contains(&(lease, report.bytes()))
    }
}

/// What a task computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// Sentence embeddings of a shard's utterances, for demonstrations.
    Embed {
        /// Of which split.
        split: Split,
        /// The shard's place.
        shard: usize,
    },
    /// The bare base on a shard of test.
    ZeroShot {
        /// The shard's place.
        shard: usize,
    },
    /// The bare base with demonstrations on a shard of test.
    FewShot {
        /// The shard's place.
        shard: usize,
    },
    /// A stage of the training.
    Train {
        /// From 0.
        stage: usize,
    },
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
    /// The same, with demonstrations whose labels are drawn at random.
    Shuffled {
        /// The shard's place.
        shard: usize,
    },
}

impl TaskKind {
    /// The arm whose row it is a part of.
    pub fn arm(self) -> Option<Arm> {
        match self {
            TaskKind::ZeroShot { .. } => Some(Arm::ZeroShot),
            TaskKind::FewShot { .. } => Some(Arm::FewShot),
            TaskKind::Trained { .. } => Some(Arm::Trained),
            TaskKind::Shuffled { .. } => Some(Arm::ShuffledDemonstrations),
            TaskKind::Embed { .. } | TaskKind::Train { .. } | TaskKind::Dev { .. } => None,
        }
    }
}

/// Where a task stands.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskState {
    /// Something it needs does not exist yet.
    Waiting,
    /// It can be handed out.
    Ready,
    /// A worker computes it, or a gang.
    Leased(Gang),
    /// Trained.
    Trained(Arc<Trained>),
    /// Evaluated.
    Evaluated(Arc<Evaluated>),
    /// Embedded.
    Embedded(Arc<Embedded>),
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
            TaskState::Trained(_) | TaskState::Evaluated(_) | TaskState::Embedded(_) => "done",
            TaskState::Failed => "failed",
        }
    }

    /// Whether there is a result.
    pub fn is_done(&self) -> bool {
        matches!(self, TaskState::Trained(_) | TaskState::Evaluated(_) | TaskState::Embedded(_))
    }
}

/// The tasks of a job, in the order they are handed out.
pub(super) fn tasks_of(spec: &JobSpec, corpus: &CorpusManifest) -> Vec<Task> {
    let shards = |split: Split| 0..corpus.splits.get(&split).map_or(0, |s| s.shards.len());
    let has = |arm: Arm| spec.evaluate.arms.contains(&arm);
    let mut kinds = Vec::new();
    if spec.retrieves() {
        for split in Split::ALL {
            kinds.extend(shards(split).map(|shard| TaskKind::Embed { split, shard }));
        }
    }
    if has(Arm::ZeroShot) {
        kinds.extend(shards(Split::Test).map(|shard| TaskKind::ZeroShot { shard }));
    }
    if has(Arm::FewShot) {
        kinds.extend(shards(Split::Test).map(|shard| TaskKind::FewShot { shard }));
    }
    if spec.trains() {
        let stages = spec.training_stages();
        kinds.extend((0..stages.len()).map(|stage| TaskKind::Train { stage }));
        let epochs = stages.last().expect("a training has at least one stage").train.epochs;
        for epoch in 1..=if spec.evaluates() { epochs } else { 0 } {
            kinds.extend(shards(Split::Dev).map(|shard| TaskKind::Dev { epoch, shard }));
        }
    }
    if has(Arm::Trained) {
        kinds.extend(shards(Split::Test).map(|shard| TaskKind::Trained { shard }));
    }
    if has(Arm::ShuffledDemonstrations) {
        kinds.extend(shards(Split::Test).map(|shard| TaskKind::Shuffled { shard }));
    }
    let task = |kind| Task {
        kind,
        state: TaskState::Waiting,
        attempts: 0,
        generation: 0,
        failures: BTreeMap::new(),
        accepted: Accepted::default(),
        unfit: BTreeSet::new(),
    };
    kinds.into_iter().map(task).collect()
}
