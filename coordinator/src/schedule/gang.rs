//! Who computes a task: one worker, or the gang of a training.
//!
//! ```text
//! granted --> preparing --seated--> one of the gang, at a rank --lost, released--> gone
//!                                   '-- each time the seats change, a new generation begins
//! ```
//! A holder is seated once it has everything in memory, so nobody waits for one that still loads its base. Seats keep
//! their order: the first is the lead, which alone reports what the training comes to.

use insula_proto::ids::{JobId, LeaseId, TaskIndex, WorkerId};

/// The right of a worker to compute a task, alone or with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Who holds it.
    pub worker: WorkerId,
    /// The job.
    pub job: JobId,
    /// Its task.
    pub task: TaskIndex,
    /// Whether it is to be given back, and why.
    pub recalled: Option<Recall>,
}

/// Why a lease is to be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recall {
    /// The worker is wanted for this job.
    For(JobId),
    /// The gang has fewer members than the job's `schedule.min_workers`.
    TooFew,
}

/// The holders of a leased task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gang {
    /// In the order the leases were granted.
    pub holders: Vec<LeaseId>,
    /// Those that compute together, by rank; empty where the task is no training.
    pub seats: Vec<LeaseId>,
}

impl Gang {
    /// The gang of one holder.
    pub(super) fn of(holder: LeaseId) -> Self {
        Self { holders: vec![holder], seats: vec![] }
    }

    /// Whose word on the training counts: the first seat's, or a lone holder's.
    pub fn lead(&self) -> Option<LeaseId> {
        self.seats.first().or(self.holders.first().filter(|_| self.holders.len() == 1)).copied()
    }

    /// Takes a holder out; whether it had a seat.
    pub(super) fn leave(&mut self, lease: LeaseId) -> bool {
        let seated = self.seats.contains(&lease);
        self.holders.retain(|held| *held != lease);
        self.seats.retain(|held| *held != lease);
        seated
    }

    /// Asserts what must always hold.
    pub(super) fn check(&self, trains: bool, workers: usize) {
        assert!(!self.holders.is_empty(), "a leased task has a holder");
        assert!(self.holders.is_sorted_by(|a, b| a < b), "holders stand in the order of their leases");
        assert!(self.seats.iter().all(|seat| self.holders.contains(seat)), "who is seated holds a lease");
        let mut seats = self.seats.clone();
        seats.sort_unstable();
        seats.dedup();
        assert_eq!(seats.len(), self.seats.len(), "nobody is seated twice");
        assert!(self.holders.len() <= if trains { workers } else { 1 }, "a task has at most its job's workers");
        assert!(trains || self.seats.is_empty(), "only a training has seats");
    }
}

/// A gang as one of its members is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seating {
    /// The job.
    pub job: JobId,
    /// The training's task.
    pub task: TaskIndex,
    /// Grows with every change of the seats, through all leases of the task.
    pub generation: u32,
    /// The member's own seat.
    pub rank: usize,
    /// By rank: lease, worker's name, address.
    pub seats: Vec<(LeaseId, String, String)>,
}
