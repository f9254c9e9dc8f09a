//! Why a task was not finished, in the classes the coordinator budgets retries by.

use std::time::Duration;

use insula_kernels::KernelError;
use insula_proto::v1::FailureClass;

use crate::{engine::EngineError, model::LoadError, train::TrainError};

/// A task's end without a result.
#[derive(Debug)]
pub enum Unfinished {
    /// The lease is no longer ours, or the job was cancelled: say nothing more.
    Abandoned,
    /// This process was asked to stop; the task goes back whole.
    Stopping,
    /// The lease is given back, to be computed by others or later.
    Released {
        /// Why, for a person.
        reason: String,
        /// No new lease is asked for before so long.
        pause: Duration,
    },
    /// The task failed.
    Failed {
        /// What kind of failure.
        class: FailureClass,
        /// What happened, for a person.
        message: String,
    },
}

impl Unfinished {
    /// A lease that is given back, for a reason that does not stop this worker from taking another.
    pub fn released(reason: impl Into<String>) -> Self {
        Self::Released { reason: reason.into(), pause: Duration::ZERO }
    }

    /// A failure of the data or settings: another try would fail alike.
    pub fn bad_data(error: impl std::fmt::Display) -> Self {
        Self::Failed { class: FailureClass::BadData, message: error.to_string() }
    }

    /// A failure of a model that is asked elsewhere: whoever runs it, or pays for it, has to look.
    pub fn endpoint(error: impl std::fmt::Display) -> Self {
        Self::Failed { class: FailureClass::Endpoint, message: error.to_string() }
    }

    /// A failure of the device that computes.
    fn device(error: &KernelError) -> Self {
        let class = match error {
            KernelError::NoRoom { .. } => FailureClass::OutOfMemory,
            KernelError::Shape(_) => FailureClass::BadData,
            KernelError::Threads { .. } => FailureClass::Bug,
            _ => FailureClass::Device,
        };
        Self::Failed { class, message: error.to_string() }
    }

    /// A failure that should not be possible.
    pub fn bug(error: impl std::fmt::Display) -> Self {
        Self::Failed { class: FailureClass::Bug, message: error.to_string() }
    }
}

impl From<EngineError> for Unfinished {
    fn from(error: EngineError) -> Self {
        match &error {
            EngineError::Kernel(kernel) | EngineError::Load(LoadError::Kernel(kernel)) => Self::device(kernel),
            EngineError::Load(_) => Self::bad_data(error),
            _ => Self::bug(error),
        }
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
