//! A worker's life: find the coordinator, register, lease, compute, report, again.

use std::{future::Future, path::PathBuf, time::Duration};

use insula_proto::{
    VERSION,
    v1::{
        Failed, HeartbeatRequest, Lease, LeaseRequest, RegisterRequest, Released, ReportRequest,
        fleet_client::FleetClient, lease, report_request::Report,
    },
};
use tokio::{runtime::Handle, sync::watch};
use tonic::{Code, Status};

use super::{
    channel::{Access, AccessError, Channel, Trouble},
    embedding::{self, LoadedEncoder},
    evaluating, external,
    failure::Unfinished,
    link::{Halt, HaltFlag, Link, MESSAGE_BYTES},
    loaded::{Loaded, spec_of},
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
    /// Threads to compute with.
    pub threads: usize,
    /// Where fetched bases are kept.
    pub cache: Option<PathBuf>,
    /// Work for this job alone (`job-7`).
    pub only_job: Option<String>,
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
    /// The coordinator will not have this worker.
    #[error("the coordinator refuses this worker: {0}")]
    Refused(String),
}

/// Works until `stop` completes; then finishes the update in hand, checkpoints, and gives the lease back.
///
/// # Errors
/// When the address is no address, the coordinator refuses the worker, or the worker may not trust it. A coordinator
/// that is away is waited for.
pub async fn work(config: WorkerConfig, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), WorkerError> {
    let channel = config.access.line(&config.coordinator)?;
    let (stopping, stopped) = watch::channel(false);
    tokio::spawn(async move {
        stop.await;
        stopping.send_replace(true);
    });
    let mut worker = Worker { config, channel, stopped, kept: Kept::default() };
    worker.run().await
}

/// The worker's state between leases.
struct Worker {
    config: WorkerConfig,
    channel: Channel,
    stopped: watch::Receiver<bool>,
    /// What the last lease needed, kept because the next one mostly wants it too.
    kept: Kept,
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
        let mut stopped = self.stopped.clone();
        tokio::select! {
            () = tokio::time::sleep(RECONNECT_PAUSE) => {}
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
            device: "cpu".to_owned(),
            threads: u32::try_from(self.config.threads).unwrap_or(u32::MAX),
            sync_address: String::new(),
        });
        request.set_timeout(CALL_DEADLINE);
        let answer = self.fleet().register(request).await?.into_inner();
        tracing::info!("registered as worker-{}", answer.worker_id);
        let heartbeat = Duration::from_millis(u64::from(answer.heartbeat_ms.max(1)));
        Ok(Registration { worker_id: answer.worker_id, heartbeat })
    }

    /// Leases and computes until the coordinator no longer knows this registration, or a stop is asked for.
    async fn serve(&mut self, registration: Registration) {
        loop {
            let mut stopped = self.stopped.clone();
            let leased = tokio::select! {
                leased = self.lease(registration) => leased,
                _ = stopped.wait_for(|stop| *stop) => return,
            };
            match leased {
                Ok(Some(lease)) => self.perform(registration, lease).await,
                Ok(None) => {}
                Err(status) if is_forgotten(&status) => return,
                Err(_) => self.pause().await,
            }
        }
    }

    async fn lease(&self, registration: Registration) -> Result<Option<Lease>, Status> {
        let mut request = tonic::Request::new(LeaseRequest {
            worker_id: registration.worker_id,
            wait_ms: u32::try_from(LEASE_WAIT.as_millis()).expect("ten seconds"),
            only_job: self.config.only_job.clone().unwrap_or_default(),
            heard_lease_id: u64::MAX,
        });
        request.set_timeout(LEASE_WAIT + CALL_DEADLINE);
        Ok(self.fleet().lease(request).await?.into_inner().lease)
    }

    /// Computes one lease, with heartbeats beside it, and reports its end.
    async fn perform(&mut self, registration: Registration, lease: Lease) {
        let halt = HaltFlag::default();
        let (progress, latest) = watch::channel(None);
        let beating = tokio::spawn(beat(self.fleet(), registration, lease.lease_id, latest, halt.clone()));
        let stopping = tokio::spawn(stop_with(self.stopped.clone(), halt.clone()));
        let link = Link {
            channel: self.channel.clone(),
            runtime: Handle::current(),
            worker_id: registration.worker_id,
            lease_id: lease.lease_id,
            job_id: lease.job_id.clone(),
            progress,
            halt,
        };
        let (mut kept, config) = (std::mem::take(&mut self.kept), self.config.clone());
        let lease_id = lease.lease_id;
        let computing = tokio::task::spawn_blocking(move || {
            let result = compute(&mut kept, &config, &lease, &link);
            (kept, result)
        });
        let unfinished = match computing.await {
            Ok((kept, result)) => {
                self.kept = kept;
                result.err()
            }
            Err(panic) => Some(Unfinished::bug(format!("the worker panicked: {}", panic_text(panic)))),
        };
        if let Some(unfinished) = unfinished {
            self.give_back(registration, lease_id, unfinished).await;
        }
        beating.abort();
        stopping.abort();
    }

    /// Tells the coordinator that a lease ends without a result.
    async fn give_back(&self, registration: Registration, lease_id: u64, unfinished: Unfinished) {
        let report = match unfinished {
            Unfinished::Abandoned => return,
            Unfinished::Stopping => Report::Released(Released { reason: "the worker was asked to stop".into() }),
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
fn compute(kept: &mut Kept, config: &WorkerConfig, lease: &Lease, link: &Link) -> Result<(), Unfinished> {
    let base = |kept: &mut Kept| Loaded::for_lease(kept.base.take(), config, lease, link);
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

/// Renews the lease with the latest progress until aborted; raises the flag once the lease is gone.
async fn beat(
    mut fleet: FleetClient<Channel>,
    registration: Registration,
    lease_id: u64,
    latest: watch::Receiver<Option<insula_proto::v1::Progress>>,
    halt: HaltFlag,
) {
    let mut ticks = tokio::time::interval(registration.heartbeat);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let progress = latest.borrow().clone();
        let mut request = tonic::Request::new(HeartbeatRequest {
            worker_id: registration.worker_id,
            lease_id,
            progress,
            ..Default::default()
        });
        request.set_timeout(CALL_DEADLINE);
        match fleet.heartbeat(request).await {
            Ok(answer) if answer.get_ref().stop => halt.raise(Halt::Abandon),
            Err(status) if status.code() == Code::FailedPrecondition => halt.raise(Halt::Abandon),
            Ok(_) | Err(_) => {}
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
