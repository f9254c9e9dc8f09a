//! What the heartbeats say of a lease's gang and hear of it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use insula_proto::v1;
use tokio::sync::Notify;

use super::Listener;
use crate::{
    shell::link::{Halt, HaltFlag},
    sync::{Gang, GangError, Seat, SyncError},
};

/// Shared by the task that beats and the thread that computes.
#[derive(Debug, Clone, Default)]
pub struct Seating(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    seated: AtomicBool,
    recalled: AtomicBool,
    answers: AtomicU64,
    heard: Mutex<Option<Gang>>,
    ask: Notify,
}

impl Seating {
    /// Everything is in memory: updates can begin.
    pub fn sit(&self) {
        self.0.seated.store(true, Ordering::Relaxed);
    }

    /// Whether updates can begin.
    #[must_use]
    pub fn seated(&self) -> bool {
        self.0.seated.load(Ordering::Relaxed)
    }

    /// Takes note of a gang, unless one as new is known.
    pub fn hear(&self, gang: Gang) {
        let mut heard = self.0.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.as_ref().is_none_or(|known| known.generation < gang.generation) {
            *heard = Some(gang);
        }
    }

    /// The newest gang.
    #[must_use]
    pub fn heard(&self) -> Option<Gang> {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its generation; 0: none.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, |gang| gang.generation)
    }

    /// A heartbeat was answered.
    pub fn answered(&self, recalled: bool) {
        self.0.recalled.store(recalled, Ordering::Relaxed);
        self.0.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the worker is needed elsewhere.
    #[must_use]
    pub fn recalled(&self) -> bool {
        self.0.recalled.load(Ordering::Relaxed)
    }

    /// Heartbeats answered so far.
    pub(super) fn answers(&self) -> u64 {
        self.0.answers.load(Ordering::Relaxed)
    }

    /// Has the next heartbeat sent at once.
    pub fn ask(&self) {
        self.0.ask.notify_one();
    }

    /// Waits for [`Seating::ask`].
    pub async fn asked(&self) {
        self.0.ask.notified().await;
    }
}

/// The gang of an answer, as `lease` has its seat in it.
///
/// # Errors
/// When it is none that this worker can be in.
pub fn gang_of(gang: v1::Gang, lease: u64) -> Result<Gang, GangError> {
    let seat = |seat: v1::Seat| Seat { lease: seat.lease_id, worker: seat.worker, address: seat.address };
    Gang::new(gang.generation, gang.rank, gang.seats.into_iter().map(seat).collect(), &gang.key, lease)
}

/// What a member needs to be one.
#[derive(Debug, Clone)]
pub struct Seats {
    /// Its lease.
    pub lease: u64,
    /// Where the higher ranks call.
    pub listener: Arc<Listener>,
    /// What the heartbeats hear.
    pub seating: Seating,
    /// Raised when this thread should leave off.
    pub halt: HaltFlag,
}

impl Seats {
    /// Why this member is to leave after the update in hand.
    #[must_use]
    pub fn leaving(&self) -> Option<&'static str> {
        if self.halt.get() == Some(Halt::Stop) {
            return Some("the worker was asked to stop");
        }
        self.seating.recalled().then_some("the worker is needed elsewhere")
    }

    /// Whether to go on waiting for members of a gang that is being formed.
    pub(super) fn still_forming(&self, gang: &Gang) -> Result<(), SyncError> {
        self.still_ours()?;
        let newer = self.seating.generation();
        if newer > gang.generation {
            return Err(SyncError::Superseded { newer });
        }
        if self.leaving().is_some() { Err(SyncError::Leaving) } else { Ok(()) }
    }

    /// Whether to go on waiting for members of a gang that computes: a newer generation that has them all comes after the
    /// update.
    pub(super) fn still_together(&self, gang: &Gang) -> Result<(), SyncError> {
        self.still_ours()?;
        if self.seating.generation() > gang.generation
            && let Some(newer) = self.seating.heard()
            && let Some(gone) = gang.missing_from(&newer)
        {
            return Err(SyncError::Gone { peer: gang.peer(gone), newer: newer.generation });
        }
        Ok(())
    }

    fn still_ours(&self) -> Result<(), SyncError> {
        if self.halt.get() == Some(Halt::Abandon) { Err(SyncError::Abandoned) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gang(generation: u32, leases: &[u64]) -> v1::Gang {
        let seat = |&lease_id| v1::Seat { lease_id, worker: format!("w{lease_id}"), address: "localhost:1".into() };
        v1::Gang { generation, rank: 0, seats: leases.iter().map(seat).collect(), key: vec![1; 32] }
    }

    #[test]
    fn only_a_newer_gang_is_taken_note_of() {
        let seating = Seating::default();
        for generation in [2, 1, 3, 3] {
            seating.hear(gang_of(gang(generation, &[5, 6]), 5).unwrap());
        }
        assert_eq!(seating.generation(), 3);
        assert!(gang_of(gang(4, &[7, 6]), 5).is_err(), "the seat is another's");
    }
}
