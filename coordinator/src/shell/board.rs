//! What was last committed, for readers: a poll costs a lock and a pointer, and never waits for the disk.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use insula_proto::{
    corpus::CorpusManifest,
    ids::{Digest, JobId, WorkerId},
};

use crate::schedule::{Core, Job, State, gang::Lease, state::Worker};

/// Jobs, corpora and workers as the journal has them on disk.
#[derive(Debug, Default)]
pub struct Board(RwLock<Posted>);

/// What is on the board.
#[derive(Debug, Default)]
pub struct Posted {
    /// All jobs.
    pub jobs: BTreeMap<JobId, Arc<Job>>,
    /// Which job a request id was given.
    pub requests: BTreeMap<Arc<str>, JobId>,
    /// Imported corpora.
    pub corpora: BTreeMap<Digest, Arc<CorpusManifest>>,
    /// Registered workers.
    pub workers: Vec<PostedWorker>,
}

/// A worker as readers see it.
#[derive(Debug, Clone)]
pub struct PostedWorker {
    /// Its id.
    pub id: WorkerId,
    /// What it said of itself.
    pub worker: Worker,
    /// What it computes.
    pub lease: Option<Lease>,
    /// When it was last heard, Unix time.
    pub heard_ms: Option<u64>,
}

impl Board {
    /// The board of a state that was just folded.
    pub fn of(core: &Core) -> Self {
        let state = &core.state;
        let posted = Posted {
            jobs: state.jobs.clone(),
            requests: state.requests.clone(),
            corpora: state.corpora.clone(),
            workers: workers_of(core),
        };
        Self(RwLock::new(posted))
    }

    /// Looks at the board; hold it briefly.
    pub fn read(&self) -> RwLockReadGuard<'_, Posted> {
        // A reader that panicked has changed nothing, so what it leaves is sound.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job, if there is one.
    pub fn job(&self, job: JobId) -> Option<Arc<Job>> {
        self.read().jobs.get(&job).cloned()
    }

    /// Posts what a commit changed.
    pub(super) fn post(&self, core: &Core, changed: impl Iterator<Item = JobId>) {
        let mut posted = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let State { jobs, corpora, .. } = &core.state;
        for job in changed {
            posted.requests.insert(jobs[&job].request_id.clone(), job);
            posted.jobs.insert(job, jobs[&job].clone());
        }
        if posted.corpora.len() != corpora.len() {
            posted.corpora = corpora.clone();
        }
        posted.workers = workers_of(core);
    }
}

fn workers_of(core: &Core) -> Vec<PostedWorker> {
    let posted = |(&id, worker): (&WorkerId, &Worker)| PostedWorker {
        id,
        worker: worker.clone(),
        lease: worker.lease.and_then(|lease| core.state.leases.get(&lease).copied()),
        heard_ms: core.pulse.heard_ms(id),
    };
    core.state.workers.iter().map(posted).collect()
}
