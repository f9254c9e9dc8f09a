//! The services of `insula.v1`: each call parses its message, asks the owner or looks at the board, and answers.

mod artifacts;
mod corpora;
mod fleet;
mod jobs;
mod logs;
mod wire;

use std::{sync::Arc, time::Duration};

use insula_proto::{
    ids::{Digest, JobId},
    job::{JobSpec, Violation},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use super::{
    artifacts::{ArtifactError, Artifacts},
    clock::Clock,
    gauges::Gauges,
    imports::Imports,
    logs::{LogError, Logs},
    owner::{AskError, OwnerHandle},
    secret::Secret,
    sharding::{Sharded, ShardingError},
    store::Reader,
};
use crate::schedule::{Job, Refusal};

/// Largest message in either direction. The largest there is, a training's losses, is 4 bytes an update.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Messages of one stream that may wait for its reader; the sender then waits too.
const STREAM_QUEUE: usize = 16;

/// What all services work with; cheap to clone.
#[derive(Clone)]
pub struct Desk {
    /// The one who decides.
    pub owner: OwnerHandle,
    /// The journal's stories.
    pub reader: Reader,
    /// Files by digest.
    pub artifacts: Artifacts,
    /// Logs by job.
    pub logs: Logs,
    /// The time.
    pub clock: Clock,
    /// Ends streams and waits when the coordinator stops.
    pub stop: CancellationToken,
    /// What was read of corpora lately.
    pub imports: Arc<Imports>,
    /// How often a lease is to be renewed.
    pub heartbeat_ms: u32,
    /// How long a lease lasts without.
    pub lease_ms: u32,
    /// What gangs' keys are made of.
    pub secret: Secret,
    /// What workers last said of their memory and time.
    pub gauges: Gauges,
}

/// A stream of answers.
type Answers<T> = ReceiverStream<Result<T, Status>>;

impl Desk {
    fn job(&self, text: &str) -> Result<Arc<Job>, Status> {
        let id: JobId = text.parse().map_err(invalid("job_id"))?;
        self.owner.board().job(id).ok_or_else(|| Status::not_found(format!("{id} does not exist")))
    }

    /// Reads a job's corpora, where they were not read before, and puts their shards in the store.
    async fn import(&self, spec: &JobSpec) -> Result<Arc<Sharded>, ShardingError> {
        let owner = self.owner.clone();
        let is_kept = move |corpus: &Digest| owner.board().read().corpora.contains_key(corpus);
        self.imports.import(spec, &self.artifacts, is_kept).await
    }
}

fn sharding_status(error: ShardingError) -> Status {
    match error {
        ShardingError::Corpus(error) => {
            bad_request(vec![Violation { field: error.field().into(), description: error.to_string() }])
        }
        ShardingError::Mix(error) => {
            bad_request(vec![Violation { field: "labels.file".into(), description: error.to_string() }])
        }
        ShardingError::Artifact(error) => artifact_status(error),
        ShardingError::Panicked(_) => Status::internal(error.to_string()),
    }
}

/// `INVALID_ARGUMENT` with every field that is wrong, in the message and as `google.rpc.BadRequest`.
fn bad_request(violations: Vec<Violation>) -> Status {
    let lines: Vec<_> = violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
    let fields = violations.into_iter().map(|v| FieldViolation::new(v.field, v.description)).collect::<Vec<_>>();
    Status::with_error_details(Code::InvalidArgument, lines.join("; "), ErrorDetails::with_bad_request(fields))
}

/// A field that does not parse.
fn invalid<E: std::fmt::Display>(field: &'static str) -> impl Fn(E) -> Status {
    move |error| bad_request(vec![Violation { field: field.into(), description: error.to_string() }])
}

fn ask_status(error: AskError) -> Status {
    let message = error.to_string();
    match error {
        AskError::Gone => Status::unavailable(message),
        AskError::Refused(refusal) => match refusal {
            Refusal::UnknownJob(_) => Status::not_found(message),
            Refusal::RequestIdTaken { .. } => Status::already_exists(message),
            Refusal::NotAName(_) => invalid("name")(message),
            Refusal::NoSuchPause { .. } => invalid("pause_epoch")(message),
            Refusal::NotARequestId(_) => invalid("request_id")(message),
            Refusal::NoStart { .. } => bad_request(vec![Violation {
                field: "adapter.from".into(),
                description: message.trim_start_matches("adapter.from: ").into(),
            }]),
            Refusal::WrongReport { .. }
            | Refusal::NoBase { .. }
            | Refusal::NoSuchEpoch { .. }
            | Refusal::NoAdapter { .. }
            | Refusal::WrongTally { .. }
            | Refusal::WrongRows { .. }
            | Refusal::NotClaimed { .. } => Status::invalid_argument(message),
            Refusal::UnknownWorker(_)
            | Refusal::OtherVersion { .. }
            | Refusal::StaleLease { .. }
            | Refusal::NotLead { .. }
            | Refusal::Ended(_)
            | Refusal::OtherBase { .. }
            | Refusal::OtherEncoder { .. }
            | Refusal::EpochMissing { .. } => Status::failed_precondition(message),
        },
    }
}

fn artifact_status(error: ArtifactError) -> Status {
    let message = error.to_string();
    match error {
        ArtifactError::Missing(_) => Status::not_found(message),
        ArtifactError::Damaged { .. } => Status::data_loss(message),
        ArtifactError::TooLarge => Status::resource_exhausted(message),
        ArtifactError::Store(_) => Status::internal(message),
    }
}

fn log_status(error: LogError) -> Status {
    let message = error.to_string();
    match error {
        LogError::Io { .. } => Status::internal(message),
        LogError::Full(_) => Status::resource_exhausted(message),
        LogError::BeyondEnd { .. } => Status::out_of_range(message),
    }
}

/// Runs `work` as a stream's sender; it ends when it is done, when the reader goes, or when the coordinator stops.
fn answers<T, F>(stop: CancellationToken, work: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F) -> Answers<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
    let work = work(sender.clone());
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = work => ended,
            () = sender.closed() => Ok(()),
            () = stop.cancelled() => Err(Status::unavailable("the coordinator is stopping")),
        };
        if let Err(status) = ended {
            // A reader that stopped reading must not hold up the end.
            let _ = tokio::time::timeout(Duration::from_secs(1), sender.send(Err(status))).await;
        }
    });
    ReceiverStream::new(receiver)
}

/// Hands one message to a stream's reader; `false`: the reader has gone.
async fn hand<T>(sender: &mpsc::Sender<Result<T, Status>>, message: T) -> bool {
    sender.send(Ok(message)).await.is_ok()
}
