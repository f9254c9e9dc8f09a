//! When workers were last heard. Not journalled: a restart cannot know how long it was away, so it gives every live
//! lease its full time again.

use std::collections::BTreeMap;

use insula_proto::ids::{LeaseId, WorkerId};

use super::{event::Event, judge::Request, state::State};

/// Progress of a lease is journalled at most this often: once a second, which is the heartbeat's beat, less its jitter.
const PROGRESS_MS: u64 = 900;

/// Deadlines and last words.
#[derive(Debug, Clone)]
pub struct Pulse {
    lease_ms: u64,
    deadlines: BTreeMap<LeaseId, u64>,
    heard: BTreeMap<WorkerId, u64>,
    progressed: BTreeMap<LeaseId, u64>,
}

impl Pulse {
    /// The pulse right after a restart: everyone was heard just now.
    pub fn restarted(state: &State, now_ms: u64, lease_ms: u64) -> Self {
        let deadlines = state.leases.keys().map(|&lease| (lease, now_ms + lease_ms)).collect();
        let heard = state.leases.values().map(|lease| (lease.worker, now_ms)).collect();
        Self { lease_ms, deadlines, heard, progressed: BTreeMap::new() }
    }

    /// Live leases whose deadline has passed.
    pub fn expired(&self, now_ms: u64) -> Vec<LeaseId> {
        self.deadlines.iter().filter(|&(_, &deadline)| deadline <= now_ms).map(|(&lease, _)| lease).collect()
    }

    /// When a worker was last heard.
    pub fn heard_ms(&self, worker: WorkerId) -> Option<u64> {
        self.heard.get(&worker).copied()
    }

    /// Whether a lease's progress is due to be journalled.
    pub(super) fn progress_is_due(&self, lease: LeaseId, now_ms: u64) -> bool {
        self.progressed.get(&lease).is_none_or(|&last| now_ms >= last + PROGRESS_MS)
    }

    /// Takes in a request that was not refused, and what came of it.
    pub(super) fn felt(&mut self, state: &State, now_ms: u64, request: &Request, events: &[Event]) {
        if let Some(worker) = request.worker() {
            self.heard.insert(worker, now_ms);
        }
        if let Request::Heartbeat { lease, .. } | Request::Report { lease, .. } = request {
            self.deadlines.insert(*lease, now_ms + self.lease_ms);
        }
        for event in events {
            match event {
                Event::LeaseGranted { lease, .. } => drop(self.deadlines.insert(*lease, now_ms + self.lease_ms)),
                Event::WorkerRegistered { worker, .. } => drop(self.heard.insert(*worker, now_ms)),
                Event::ProgressMade { lease, .. } => drop(self.progressed.insert(*lease, now_ms)),
                _ => {}
            }
        }
        self.deadlines.retain(|lease, _| state.leases.contains_key(lease));
        self.progressed.retain(|lease, _| state.leases.contains_key(lease));
        self.heard.retain(|worker, _| state.workers.contains_key(worker));
    }
}
