//! The health of a context: the first failure of its work, which every later call of it returns, as in CUDA.

use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

use crate::codes::Code;

/// Work that failed on the device: the code that sticks, and what happened, for stderr.
#[derive(Debug)]
pub struct Failure {
    /// What every later call of the context returns.
    pub code: Code,
    /// The whole story.
    pub message: String,
}

impl Failure {
    /// A failure.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }
}

/// Sound, or failed with the code of the first failure.
#[derive(Debug, Default)]
pub struct Health(AtomicI32);

impl Health {
    /// An error once any work has failed.
    pub fn check(&self) -> Result<(), Code> {
        match self.0.load(SeqCst) {
            0 => Ok(()),
            number => Err(Code(number)),
        }
    }

    /// Notes a failure and tells it on stderr; the code of the first one stays.
    pub fn fail(&self, failure: &Failure) {
        let name = Code::name(failure.code.0).map_or("?".into(), |name| name.to_string_lossy());
        eprintln!("fakecuda: {name}: {}", failure.message);
        let _first_stays = self.0.compare_exchange(0, failure.code.0, SeqCst, SeqCst);
    }

    /// Sound again: the context is new.
    pub fn reset(&self) {
        self.0.store(0, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_stays() {
        let health = Health::default();
        assert_eq!(health.check(), Ok(()));
        health.fail(&Failure::new(Code::ILLEGAL_ADDRESS, "first"));
        health.fail(&Failure::new(Code::LAUNCH_FAILED, "second"));
        assert_eq!(health.check(), Err(Code::ILLEGAL_ADDRESS));
    }
}
