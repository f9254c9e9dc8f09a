//! Starts and stops a coordinator: state directory, owner, services.
//!
//! ```text
//! start: refuse the world -> lock and open the journal -> fold it -> open artifacts -> bind -> serve
//! stop:  no new calls, streams end -> calls under way are answered -> the owner writes what waits -> lock given back
//! ```
#![expect(clippy::disallowed_methods, reason = "the room that makes the state directory's folders")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use insula_proto::{
    SCHEMA,
    v1::{
        artifacts_server::ArtifactsServer, corpora_server::CorporaServer, fleet_server::FleetServer,
        jobs_server::JobsServer, logs_server::LogsServer,
    },
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Server, server::TcpIncoming},
};

use super::{
    artifacts::{ArtifactError, Artifacts},
    clock::Clock,
    gauges::Gauges,
    grpc::{Desk, MESSAGE_BYTES_MAX},
    guard::{Guard, Protection, ProtectionError},
    logs::Logs,
    owner::{Owner, owner},
    pruning::prune_regularly,
    secret::Secret,
    store::{Store, StoreError},
};
use crate::schedule::{Core, Policy};

/// A call that takes longer is given up: the longest there is waits 30 s for work, an import reads for seconds.
const CALL: Duration = Duration::from_secs(120);

/// How long a stop waits for calls under way.
const DRAIN: Duration = Duration::from_secs(5);

/// A day.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// How a coordinator is set up.
#[derive(Debug, Clone)]
pub struct CoordinatorConfig {
    /// Journal, artifacts and logs; made where it is missing. One coordinator at a time.
    pub state_dir: PathBuf,
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Whether `listen` may be reachable from other machines though `protection` is not whole, so that anybody there
    /// could use it: for networks that are protected otherwise.
    pub allow_remote: bool,
    /// TLS and access token. They may be left out on loopback.
    pub protection: Protection,
    /// How often workers renew a lease.
    pub heartbeat_ms: u32,
    /// How long a lease lasts without.
    pub lease_ms: u32,
    /// Workers that a user may hold at once, where `quotas` does not say; 0: all.
    pub quota: u32,
    /// By user.
    pub quotas: BTreeMap<String, u32>,
    /// Artifacts that nothing needs are deleted this often, minutes; 0: never.
    pub prune_minutes: u32,
    /// Days after a job's end for which its progress can still be watched; what else is told of it is kept.
    pub stories_kept_days: u32,
}

impl CoordinatorConfig {
    /// The usual set-up: loopback, a heartbeat a second, a lease lost after five without.
    pub fn new(state_dir: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            state_dir: state_dir.into(),
            listen,
            allow_remote: false,
            protection: Protection::default(),
            heartbeat_ms: 1000,
            lease_ms: 5000,
            quota: 0,
            quotas: BTreeMap::new(),
            prune_minutes: 60,
            stories_kept_days: 30,
        }
    }
}

/// Why a coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What should protect it is missing or cannot be used.
    #[error(transparent)]
    Protection(#[from] ProtectionError),
    /// The journal.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The artifact store.
    #[error("{path}: {source}")]
    Artifacts {
        /// Its folder.
        path: PathBuf,
        /// What is wrong.
        source: ArtifactError,
    },
    /// The address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The schema's reflection.
    #[error("the schema cannot be served: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Why a coordinator that ran has ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The journal cannot be written; what was acknowledged is safe, nothing more is.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The transport.
    #[error("serving failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// A bug: a task of the coordinator panicked.
    #[error("the coordinator panicked: {0}")]
    Panicked(String),
}

/// A coordinator that runs. Dropped, it stops by itself, unwaited for.
#[derive(Debug)]
pub struct Running {
    /// Where it listens, the port as it was given.
    pub addr: SocketAddr,
    stop: CancellationToken,
    served: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Running {
    /// Stops politely: calls under way are answered, what was said is on disk.
    ///
    /// # Errors
    /// When it had ended before, or could not end well.
    pub async fn stop(self) -> Result<(), ServeError> {
        self.stop.cancel();
        self.ended().await
    }

    /// Waits until it ends, which it does when `shutdown` is cancelled or its journal fails.
    ///
    /// # Errors
    /// Why it ended, if not by request.
    pub async fn ended(mut self) -> Result<(), ServeError> {
        let served = self.served.take().expect("a coordinator is waited for once");
        served.await.unwrap_or_else(|error| Err(ServeError::Panicked(error.to_string())))
    }

    /// Completes when it is about to end, by request or because its journal fails; [`Running::ended`] then says why.
    pub async fn ending(&self) {
        self.stop.cancelled().await;
    }

    /// Ends it on the spot, as a power cut would; for tests of what survives.
    pub async fn kill(mut self) {
        let served = self.served.take().expect("a coordinator is waited for once");
        served.abort();
        // The lock is given back when the task is gone, which is what the caller waits for.
        let _ = served.await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Starts a coordinator; it runs until `shutdown` is cancelled or [`Running::stop`] is called.
///
/// # Errors
/// See [`StartError`].
pub async fn start(config: CoordinatorConfig, shutdown: CancellationToken) -> Result<Running, StartError> {
    config.protection.check(config.listen, config.allow_remote)?;
    let guard = config.protection.read().await?;
    let (mut store, reader) = Store::open(&config.state_dir).await?;
    let state = store.fold().await?;
    let clock = Clock::start_after(store.last_ms());
    let policy = Policy { quota: config.quota, quotas: config.quotas, ..Policy::new(config.lease_ms.into()) };
    let core = Core::restored(state, clock.now_ms(), policy);
    let secret = Secret::open(&config.state_dir);
    let secret = secret.map_err(|source| StoreError::Unwritable { path: config.state_dir.clone(), source })?;
    let artifacts = open_artifacts(&config.state_dir).await?;
    let logs = Logs::new(make_folder(&config.state_dir, "logs")?);
    let listening = |source| StartError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(listening)?;
    let addr = listener.local_addr().map_err(listening)?;
    let (compacted, kept_ms) = (store.compacted().await?, u64::from(config.stories_kept_days) * DAY_MS);
    let (owner, handle) = owner(core, store, clock, kept_ms, compacted);
    let stop = shutdown.child_token();
    if config.prune_minutes > 0 {
        let every = Duration::from_secs(60 * u64::from(config.prune_minutes));
        tokio::spawn(prune_regularly(handle.clone(), artifacts.clone(), every, stop.clone()));
    }
    let desk = Desk {
        owner: handle,
        reader,
        artifacts,
        logs,
        clock,
        stop: stop.clone(),
        imports: Arc::default(),
        heartbeat_ms: config.heartbeat_ms,
        lease_ms: config.lease_ms,
        secret,
        gauges: Gauges::default(),
    };
    let serving = serve(desk, guard, listener, stop.clone()).await?;
    let served = tokio::spawn(run(owner, serving, stop.clone()));
    tracing::info!(%addr, state_dir = %config.state_dir.display(), "the coordinator listens");
    Ok(Running { addr, stop, served: Some(served) })
}

async fn open_artifacts(state_dir: &Path) -> Result<Artifacts, StartError> {
    let path = make_folder(state_dir, "artifacts")?;
    Artifacts::open(&path).await.map_err(|source| StartError::Artifacts { path, source })
}

fn make_folder(state_dir: &Path, name: &str) -> Result<PathBuf, StoreError> {
    let path = state_dir.join(name);
    match std::fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(StoreError::Unwritable { path, source }),
    }
}

/// The services, ready to be polled; they end after `stop`. All but health are behind the doorkeeper.
async fn serve(
    desk: Desk,
    guard: Guard,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<impl Future<Output = Result<(), tonic::transport::Error>> + Send, StartError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<JobsServer<Desk>>().await;
    health.set_serving::<FleetServer<Desk>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(SCHEMA)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    macro_rules! guarded {
        ($service:expr) => {
            InterceptedService::new($service, guard.doorkeeper.clone())
        };
    }
    macro_rules! limited {
        ($server:ident) => {
            guarded!(
                $server::new(desk.clone())
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX)
            )
        };
    }
    let router = guard
        .apply(Server::builder())?
        .timeout(CALL)
        // A connection that hogs the coordinator waits for itself only; a worker has about four calls under way.
        .concurrency_limit_per_connection(256)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_service(health_service)
        .add_service(guarded!(reflection().build_v1()?))
        .add_service(guarded!(reflection().build_v1alpha()?))
        .add_service(limited!(JobsServer))
        .add_service(limited!(FleetServer))
        .add_service(limited!(CorporaServer))
        .add_service(limited!(LogsServer))
        .add_service(limited!(ArtifactsServer));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Ok(router.serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await }))
}

/// Owner and services side by side; whichever ends first ends the other.
async fn run(
    owner: Owner,
    serving: impl Future<Output = Result<(), tonic::transport::Error>> + Send,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    // However this ends, whoever waits for it hears.
    let _stopped = stop.clone().drop_guard();
    let owner_stop = CancellationToken::new();
    let mut owner = std::pin::pin!(owner.run(owner_stop.clone()));
    let drained = async {
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            ended = &mut serving => return ended,
            () = stop.cancelled() => {}
        }
        // Clients that keep their connection open past this are cut off.
        tokio::time::timeout(DRAIN, serving).await.unwrap_or(Ok(()))
    };
    tokio::select! {
        ended = &mut owner => {
            stop.cancel();
            if let Err(error) = &ended {
                tracing::error!(%error, "the coordinator ends: its journal cannot be written");
            }
            return Ok(ended?);
        }
        ended = drained => ended?,
    }
    owner_stop.cancel();
    Ok(owner.await?)
}
