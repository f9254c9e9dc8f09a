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
    /// A clock that starts now; or at `last_ms`, where the wall clock was set back to before that while nobody ran, so
    /// that the journal's times never run backwards.
    pub fn start_after(last_ms: u64) -> Self {
        Self { began: Instant::now(), began_ms: wall_ms().max(last_ms) }
    }

    /// Unix time in milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.began_ms + millis(self.began.elapsed())
    }
}

/// What the wall clock says, Unix time in milliseconds: for comparing with the times of files, which it made.
pub fn wall_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_starts_no_earlier_than_what_was_written_and_runs_on() {
        let today = Clock::start_after(0).now_ms();
        let in_a_year = today + 365 * 24 * 3600 * 1000;
        let clock = Clock::start_after(in_a_year);
        let first = clock.now_ms();
        assert!(first >= in_a_year && Clock::start_after(today - 1000).now_ms() < in_a_year);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(clock.now_ms() >= first + 5);
    }
}
