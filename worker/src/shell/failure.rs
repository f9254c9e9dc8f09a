//! Why a task was not finished, in the classes the coordinator budgets retries by.

use insula_proto::v1::FailureClass;

use crate::{engine::EngineError, train::TrainError};

/// A task's end without a result.
#[derive(Debug)]
pub enum Unfinished {
    /// The lease is no longer ours, or the job was cancelled: say nothing more.
    Abandoned,
    /// This process was asked to stop; the task goes back whole.
    Stopping,
    /// The task failed.
    Failed {
        /// What kind of failure.
        class: FailureClass,
        /// What happened, for a person.
        message: String,
    },
}

impl Unfinished {
    /// A failure of the data or settings: another try would fail alike.
    pub fn bad_data(error: impl std::fmt::Display) -> Self {
        Self::Failed { class: FailureClass::BadData, message: error.to_string() }
    }

    /// A failure of a model that is asked elsewhere: whoever runs it, or pays for it, has to look.
    pub fn endpoint(error: impl std::fmt::Display) -> Self {
        Self::Failed { class: FailureClass::Endpoint, message: error.to_string() }
    }

    /// A failure that should not be possible.
    pub fn bug(error: impl std::fmt::Display) -> Self {
        Self::Failed { class: FailureClass::Bug, message: error.to_string() }
    }
}

impl From<EngineError> for Unfinished {
    fn from(error: EngineError) -> Self {
        Self::bug(error)
    }
}

impl From<TrainError> for Unfinished {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Engine(error) => error.into(),
            // The same recipe diverges again: bad settings, not bad luck.
            diverged @ TrainError::Diverged { .. } => Self::bad_data(diverged),
        }
    }
}
