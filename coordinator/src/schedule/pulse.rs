//! When workers were last heard. Not journalled: a restart cannot know how long it was away, so it gives every live
//! lease its full time again.

use std::collections::BTreeMap;

use insula_proto::ids::{JobId, LeaseId, WorkerId};

use super::{
    event::Event,
    judge::{Outcome, Request},
    queue::TaskId,
    state::State,
    task::TaskState,
};

/// What a worker that waits for work may take on the way to its next question.
const ON_THE_WAY_MS: u64 = 2_000;

/// Progress of a lease is journalled at most this often: once a second, which is the heartbeat's beat, less its jitter.
const PROGRESS_MS: u64 = 900;

/// A worker that was heard within so long counts as one of the fleet: it asks for work about every ten seconds.
const HERE_MS: u64 = 15_000;

/// Deadlines and last words.
#[derive(Debug, Clone)]
pub struct Pulse {
    lease_ms: u64,
    deadlines: BTreeMap<LeaseId, u64>,
    heard: BTreeMap<WorkerId, u64>,
    progressed: BTreeMap<LeaseId, u64>,
    /// Who found no work: the only job it works for, and until when it counts as waiting for more.
    idle: BTreeMap<WorkerId, (Option<JobId>, u64)>,
    /// The training that workers are kept for, and since when.
    reserved: Option<(TaskId, u64)>,
}

impl Pulse {
    /// The pulse right after a restart: everyone was heard just now.
    pub fn restarted(state: &State, now_ms: u64, lease_ms: u64) -> Self {
        let deadlines = state.leases.keys().map(|&lease| (lease, now_ms + lease_ms)).collect();
        let heard = state.leases.values().map(|lease| (lease.worker, now_ms)).collect();
        Self { lease_ms, deadlines, heard, progressed: BTreeMap::new(), idle: BTreeMap::new(), reserved: None }
    }

    /// Live leases whose deadline has passed.
    pub fn expired(&self, now_ms: u64) -> Vec<LeaseId> {
        self.deadlines.iter().filter(|&(_, &deadline)| deadline <= now_ms).map(|(&lease, _)| lease).collect()
    }

    /// When a worker was last heard.
    pub fn heard_ms(&self, worker: WorkerId) -> Option<u64> {
        self.heard.get(&worker).copied()
    }

    /// Workers that wait for work and may compute for a job.
    pub fn idle(&self, now_ms: u64, job: JobId) -> impl Iterator<Item = WorkerId> {
        let waits = move |&(only, until): &(Option<JobId>, u64)| now_ms < until && only.is_none_or(|only| only == job);
        self.idle.iter().filter(move |(_, of)| waits(of)).map(|(&worker, _)| worker)
    }

    /// Whether a worker that holds nothing was heard lately, and may compute for a job.
    pub(super) fn is_here(&self, worker: WorkerId, now_ms: u64, job: JobId) -> bool {
        let heard = self.heard.get(&worker).is_some_and(|&heard| now_ms < heard + HERE_MS);
        let elsewhere = self.idle.get(&worker).and_then(|&(only, _)| only).is_some_and(|only| only != job);
        heard && !elsewhere
    }

    /// For how long workers have been kept for this training.
    pub(super) fn reserved_for(&self, task: TaskId, now_ms: u64) -> u64 {
        self.reserved.filter(|(kept_for, _)| *kept_for == task).map_or(0, |(_, since)| now_ms.saturating_sub(since))
    }

    /// Whether a lease's progress is due to be journalled.
    pub(super) fn progress_is_due(&self, lease: LeaseId, now_ms: u64) -> bool {
        self.progressed.get(&lease).is_none_or(|&last| now_ms >= last + PROGRESS_MS)
    }

    /// Takes in a request that was not refused, and what came of it.
    pub(super) fn felt(&mut self, state: &State, now_ms: u64, request: &Request, events: &[Event], outcome: &Outcome) {
        if let Some(worker) = request.worker() {
            self.heard.insert(worker, now_ms);
        }
        if let Request::Heartbeat { lease, .. } | Request::Report { lease, .. } = request {
            self.deadlines.insert(*lease, now_ms + self.lease_ms);
        }
        if let (Request::Lease { worker, only_job, waits_ms, .. }, Outcome::Leased { lease, reserved }) =
            (request, outcome)
        {
            // A worker for one job alone does not see what is kept for others, and for one that was given something nobody
            // looked so far. Were the wait counted anew then, a gang would starve behind whatever goes before it.
            let looked = lease.is_none() && only_job.is_none();
            let waits = |&(task, _): &(TaskId, u64)| match reserved {
                Some(reserved) => task == *reserved,
                None => !looked && is_ready(state, task),
            };
            self.reserved = self.reserved.filter(waits).or(reserved.map(|task| (task, now_ms)));
            if lease.is_none() {
                self.idle.insert(*worker, (*only_job, now_ms + waits_ms + ON_THE_WAY_MS));
            }
        }
        for event in events {
            match event {
                Event::LeaseGranted { lease, worker, .. } => {
                    self.deadlines.insert(*lease, now_ms + self.lease_ms);
                    self.idle.remove(worker);
                }
                Event::WorkerRegistered { worker, .. } => drop(self.heard.insert(*worker, now_ms)),
                Event::ProgressMade { lease, .. } => drop(self.progressed.insert(*lease, now_ms)),
                _ => {}
            }
        }
        self.deadlines.retain(|lease, _| state.leases.contains_key(lease));
        self.progressed.retain(|lease, _| state.leases.contains_key(lease));
        self.heard.retain(|worker, _| state.workers.contains_key(worker));
        self.idle.retain(|worker, _| state.workers.contains_key(worker));
    }
}

fn is_ready(state: &State, (job, index): TaskId) -> bool {
    state.jobs.get(&job).is_some_and(|job| job.task(index).state == TaskState::Ready)
}
