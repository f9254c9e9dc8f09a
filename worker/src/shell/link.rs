//! The computing thread's line to the coordinator, for one lease: blocking, patient with a coordinator that restarts.

use std::{
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use insula_proto::{
    ids::{Digest, Hasher},
    v1::{
        self, AppendLogRequest, ArtifactChunk, ClaimTokensRequest, ClaimTokensResponse, FulfilTokensRequest,
        GetArtifactRequest, ReportRequest, artifacts_client::ArtifactsClient, fleet_client::FleetClient,
        logs_client::LogsClient, report_request::Report,
    },
};
use tokio::{runtime::Handle, sync::watch};
use tonic::{Code, Status};

use super::{
    channel::Channel,
    failure::Unfinished,
    sync::{Listener, Seating, Seats},
};

/// A report is tried again for so long while the coordinator does not answer: its restart takes seconds, and what it
/// would lose otherwise is minutes of computing. Guessed.
const PATIENCE: Duration = Duration::from_secs(120);
/// First and longest pause between tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Largest message either side accepts; artifacts travel in chunks far below it.
pub const MESSAGE_BYTES: usize = 16 << 20;
/// Bytes of an artifact sent in one message.
const CHUNK_BYTES: usize = 256 << 10;
/// Largest artifact a worker accepts. A 7B adapter with its moments stays under it.
const ARTIFACT_BYTES: u64 = 8 << 30;

/// Why the computing thread should leave off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// The lease is lost or the job cancelled.
    Abandon,
    /// This process was asked to stop.
    Stop,
}

/// Whose a key's tokens are to make, or where they lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// In the artifact of this digest.
    Cached(String),
    /// This worker is to make them.
    Granted,
    /// Another worker is making them.
    Busy,
}

/// Shared flag between the shell and the computing thread.
#[derive(Debug, Clone, Default)]
pub struct HaltFlag(Arc<AtomicU8>);

impl HaltFlag {
    /// Raises the flag; `Abandon` outranks `Stop`.
    pub fn raise(&self, halt: Halt) {
        let level = match halt {
            Halt::Stop => 1,
            Halt::Abandon => 2,
        };
        self.0.fetch_max(level, Ordering::Relaxed);
    }

    /// The flag.
    pub fn get(&self) -> Option<Halt> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(Halt::Stop),
            _ => Some(Halt::Abandon),
        }
    }
}

/// The line.
pub struct Link {
    /// Where to reach the coordinator.
    pub channel: Channel,
    /// The runtime whose thread is not this one.
    pub runtime: Handle,
    /// This registration.
    pub worker_id: u64,
    /// The lease that fences everything sent.
    pub lease_id: u64,
    /// The lease's job.
    pub job_id: String,
    /// Latest progress; the next heartbeat carries it.
    pub progress: watch::Sender<Option<v1::Progress>>,
    /// Raised when this thread should leave off.
    pub halt: HaltFlag,
    /// What the heartbeats say and hear of the lease's gang.
    pub seating: Seating,
    /// Where the members of a gang call.
    pub listener: Arc<Listener>,
}

impl Link {
    /// What makes this worker a member of the lease's gang.
    pub fn seats(&self) -> Seats {
        Seats {
            lease: self.lease_id,
            listener: Arc::clone(&self.listener),
            seating: self.seating.clone(),
            halt: self.halt.clone(),
        }
    }

    /// Leaves off where the flag is raised.
    ///
    /// # Errors
    /// What the flag says.
    pub fn go_on(&self) -> Result<(), Unfinished> {
        match self.halt.get() {
            None => Ok(()),
            Some(Halt::Stop) => Err(Unfinished::Stopping),
            Some(Halt::Abandon) => Err(Unfinished::Abandoned),
        }
    }

    /// Sends something that must not be lost and waits until it is on the coordinator's disk.
    ///
    /// # Errors
    /// `Abandoned` where the lease is no longer ours; a failure where the coordinator refuses or stays away.
    pub fn report(&self, base_digest: &Digest, report: Report) -> Result<(), Unfinished> {
        let request = ReportRequest {
            worker_id: self.worker_id,
            lease_id: self.lease_id,
            base_digest: base_digest.to_string(),
            report: Some(report),
        };
        let client = FleetClient::new(self.channel.clone());
        self.patiently(|| {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.report(request).await.map(|_| ()) }
        })
    }

    /// Asks whose a key's tokens are to make; `spoilt` is the artifact that was of no use, or empty.
    ///
    /// # Errors
    /// As [`Link::report`].
    pub fn claim_tokens(&self, key: &Digest, spoilt: &str) -> Result<Claim, Unfinished> {
        let request = ClaimTokensRequest {
            worker_id: self.worker_id,
            lease_id: self.lease_id,
            key: key.to_string(),
            spoilt: spoilt.to_owned(),
        };
        let client = FleetClient::new(self.channel.clone());
        let answer = self.patiently(|| {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.claim_tokens(request).await.map(tonic::Response::into_inner) }
        })?;
        Ok(match answer {
            ClaimTokensResponse { granted: true, .. } => Claim::Granted,
            ClaimTokensResponse { artifact, .. } if artifact.is_empty() => Claim::Busy,
            ClaimTokensResponse { artifact, .. } => Claim::Cached(artifact),
        })
    }

    /// Says that a claimed key's tokens are in the store; they are the fleet's once this returns.
    ///
    /// # Errors
    /// As [`Link::report`].
    pub fn fulfil_tokens(&self, key: &Digest, artifact: &str) -> Result<(), Unfinished> {
        let request = FulfilTokensRequest {
            worker_id: self.worker_id,
            lease_id: self.lease_id,
            key: key.to_string(),
            artifact: artifact.to_owned(),
        };
        let client = FleetClient::new(self.channel.clone());
        self.patiently(|| {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.fulfil_tokens(request).await.map(|_| ()) }
        })
    }

    /// Waits a little.
    pub fn pause(&self, pause: Duration) {
        self.runtime.block_on(tokio::time::sleep(pause));
    }

    /// Writes a line to the job's log; losing one is no failure.
    pub fn log(&self, line: &str) {
        tracing::info!(job = self.job_id, "{line}");
        let request =
            AppendLogRequest { job_id: self.job_id.clone(), worker_id: self.worker_id, lines: format!("{line}\n") };
        let mut client = LogsClient::new(self.channel.clone());
        if let Err(status) = self.runtime.block_on(client.append(request)) {
            tracing::debug!("log line not delivered: {}", status.message());
        }
    }

    /// Stores bytes; answers with the artifact. Messages are cut as they are sent, so the bytes are held once.
    ///
    /// # Errors
    /// As [`Link::report`].
    pub fn put(&self, name: &str, bytes: Vec<u8>) -> Result<v1::Artifact, Unfinished> {
        let client = ArtifactsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
        let (digest, length, bytes) = (Digest::of(&bytes), bytes.len(), Arc::new(bytes));
        let stored = self.patiently(|| {
            let (mut client, bytes) = (client.clone(), Arc::clone(&bytes));
            let chunk = move |from| {
                let to = length.min(from + CHUNK_BYTES);
                ArtifactChunk { data: bytes[from..to].to_vec() }
            };
            let chunks = futures::stream::iter((0..length).step_by(CHUNK_BYTES).map(chunk));
            async move { client.put(chunks).await.map(tonic::Response::into_inner) }
        })?;
        if stored.digest != digest.as_str() {
            let message = format!("{name} was sent as {digest} and stored as {}", stored.digest);
            return Err(Unfinished::bug(message));
        }
        Ok(v1::Artifact { name: name.to_owned(), digest: stored.digest, bytes: stored.bytes })
    }

    /// Fetches the bytes with this digest and checks them.
    ///
    /// # Errors
    /// As [`Link::report`]; a failure where the bytes are damaged.
    pub fn get(&self, digest: &str) -> Result<Vec<u8>, Unfinished> {
        let client = ArtifactsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
        let (bytes, got) = self.patiently(|| {
            let client = client.clone();
            let request = GetArtifactRequest { digest: digest.to_owned() };
            async move { fetched(client, request).await }
        })?;
        if got.as_str() == digest { Ok(bytes) } else { Err(Unfinished::bug(format!("{digest} arrived as {got}"))) }
    }

    /// Tries until it is answered: a coordinator that restarts refuses connections for a while.
    fn patiently<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Unfinished>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let (mut pause, longest) = PAUSE;
        let mut waited = Duration::ZERO;
        loop {
            let status = match self.runtime.block_on(attempt()) {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            match status.code() {
                Code::FailedPrecondition => {
                    tracing::warn!("lease {} is no longer ours: {}", self.lease_id, status.message());
                    return Err(Unfinished::Abandoned);
                }
                _ if is_away(&status) && waited < PATIENCE => {
                    self.go_on().or_else(|u| if matches!(u, Unfinished::Stopping) { Ok(()) } else { Err(u) })?;
                    self.runtime.block_on(tokio::time::sleep(pause));
                    waited += pause;
                    pause = longest.min(pause * 2);
                }
                _ => return Err(Unfinished::bug(format!("the coordinator answered {status}"))),
            }
        }
    }
}

/// Whether nobody answered. What the coordinator says has no source; a status with one is the line's own: where it breaks in
/// the middle of a call, as when the coordinator is killed, that is `Unknown`.
fn is_away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled) || status.source().is_some()
}

/// One fetch, whole.
async fn fetched(
    mut client: ArtifactsClient<Channel>,
    request: GetArtifactRequest,
) -> Result<(Vec<u8>, Digest), Status> {
    let mut chunks = client.get(request).await?.into_inner();
    let mut bytes = Vec::new();
    let mut hasher = Hasher::default();
    while let Some(chunk) = chunks.message().await? {
        if bytes.len() as u64 + chunk.data.len() as u64 > ARTIFACT_BYTES {
            return Err(Status::out_of_range(format!("artifact is over {ARTIFACT_BYTES} bytes")));
        }
        hasher.update(&chunk.data);
        bytes.extend_from_slice(&chunk.data);
    }
    Ok((bytes, hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_breaks_in_the_middle_of_a_call_is_no_answer() {
        let broken = Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
        assert_eq!(broken.code(), Code::Unknown);
        assert!(is_away(&broken) && is_away(&Status::unavailable("stopping")));
        assert!(!is_away(&Status::unknown("a word of the coordinator's")));
    }
}
