//! A worker's life: find the coordinator, register, lease, compute, report, again.

use std::{future::Future, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use insula_kernels::KernelError;
use insula_proto::{
    VERSION,
    v1::{
        Failed, FailureClass, HeartbeatRequest, Lease, LeaseRequest, RegisterRequest, Released, ReportRequest,
        WorkerMetrics, fleet_client::FleetClient, lease, report_request::Report,
    },
};
use tokio::{runtime::Handle, sync::watch};
use tonic::{Code, Status};

use crate::device::{Device, DeviceChoice};

use super::{
    channel::{Access, AccessError, Channel, Trouble, host_of},
    embedding::{self, LoadedEncoder},
    evaluating, external,
    failure::Unfinished,
    link::{Halt, HaltFlag, Link, MESSAGE_BYTES},
    loaded::{Loaded, spec_of},
    process::usage,
    sync::{Listener, ListenerConfig, Seating, gang_of},
    training,
};

/// How long one lease call waits for work on the coordinator's side.
const LEASE_WAIT: Duration = Duration::from_secs(10);
/// Pause before the coordinator is called again after it did not answer.
const RECONNECT_PAUSE: Duration = Duration::from_millis(300);
/// A call that is not a long poll is given up after so long; a coordinator under load answers in milliseconds.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// How a worker is set up.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The coordinator, `http://HOST:PORT` or `https://HOST:PORT`.
    pub coordinator: String,
    /// What it takes to be let in there.
    pub access: Access,
    /// The worker's name; one that registers again under it takes its leases back from the dead.
    pub name: String,
    /// What to compute on.
    pub device: DeviceChoice,
    /// Threads to compute with.
    pub threads: usize,
    /// Where fetched bases are kept.
    pub cache: Option<PathBuf>,
    /// Work for this job alone (`job-7`).
    pub only_job: Option<String>,
    /// Where the members of a gang call this worker. Absent: loopback where the coordinator is there, else every
    /// interface; any free port.
    pub sync_listen: Option<SocketAddr>,
    /// What the others are told to call, `HOST:PORT` or `HOST`. Absent: the host that the coordinator sees.
    pub sync_advertise: Option<String>,
}

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No line can be made of the address and the access.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Who answers at the address is not to be talked to, or not like this.
    #[error("no line to {address}: {why}")]
    Distrusted {
        /// The coordinator's address.
        address: String,
        /// What is wrong, and what was expected.
        why: String,
    },
    /// Nobody could call this worker.
    #[error("the address for the other workers cannot be listened at: {0}")]
    Listen(std::io::Error),
    /// There is nothing to compute on.
    #[error(transparent)]
    NoDevice(KernelError),
    /// The device failed while it computed; a GPU's driver then takes no more work from this process.
    #[error("the device failed, and a new process is needed to use it again: {0}")]
    DeviceFailed(String),
    /// The coordinator will not have this worker.
    #[error("the coordinator refuses this worker: {0}")]
    Refused(String),
}

/// Works until `stop` completes; then finishes the update in hand, checkpoints, and gives the lease back.
///
/// # Errors
/// When the address is no address or cannot be listened at, the coordinator refuses the worker, or the worker may not
/// trust it. A coordinator that is away is waited for.
pub async fn work(config: WorkerConfig, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), WorkerError> {
    let channel = config.access.line(&config.coordinator)?;
    let device = Device::of(config.device, config.threads).map_err(WorkerError::NoDevice)?;
    let coordinator_host = host_of(&config.coordinator);
    let (stopping, stopped) = watch::channel(false);
    tokio::spawn(async move {
        stop.await;
        stopping.send_replace(true);
    });
    let (listen, advertise) = (config.sync_listen, config.sync_advertise.clone());
    let listener = Listener::open(&ListenerConfig { coordinator_host, listen, advertise }).await;
    let listener = Arc::new(listener.map_err(WorkerError::Listen)?);
    let mut worker = Worker { config, device, channel, stopped, listener, kept: Kept::default(), failed: None };
    worker.run().await
}

/// The worker's state between leases.
struct Worker {
    config: WorkerConfig,
    /// What computes.
    device: Device,
    channel: Channel,
    stopped: watch::Receiver<bool>,
    /// Where the members of a gang call.
    listener: Arc<Listener>,
    /// What the last lease needed, kept because the next one mostly wants it too.
    kept: Kept,
    /// How the device failed.
    failed: Option<String>,
}

/// What a worker keeps in memory between leases.
#[derive(Default)]
struct Kept {
    base: Option<Box<Loaded>>,
    encoder: Option<LoadedEncoder>,
}

/// What registration gave.
#[derive(Debug, Clone, Copy)]
struct Registration {
    worker_id: u64,
    heartbeat: Duration,
}

impl Worker {
    async fn run(&mut self) -> Result<(), WorkerError> {
        while !*self.stopped.borrow() {
            match self.register().await {
                Ok(registration) => self.serve(registration).await,
                Err(status) if is_refusal(&status) => return Err(WorkerError::Refused(status.message().to_owned())),
                Err(status) => self.trusts(&status).await?,
            }
            if let Some(message) = self.failed.take() {
                return Err(WorkerError::DeviceFailed(message));
            }
            self.pause().await;
        }
        Ok(())
    }

    /// Whether a call that was not answered is worth another try.
    async fn trusts(&self, status: &Status) -> Result<(), WorkerError> {
        let address = &self.config.coordinator;
        match self.config.access.trouble(address, status).await {
            Trouble::Away(why) => tracing::debug!("coordinator does not answer: {why}"),
            Trouble::Refused(why) => return Err(WorkerError::Distrusted { address: address.clone(), why }),
        }
        Ok(())
    }

    /// Sleeps a little, or until asked to stop.
    async fn pause(&self) {
        self.pause_for(RECONNECT_PAUSE).await;
    }

    async fn pause_for(&self, pause: Duration) {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopped.wait_for(|stop| *stop) => {}
        }
    }

    fn fleet(&self) -> FleetClient<Channel> {
        FleetClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    async fn register(&self) -> Result<Registration, Status> {
        let mut request = tonic::Request::new(RegisterRequest {
            name: self.config.name.clone(),
            version: VERSION.to_owned(),
            device: self.device.kind(),
            threads: u32::try_from(self.config.threads).unwrap_or(u32::MAX),
            sync_address: self.listener.advertised().to_owned(),
        });
        request.set_timeout(CALL_DEADLINE);
        let answer = self.fleet().register(request).await?.into_inner();
        tracing::info!("registered as worker-{}", answer.worker_id);
        let heartbeat = Duration::from_millis(u64::from(answer.heartbeat_ms.max(1)));
        Ok(Registration { worker_id: answer.worker_id, heartbeat })
    }

    /// Leases and computes until the coordinator no longer knows this registration, or a stop is asked for.
    async fn serve(&mut self, registration: Registration) {
        let mut heard = 0;
        loop {
            let mut stopped = self.stopped.clone();
            let leased = tokio::select! {
                leased = self.lease(registration, heard) => leased,
                _ = stopped.wait_for(|stop| *stop) => return,
            };
            match leased {
                Ok(Some(lease)) => {
                    heard = heard.max(lease.lease_id);
                    self.perform(registration, lease).await;
                    if self.failed.is_some() {
                        return;
                    }
                }
                Ok(None) => {}
                Err(status) if is_forgotten(&status) => return,
                Err(_) => self.pause().await,
            }
        }
    }

    async fn lease(&self, registration: Registration, heard_lease_id: u64) -> Result<Option<Lease>, Status> {
        let mut request = tonic::Request::new(LeaseRequest {
            worker_id: registration.worker_id,
            wait_ms: u32::try_from(LEASE_WAIT.as_millis()).expect("ten seconds"),
            only_job: self.config.only_job.clone().unwrap_or_default(),
            heard_lease_id,
        });
        request.set_timeout(LEASE_WAIT + CALL_DEADLINE);
        Ok(self.fleet().lease(request).await?.into_inner().lease)
    }

    /// Computes one lease, with heartbeats beside it, and reports its end.
    async fn perform(&mut self, registration: Registration, lease: Lease) {
        let halt = HaltFlag::default();
        let (progress, latest) = watch::channel(None);
        let seating = Seating::default();
        let beats = Beats { latest, halt: halt.clone(), seating: seating.clone() };
        let beating = tokio::spawn(beat(self.fleet(), registration, lease.lease_id, beats));
        let stopping = tokio::spawn(stop_with(self.stopped.clone(), halt.clone()));
        let link = Link {
            channel: self.channel.clone(),
            runtime: Handle::current(),
            worker_id: registration.worker_id,
            lease_id: lease.lease_id,
            job_id: lease.job_id.clone(),
            progress,
            halt,
            seating,
            listener: Arc::clone(&self.listener),
        };
        let (mut kept, config, device) = (std::mem::take(&mut self.kept), self.config.clone(), self.device.clone());
        let lease_id = lease.lease_id;
        let computing = tokio::task::spawn_blocking(move || {
            let result = compute(&mut kept, &config, &device, &lease, &link);
            (kept, result)
        });
        let unfinished = match computing.await {
            Ok((kept, result)) => {
                self.kept = kept;
                result.err()
            }
            Err(panic) => Some(Unfinished::bug(format!("the worker panicked: {}", panic_text(panic)))),
        };
        let pause = match &unfinished {
            Some(Unfinished::Released { pause, .. }) => *pause,
            _ => Duration::ZERO,
        };
        if let Some(unfinished) = unfinished {
            if let Unfinished::Failed { class: FailureClass::Device, message } = &unfinished {
                self.failed = Some(message.clone());
            }
            self.give_back(registration, lease_id, unfinished).await;
        }
        beating.abort();
        stopping.abort();
        self.pause_for(pause).await;
    }

    /// Tells the coordinator that a lease ends without a result.
    async fn give_back(&self, registration: Registration, lease_id: u64, unfinished: Unfinished) {
        let report = match unfinished {
            Unfinished::Abandoned => return,
            Unfinished::Stopping => Report::Released(Released { reason: "the worker was asked to stop".into() }),
            Unfinished::Released { reason, .. } => {
                tracing::info!("lease {lease_id} is given back: {reason}");
                Report::Released(Released { reason })
            }
            Unfinished::Failed { class, message } => {
                tracing::info!("{message}"); // the coordinator tells the person
                Report::Failed(Failed { class: class.into(), message })
            }
        };
        let mut request = tonic::Request::new(ReportRequest {
            worker_id: registration.worker_id,
            lease_id,
            base_digest: String::new(),
            report: Some(report),
        });
        request.set_timeout(CALL_DEADLINE);
        if let Err(status) = self.fleet().report(request).await {
            tracing::warn!("the coordinator did not take the report: {}", status.message());
        }
    }
}

/// Whether another try would be refused alike.
fn is_refusal(status: &Status) -> bool {
    use Code::{FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated};
    matches!(status.code(), FailedPrecondition | InvalidArgument | PermissionDenied | Unauthenticated)
}

/// Whether the coordinator does not know this registration, or not this worker's access token any more.
fn is_forgotten(status: &Status) -> bool {
    matches!(status.code(), Code::FailedPrecondition | Code::NotFound | Code::Unauthenticated)
}

/// The computing thread: what the task needs in memory, then the task.
fn compute(
    kept: &mut Kept,
    config: &WorkerConfig,
    device: &Device,
    lease: &Lease,
    link: &Link,
) -> Result<(), Unfinished> {
    let base = |kept: &mut Kept| Loaded::for_lease(kept.base.take(), config, device, lease, link);
    match &lease.task {
        Some(lease::Task::Embed(task)) => embedding::embed(&mut kept.encoder, config, lease, task, link),
        Some(lease::Task::Train(task)) => {
            let mut loaded = base(kept)?;
            let result = training::train(&mut loaded, lease, task, link);
            kept.base = Some(loaded);
            result
        }
        Some(lease::Task::Evaluate(task)) => {
            // A base behind an endpoint is asked; the one in memory, if any, stays for the lease after.
            if let Some(endpoint) = spec_of(lease)?.external() {
                return external::evaluate(&endpoint, config, lease, task, link);
            }
            let mut loaded = base(kept)?;
            let result = evaluating::evaluate(&mut loaded, lease, task, link);
            kept.base = Some(loaded);
            result
        }
        None => Err(Unfinished::bug(format!("lease {} carries a task this worker does not know", lease.lease_id))),
    }
}

/// What heartbeats carry, and where what they hear goes.
struct Beats {
    latest: watch::Receiver<Option<insula_proto::v1::Progress>>,
    halt: HaltFlag,
    seating: Seating,
}

/// Renews the lease with the latest progress until aborted, at once where that is asked for; raises the flag once the lease
/// is gone.
async fn beat(mut fleet: FleetClient<Channel>, registration: Registration, lease_id: u64, beats: Beats) {
    let Beats { latest, halt, seating } = beats;
    let mut ticks = tokio::time::interval(registration.heartbeat);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = seating.asked() => {}
        }
        let progress = latest.borrow().clone();
        let (rss_bytes, cpu_seconds) = usage();
        let mut request = tonic::Request::new(HeartbeatRequest {
            worker_id: registration.worker_id,
            lease_id,
            progress,
            seated: seating.seated(),
            generation: seating.generation(),
            metrics: Some(WorkerMetrics { rss_bytes, cpu_seconds }),
        });
        request.set_timeout(CALL_DEADLINE);
        match fleet.heartbeat(request).await.map(tonic::Response::into_inner) {
            Ok(answer) if answer.stop => halt.raise(Halt::Abandon),
            Ok(answer) => {
                match answer.gang.map(|gang| gang_of(gang, lease_id)).transpose() {
                    Ok(gang) => gang.into_iter().for_each(|gang| seating.hear(gang)),
                    Err(error) => tracing::error!("the coordinator's {error}"),
                }
                seating.answered(answer.recalled);
            }
            Err(status) if status.code() == Code::FailedPrecondition => halt.raise(Halt::Abandon),
            Err(_) => {}
        }
    }
}

async fn stop_with(mut stopped: watch::Receiver<bool>, halt: HaltFlag) {
    if stopped.wait_for(|stop| *stop).await.is_ok() {
        halt.raise(Halt::Stop);
    }
}

fn panic_text(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(payload) => match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(payload) => payload.downcast_ref::<&str>().map_or("no message".into(), |t| (*t).to_owned()),
        },
        Err(error) => error.to_string(),
    }
}
