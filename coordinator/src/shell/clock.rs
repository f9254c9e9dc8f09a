//! The time, as the rest of the coordinator knows it: milliseconds since 1970 that never run backwards.
#![expect(clippy::disallowed_methods, reason = "the room that asks the time")]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Asks the wall clock once and counts on from there, so that setting the wall clock expires no lease.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    began: Instant,
    began_ms: u64,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { began: Instant::now(), began_ms: millis(since) }
    }

    /// Unix time in milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.began_ms + millis(self.began.elapsed())
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
