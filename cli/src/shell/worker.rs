//! `insula worker`: computes for a coordinator until asked to stop.

use std::{net::SocketAddr, path::PathBuf};

use insula_worker::{
    base::fetch::default_cache_dir,
    device::{DeviceChoice, UnknownDevice},
    shell::{WorkerConfig, WorkerError, work},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{SignalKind, signal},
};

use super::{
    client::{USUAL_ADDRESS, access},
    logging,
    run::job_name,
    settings,
};
use crate::{
    args::{AccessArgs, WorkerArgs},
    failure::Failure,
};

/// What configs/worker.toml may set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkerSettings {
    /// The coordinator, `http://HOST:PORT` or `https://HOST:PORT`.
    coordinator: String,
    /// The CA that its certificate must be signed by; empty: those the system knows. From the settings file's folder.
    ca: PathBuf,
    /// The file with its access token; empty: none. From the settings file's folder.
    token_file: PathBuf,
    /// The worker's name; empty: made of the machine's and the process's number.
    name: String,
    /// What to compute on: auto, cpu, cuda or cuda:N.
    device: String,
    /// Threads to compute with; 0: all cores.
    threads: usize,
    /// Where the other workers of a training call this one, `IP:PORT`; empty: as the coordinator's address suggests.
    sync_listen: String,
    /// What the others are told to call, `HOST:PORT` or `HOST`; empty: the host that the coordinator sees.
    sync_advertise: String,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            coordinator: USUAL_ADDRESS.into(),
            ca: PathBuf::new(),
            token_file: PathBuf::new(),
            name: String::new(),
            device: DeviceChoice::Auto.to_string(),
            threads: 0,
            sync_listen: String::new(),
            sync_advertise: String::new(),
        }
    }
}

impl WorkerSettings {
    /// The settings that are meant from the file's folder.
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.ca, &mut self.token_file]
    }
}

/// Works until Ctrl-C, SIGTERM, or (attached) the end of standard input.
pub async fn run(args: WorkerArgs, verbose: u8) -> Result<(), Failure> {
    let _log = logging::start(verbose, None);
    let settings: WorkerSettings =
        settings::plain(&WorkerSettings::default(), args.config.as_deref(), &args.sets, WorkerSettings::paths)?;
    let access = access(&AccessArgs {
        ca: args.access.ca.or_else(|| settings::named(settings.ca)),
        token_file: args.access.token_file.or_else(|| settings::named(settings.token_file)),
    })?;
    let name = args.name.unwrap_or(settings.name);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = match args.threads.unwrap_or(settings.threads) {
        0 => cores,
        threads => threads,
    };
    let config = WorkerConfig {
        coordinator: args.coordinator.unwrap_or(settings.coordinator),
        access,
        device: match args.device {
            Some(device) => device,
            None => settings.device.parse().map_err(|unknown: UnknownDevice| Failure::Input(unknown.to_string()))?,
        },
        name: if name.is_empty() { own_name() } else { name },
        threads,
        cache: default_cache_dir(),
        only_job: args.job.as_deref().map(job_name).transpose()?,
        sync_listen: listen_address(&settings.sync_listen)?,
        sync_advertise: Some(settings.sync_advertise).filter(|named| !named.is_empty()),
    };
    let attached = args.attached;
    let stop = async move {
        tokio::select! {
            () = asked_to_stop() => {}
            () = standard_input_ends(), if attached => {}
        }
    };
    work(config, stop).await.map_err(|error| match error {
        WorkerError::Access(_) | WorkerError::Distrusted { .. } | WorkerError::Listen(_) | WorkerError::NoDevice(_) => {
            Failure::Input(error.to_string())
        }
        WorkerError::Refused(_) => Failure::Operation(error.to_string()),
        WorkerError::DeviceFailed(_) => Failure::Device(error.to_string()),
    })
}

/// A name that no other process of the fleet has: of two workers of one name each takes the other's leases. Processes of
/// two machines may well have one number, and all containers' first ones do.
#[expect(clippy::disallowed_methods, reason = "the kernel says what this machine is called")]
fn own_name() -> String {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let machine = if machine.trim().is_empty() { "worker-of-process" } else { machine.trim() };
    format!("{machine}-{}", std::process::id())
}

/// The address of `sync_listen`, where one is given.
fn listen_address(text: &str) -> Result<Option<SocketAddr>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |_| Failure::Input(format!("sync_listen '{text}': expected IP:PORT, such as 0.0.0.0:7000"));
    text.parse().map(Some).map_err(wrong)
}

/// Completes on Ctrl-C or SIGTERM.
pub async fn asked_to_stop() {
    let mut terminate = signal(SignalKind::terminate()).expect("a handler for SIGTERM can be installed");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

async fn standard_input_ends() {
    let mut ignored = [0; 64];
    let mut input = tokio::io::stdin();
    while input.read(&mut ignored).await.is_ok_and(|n| n > 0) {}
}
