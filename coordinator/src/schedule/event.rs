//! What happened: the events of the journal, of which the state is the fold, and what workers report.
//!
//! Everything here is written to disk as JSON. A field that is added later needs a serde default, a variant that is
//! dropped needs a reader: old journals are read for as long as their jobs are.

use std::collections::BTreeMap;

use insula_proto::{
    corpus::CorpusManifest,
    ids::{Digest, JobId, LeaseId, TaskIndex, WorkerId},
    job::JobSpec,
    tally::Tally,
};
use serde::{Deserialize, Serialize};

/// A fact, past tense. [`super::step`] takes it in; nothing can refuse it any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A corpus lies in the artifact store, every shard of it.
    CorpusImported {
        /// Which shard holds what.
        corpus: CorpusManifest,
    },
    /// A job was accepted.
    JobSubmitted {
        /// Its new id.
        job: JobId,
        /// What makes a second submit the same.
        request_id: String,
        /// What was asked for.
        spec: Box<JobSpec>,
        /// The corpus, as imported.
        corpus: Digest,
        /// The corpus's name in this job.
        corpus_name: String,
    },
    /// A person stopped a job.
    JobCancelled {
        /// The job.
        job: JobId,
    },
    /// A worker came, or came back.
    WorkerRegistered {
        /// Its new id.
        worker: WorkerId,
        /// Its name; whoever had it before is gone.
        name: String,
        /// `cpu`.
        device: String,
        /// Threads it computes with.
        threads: u32,
        /// Where the others of a gang reach it, `HOST:PORT`; empty: nowhere.
        #[serde(default)] // journals of 0.1.0 do not have it
        address: String,
    },
    /// A task was given to a worker: a ready one, or a training that others compute already.
    LeaseGranted {
        /// Greater than every lease before.
        lease: LeaseId,
        /// Who computes.
        worker: WorkerId,
        /// The job.
        job: JobId,
        /// Its task.
        task: TaskIndex,
    },
    /// A holder of a training's lease has everything in memory: from here on it is one of the gang.
    Seated {
        /// The lease.
        lease: LeaseId,
        /// Its job.
        job: JobId,
    },
    /// A worker is asked to give its lease back after the update in hand.
    LeaseRecalled {
        /// The lease.
        lease: LeaseId,
        /// Its job.
        job: JobId,
        /// The job whose task the worker is wanted for.
        wanted_by: JobId,
    },
    /// A person let a job go on beyond where it paused.
    JobResumed {
        /// The job.
        job: JobId,
        /// Where it pauses next; 0: nowhere.
        pause_epoch: u32,
    },
    /// A person said whether a job's artifacts are kept through every pruning.
    JobPinned {
        /// The job.
        job: JobId,
        /// Whether they are.
        pinned: bool,
    },
    /// A worker lost its lease.
    LeaseLost {
        /// The lease.
        lease: LeaseId,
        /// Its job.
        job: JobId,
        /// How.
        how: Loss,
    },
    /// A worker said something that must not be lost.
    Reported {
        /// Under which lease.
        lease: LeaseId,
        /// Its job.
        job: JobId,
        /// The base it computed with; `None` where the report does not depend on it.
        base: Option<Digest>,
        /// What it said.
        report: Box<Report>,
    },
    /// A worker is getting on; at most about one a second and lease.
    ProgressMade {
        /// Under which lease.
        lease: LeaseId,
        /// Its job.
        job: JobId,
        /// How far.
        progress: Progress,
    },
    /// A worker is to tokenise a key's prompts; whatever was cached under the key is of no use.
    TokensClaimed {
        /// Under which lease; the claim ends with it.
        lease: LeaseId,
        /// What the tokens depend on.
        key: Digest,
    },
    /// A key's tokens are in the artifact store.
    TokensCached {
        /// Under which lease.
        lease: LeaseId,
        /// What the tokens depend on.
        key: Digest,
        /// Where they are.
        artifact: Digest,
    },
}

impl Event {
    /// The one job it is about, if it is about one.
    pub fn job(&self) -> Option<JobId> {
        match self {
            Event::CorpusImported { .. }
            | Event::WorkerRegistered { .. }
            | Event::TokensClaimed { .. }
            | Event::TokensCached { .. } => None,
            Event::JobSubmitted { job, .. }
            | Event::JobCancelled { job }
            | Event::LeaseGranted { job, .. }
            | Event::Seated { job, .. }
            | Event::LeaseRecalled { job, .. }
            | Event::JobResumed { job, .. }
            | Event::JobPinned { job, .. }
            | Event::LeaseLost { job, .. }
            | Event::Reported { job, .. }
            | Event::ProgressMade { job, .. } => Some(*job),
        }
    }
}

/// How a lease was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// No heartbeat until its deadline.
    Expired,
    /// A worker registered under the same name.
    NameTaken,
    /// Its worker asked for other work.
    AskedForWork,
}

/// What a worker says about its task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// A checkpoint's manifest is in the store.
    Checkpoint(Checkpoint),
    /// An epoch ended with this adapter.
    EpochTrained {
        /// From 1.
        epoch: u32,
        /// PEFT's files.
        adapter: Vec<Artifact>,
    },
    /// The training ended.
    Trained(Trained),
    /// The evaluation ended.
    Evaluated(Evaluated),
    /// A shard's sentence embeddings are in the store.
    Embedded(Embedded),
    /// It could not be done.
    Failed {
        /// Whose fault.
        class: FailureClass,
        /// In a sentence.
        message: String,
    },
    /// Given back politely; costs no retry.
    Released {
        /// Why.
        reason: String,
    },
}

impl Report {
    /// The content's digest, by which a report that comes twice is known.
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("a report has only text keys"))
    }

    /// Whether the lease ends with it.
    pub fn closes(&self) -> bool {
        !matches!(self, Report::Checkpoint(_) | Report::EpochTrained { .. })
    }

    /// Everything in the artifact store that it counts on.
    pub fn artifacts(&self) -> Vec<&Digest> {
        match self {
            Report::Checkpoint(checkpoint) => checkpoint.artifacts().collect(),
            Report::EpochTrained { adapter, .. } => adapter.iter().map(|a| &a.digest).collect(),
            Report::Evaluated(evaluated) => vec![&evaluated.predictions.digest],
            Report::Embedded(embedded) => vec![&embedded.embeddings.digest],
            Report::Trained(_) | Report::Failed { .. } | Report::Released { .. } => vec![],
        }
    }
}

/// Whose fault a failure is; each class has its own budget of retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The worker went away.
    LostWorker,
    /// It did not fit.
    OutOfMemory,
    /// The data cannot be worked with; trying again cannot help.
    BadData,
    /// Ours.
    Bug,
    /// The device that computes refused: another may not.
    Device,
    /// A model asked elsewhere refuses, fails in spite of the job's own retries, or costs too much.
    Endpoint,
}

impl FailureClass {
    /// How often a task is tried again after a failure of this class.
    pub fn retries(self) -> u32 {
        match self {
            // In a row without a checkpoint or an epoch between: 20 kills within one checkpoint's time.
            FailureClass::LostWorker => 20,
            // The process that it happened to has ended; a second and a third device may be broken too.
            FailureClass::Device => 3,
            FailureClass::OutOfMemory | FailureClass::Bug => 1,
            FailureClass::BadData | FailureClass::Endpoint => 0,
        }
    }

    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureClass::LostWorker => "lost worker",
            FailureClass::OutOfMemory => "out of memory",
            FailureClass::BadData => "bad data",
            FailureClass::Bug => "bug",
            FailureClass::Endpoint => "endpoint",
            FailureClass::Device => "device",
        }
    }
}

/// A file in the artifact store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// What it is called where it is used.
    pub name: String,
    /// Its bytes.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}

/// A training's state after an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Finished updates.
    pub update: u32,
    /// Its manifest in the artifact store.
    pub manifest: Digest,
    /// The state that the manifest names.
    #[serde(default, skip_serializing_if = "Option::is_none")] // journals of 0.1.0 do not have it
    pub state: Option<Artifact>,
    /// What the updates since the checkpoint before were made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<LedgerSegment>,
}

impl Checkpoint {
    /// What of it lies in the artifact store.
    pub fn artifacts(&self) -> impl Iterator<Item = &Digest> {
        let state = self.state.iter().map(|state| &state.digest);
        std::iter::once(&self.manifest).chain(state).chain(self.ledger.iter().map(|segment| &segment.lines.digest))
    }
}

/// The ledger of some updates in a row, a line of JSON each; lines of other updates do not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerSegment {
    /// The first update, from 1.
    pub first: u32,
    /// The last one.
    pub last: u32,
    /// The lines.
    pub lines: Artifact,
}

/// What a training amounted to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// Optimizer steps.
    pub updates: u32,
    /// Examples computed, all epochs.
    pub samples: u64,
    /// Tokens of the separate prompts.
    pub tokens: u64,
    /// Tokens computed.
    pub tree_tokens: u64,
    /// Time computing.
    pub seconds: f64,
    /// Peak memory of the worker.
    pub peak_rss_bytes: u64,
    /// One per update, nat per supervised token; `None` where it was not finite.
    pub losses: Vec<Option<f32>>,
    /// Oldest utterances left out of prompts longer than the base's context.
    pub dropped_utterances: u64,
}

/// What an evaluation of one shard amounted to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// An unreadable answer is wrong.
    pub strict: Tally,
    /// An unreadable answer is repaired as the paper does.
    pub paper: Tally,
    /// Answers decided by less than 0.05 nat.
    pub close_margins: u64,
    /// Oldest utterances left out of prompts.
    pub dropped_utterances: u64,
    /// Tokens computed.
    pub tree_tokens: u64,
    /// Time computing.
    pub seconds: f64,
    /// Peak memory of the worker.
    pub peak_rss_bytes: u64,
    /// JSON lines.
    pub predictions: Artifact,
    /// Answers that are the label of the prompt's first demonstration; 0 where there are none.
    #[serde(default)] // journals of 0.1.0 do not have it
    pub copied: u64,
    /// What the answers took where the base is an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")] // journals of 0.1.0 do not have it
    pub external: Option<ExternalUsage>,
}

/// The sentence embeddings of one shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedded {
    /// The encoder's digest.
    pub encoder: Digest,
    /// Utterances embedded.
    pub rows: u64,
    /// Numbers in an embedding.
    pub width: u32,
    /// Their embeddings.
    pub embeddings: Artifact,
    /// Whether they were there already, made for another job.
    pub cached: bool,
    /// Time computing.
    pub seconds: f64,
}

/// What answers of a base behind an endpoint took; parts add.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ExternalUsage {
    /// Tokens of the prompts sent.
    pub input_tokens: u64,
    /// Tokens of the answers to them.
    pub output_tokens: u64,
    /// What both cost.
    pub usd: f64,
    /// Answers that were kept from before, or of a prompt asked already.
    pub cached: u64,
}

impl ExternalUsage {
    /// The sum of some parts; `None` where there are none.
    pub fn sum(parts: impl Iterator<Item = ExternalUsage>) -> Option<ExternalUsage> {
        parts.reduce(|a, b| ExternalUsage {
            input_tokens: a.input_tokens.saturating_add(b.input_tokens),
            output_tokens: a.output_tokens.saturating_add(b.output_tokens),
            usd: a.usd + b.usd,
            cached: a.cached.saturating_add(b.cached),
        })
    }
}

/// How far a task is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Finished updates.
    pub update: u32,
    /// Updates of the whole training.
    pub updates: u32,
    /// From 1.
    pub epoch: u32,
    /// Mean over the last update's supervised tokens, nat; `None` where it was not finite.
    pub loss: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Speed.
    pub samples_per_s: f64,
    /// Samples finished in this task.
    pub done: u64,
    /// Samples of this task.
    pub total: u64,
    /// The task's description.
    pub what: String,
}

/// What a person who watches a job is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "story", rename_all = "snake_case")]
pub enum Story {
    /// The job's state changed.
    State {
        /// Its new state.
        state: PhaseName,
    },
    /// Something worth reading.
    Note {
        /// In a sentence.
        text: String,
    },
    /// A task is getting on.
    Progress {
        /// How far.
        progress: Progress,
    },
    /// A task's state changed.
    Task {
        /// Its place.
        index: TaskIndex,
        /// What it does.
        what: String,
        /// `ready`, `leased`, `done`, ...
        state: String,
        /// Who holds it.
        worker: String,
    },
    /// An epoch was evaluated on dev.
    Epoch {
        /// From 1.
        epoch: u32,
        /// Fraction.
        weighted_f1: f64,
        /// Best so far.
        best: bool,
    },
}

/// A job's state without what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseName {
    /// Nothing of it was handed out yet.
    Queued,
    /// Handed out.
    Running,
    /// All tasks are done.
    Succeeded,
    /// A task's retries are used up.
    Failed,
    /// A person stopped it.
    Cancelled,
}

impl PhaseName {
    /// Whether the job has ended.
    pub fn is_final(self) -> bool {
        matches!(self, PhaseName::Succeeded | PhaseName::Failed | PhaseName::Cancelled)
    }
}

/// The epochs' adapters, by epoch.
pub type Adapters = BTreeMap<u32, Vec<Artifact>>;
