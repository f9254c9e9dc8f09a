//! How a command ends when it does not succeed: one sentence for a person, one number for a script.

use std::process::ExitCode;

use insula_proto::job::Violation;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A command's failure; the numbers stand in `insula --help`.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It could not be done.
    #[error("{0}")]
    Operation(String),
    /// What was typed, set or read cannot be worked with.
    #[error("{0}")]
    Input(String),
    /// The job failed.
    #[error("{job} failed: {why}")]
    JobFailed {
        /// The job.
        job: String,
        /// Its failure, as the coordinator tells it.
        why: String,
    },
    /// The job was cancelled.
    #[error("{0} was cancelled")]
    JobCancelled(String),
    /// No coordinator answers.
    #[error("no coordinator answers at {address}: {why}")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// What happened.
        why: String,
    },
    /// The device failed; a new process may use it again.
    #[error("{0}")]
    Device(String),
    /// The person interrupted.
    #[error("interrupted; {0}")]
    Interrupted(String),
}

impl Failure {
    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Operation(_) => 1,
            Failure::Input(_) => 2,
            Failure::JobFailed { .. } => 3,
            Failure::JobCancelled(_) => 4,
            Failure::Unreachable { .. } => 5,
            Failure::Device(_) => 6,
            Failure::Interrupted(_) => 130,
        })
    }

    /// A failure to do something, with what happened.
    pub fn operation(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self::Operation(format!("{what}: {error}"))
    }

    /// Bad settings, every one on a line of its own.
    pub fn violations(violations: &[Violation]) -> Self {
        let lines = violations.iter().map(|v| format!("\n  {}: {}", v.field, v.description));
        Self::Input(format!("these settings cannot work:{}", lines.collect::<String>()))
    }

    /// What a coordinator's refusal means to the person at the keyboard.
    pub fn from_status(address: &str, status: &Status) -> Self {
        let details = status.get_error_details();
        if let Some(request) = details.bad_request().filter(|r| !r.field_violations.is_empty()) {
            let violation = |v: &tonic_types::FieldViolation| Violation {
                field: v.field.clone(),
                description: v.description.clone(),
            };
            return Self::violations(&request.field_violations.iter().map(violation).collect::<Vec<_>>());
        }
        let message = status.message().to_owned();
        match status.code() {
            Code::Unavailable => Self::Unreachable { address: address.to_owned(), why: message },
            Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::Unauthenticated => {
                Self::Input(message)
            }
            _ => Self::Operation(message),
        }
    }
}
