//! What can be asked of the schedule.

use insula_proto::{
    corpus::CorpusManifest,
    ids::{Digest, JobId, LeaseId, WorkerId},
    job::JobSpec,
};

use super::super::event::{Progress, Report};

/// What someone asks of the coordinator.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// A corpus was sharded into the artifact store.
    Import {
        /// Which shard holds what.
        corpus: CorpusManifest,
    },
    /// Do this job.
    Submit {
        /// What makes a second submit the same.
        request_id: String,
        /// What is asked for.
        spec: Box<JobSpec>,
        /// Its corpus, imported or about to be.
        corpus: CorpusManifest,
    },
    /// Stop this job.
    Cancel {
        /// The job.
        job: JobId,
    },
    /// Let this job go on beyond where it pauses.
    Resume {
        /// The job.
        job: JobId,
        /// Where it pauses next; 0: nowhere.
        pause_epoch: u32,
    },
    /// Keep this job's artifacts, or no longer.
    Pin {
        /// The job.
        job: JobId,
        /// Whether to keep them.
        pinned: bool,
    },
    /// Here is a worker.
    Register {
        /// Its name.
        name: String,
        /// Of insula.
        version: String,
        /// `cpu`.
        device: String,
        /// Threads it computes with.
        threads: u32,
        /// Where the others of a gang reach it; empty: nowhere.
        address: String,
    },
    /// Give me work.
    Lease {
        /// Who asks.
        worker: WorkerId,
        /// Of this job alone; `None`: of any.
        only_job: Option<JobId>,
        /// The greatest lease it was ever given, 0 before the first: one beyond it did not reach it.
        heard: LeaseId,
        /// It waits for so long, should there be nothing.
        waits_ms: u64,
    },
    /// I am still at it.
    Heartbeat {
        /// Who says so.
        worker: WorkerId,
        /// At what.
        lease: LeaseId,
        /// How far.
        progress: Option<Progress>,
        /// Of a training: everything is in memory.
        seated: bool,
        /// The gang's generation that it knows; 0: none.
        generation: u32,
    },
    /// This must not be lost.
    Report {
        /// Who says so.
        worker: WorkerId,
        /// Under which lease.
        lease: LeaseId,
        /// The base it computed with.
        base: Option<Digest>,
        /// What it says.
        report: Box<Report>,
    },
    /// May I tokenise this, or is it done?
    ClaimTokens {
        /// Who asks.
        worker: WorkerId,
        /// Under which lease.
        lease: LeaseId,
        /// What the tokens depend on.
        key: Digest,
        /// What the asker was sent to before and could not use.
        spoilt: Option<Digest>,
    },
    /// I have tokenised what I claimed.
    FulfilTokens {
        /// Who says so.
        worker: WorkerId,
        /// Under which lease.
        lease: LeaseId,
        /// What the tokens depend on.
        key: Digest,
        /// Where they are.
        artifact: Digest,
    },
    /// Why does this job stand where it stands?
    Explain {
        /// The job.
        job: JobId,
    },
    /// What is not to be deleted?
    Kept,
    /// Time has passed.
    Tick,
}

impl Request {
    /// The registered worker that asks.
    pub(in super::super) fn worker(&self) -> Option<WorkerId> {
        match self {
            Request::Lease { worker, .. }
            | Request::Heartbeat { worker, .. }
            | Request::Report { worker, .. }
            | Request::ClaimTokens { worker, .. }
            | Request::FulfilTokens { worker, .. } => Some(*worker),
            _ => None,
        }
    }
}
