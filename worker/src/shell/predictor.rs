//! The service that labels dialogues: one engine on one thread, requests in a bounded queue before it.
//!
//! ```text
//! Predict --checked--> queue --> [thread with the engine] --> answer
//! ```
//! A request whose asker has gone is not computed. Health and reflection are served beside it.

use std::{net::SocketAddr, thread, time::Duration};

use insula_proto::{
    PREDICT_SCHEMA,
    corpus::{Dialogue, LabelSet},
    job::Violation,
    v1::{
        PredictRequest, PredictResponse, Prediction,
        predictor_server::{Predictor as Service, PredictorServer},
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use super::link::MESSAGE_BYTES;
use crate::predict::{self, PredictError, Predicted, Predictor, Spoken};

/// Requests that may wait for the engine; one more is refused.
const QUEUE: usize = 32;
/// How long a stop waits for calls under way.
const DRAIN: Duration = Duration::from_secs(5);

/// Why dialogues are not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address others can reach, without the word for it.
    #[error(
        "{0} can be reached from other machines and calls are not authenticated: expected a loopback address such as \
         127.0.0.1, or --allow-remote"
    )]
    Remote(SocketAddr),
    /// The address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The engine has no thread.
    #[error("cannot start the engine's thread: {0}")]
    Thread(std::io::Error),
    /// The schema's reflection.
    #[error("the schema cannot be served: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport.
    #[error("serving failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// A bug: a task panicked.
    #[error("serving panicked: {0}")]
    Panicked(String),
}

/// A predictor that is served.
pub struct Serving {
    /// Where it listens, the port as it was given.
    pub addr: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Serving {
    /// Stops; calls under way are still answered where that does not take long.
    ///
    /// # Errors
    /// When serving had failed before.
    pub async fn stop(self) -> Result<(), ServeError> {
        self.stop.cancel();
        match tokio::time::timeout(DRAIN, self.served).await {
            Ok(served) => served.map_err(|error| ServeError::Panicked(error.to_string()))?.map_err(Into::into),
            Err(_) => Ok(()),
        }
    }
}

/// Whether dialogues may be served there.
///
/// # Errors
/// Where others could reach the address, without the word for it.
pub fn may_listen(listen: SocketAddr, allow_remote: bool) -> Result<(), ServeError> {
    if listen.ip().is_loopback() || allow_remote { Ok(()) } else { Err(ServeError::Remote(listen)) }
}

/// Serves `predictor` on `listen`.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(predictor: Predictor, listen: SocketAddr, allow_remote: bool) -> Result<Serving, ServeError> {
    may_listen(listen, allow_remote)?;
    let listening = |source| ServeError::Listen { address: listen, source };
    let listener = TcpListener::bind(listen).await.map_err(listening)?;
    let addr = listener.local_addr().map_err(listening)?;
    let desk = Desk::open(predictor).map_err(ServeError::Thread)?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<PredictorServer<Desk>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(PREDICT_SCHEMA)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let service =
        PredictorServer::new(desk).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES);
    let router = Server::builder()
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(service);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    let served = tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopped));
    Ok(Serving { addr, stop, served })
}

/// A dialogue that waits, and who waits for it.
struct Waiting {
    dialogue: Dialogue,
    answer: oneshot::Sender<Result<Vec<Predicted>, PredictError>>,
}

/// The side that takes calls.
struct Desk {
    queue: mpsc::Sender<Waiting>,
    labels: LabelSet,
}

impl Desk {
    /// Gives the predictor a thread of its own, which ends with the desk.
    fn open(mut predictor: Predictor) -> std::io::Result<Self> {
        let (queue, mut waiting) = mpsc::channel::<Waiting>(QUEUE);
        let labels = predictor.labels().clone();
        thread::Builder::new().name("engine".into()).spawn(move || {
            while let Some(Waiting { dialogue, answer }) = waiting.blocking_recv() {
                if !answer.is_closed() {
                    // Whoever asked may have gone meanwhile.
                    let _ = answer.send(predictor.predict(&dialogue));
                }
            }
        })?;
        Ok(Self { queue, labels })
    }

    /// The labels of a dialogue, once it was its turn.
    async fn ask(&self, dialogue: Dialogue) -> Result<Vec<Predicted>, Status> {
        let gone = || Status::internal("the engine has ended: this is a bug");
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Waiting { dialogue, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Status::resource_exhausted(format!("{QUEUE} requests wait already: expected fewer; try again later"))
            }
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        answered.await.map_err(|_| gone())?.map_err(|error| match error {
            PredictError::Prompt(error) => {
                bad_request(vec![Violation { field: "utterances".into(), description: error.to_string() }])
            }
            error => Status::internal(error.to_string()),
        })
    }
}

#[tonic::async_trait]
impl Service for Desk {
    async fn predict(&self, request: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
        let spoken = request.into_inner().utterances.into_iter();
        let turns: Vec<Spoken> = spoken.map(|u| Spoken { speaker: u.speaker, text: u.text }).collect();
        let violations = predict::violations(&turns);
        if !violations.is_empty() {
            return Err(bad_request(violations));
        }
        let predicted = self.ask(predict::dialogue("asked".into(), &turns)).await?;
        let prediction = |predicted: Predicted| Prediction {
            label: self.labels.name(predicted.label).to_owned(),
            probability: predicted.probability(),
            probabilities: predicted.probabilities,
        };
        let predictions = predicted.into_iter().map(prediction).collect();
        Ok(Response::new(PredictResponse { labels: self.labels.names().to_vec(), predictions }))
    }
}

/// `INVALID_ARGUMENT` with every field that is wrong.
fn bad_request(violations: Vec<Violation>) -> Status {
    let lines: Vec<_> = violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
    let fields = violations.into_iter().map(|v| FieldViolation::new(v.field, v.description)).collect::<Vec<_>>();
    Status::with_error_details(Code::InvalidArgument, lines.join("; "), ErrorDetails::with_bad_request(fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_refuses_the_next_and_an_engine_that_ended_is_a_bug() {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let labels = LabelSet::new(vec!["sad".into(), "joyful".into()]).unwrap();
        let desk = Desk { queue, labels };
        let asked = || predict::dialogue("d".into(), &[Spoken { speaker: "Ann".into(), text: "Hi.".into() }]);
        for _ in 0..QUEUE {
            let (answer, _) = oneshot::channel();
            desk.queue.try_send(Waiting { dialogue: asked(), answer }).map_err(drop).unwrap();
        }
        let refused = desk.ask(asked()).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        drop(waiting);
        assert_eq!(desk.ask(asked()).await.unwrap_err().code(), Code::Internal);
    }
}
