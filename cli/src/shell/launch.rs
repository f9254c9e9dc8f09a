//! Local workers as child processes: started together, started again when they die, stopped together.

use std::{process::Stdio, time::Duration};

use insula_kernels::Cuda;
use insula_worker::device::DeviceChoice;
use tokio::{
    process::{Child, ChildStdin, Command},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// A worker that died is started again after so long.
const RESTART_PAUSE: Duration = Duration::from_millis(300);
/// A worker that lived for so long was a sound one, however it died.
const SOUND: Duration = Duration::from_secs(5);
/// A worker is given up after so many deaths in a row before it was sound: its program cannot run here.
const EARLY_DEATHS: u32 = 30;
/// A worker asked to stop finishes its update and its checkpoint first; after so long it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(120);

/// What the children are told.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The coordinator, `http://HOST:PORT`.
    pub coordinator: String,
    /// The only job they work for; `None`: any.
    pub job: Option<String>,
    /// How many.
    pub workers: u32,
    /// What they compute on.
    pub device: DeviceChoice,
    /// Threads of each; `None`: the cores shared between them.
    pub threads: Option<usize>,
    /// How much they say: the parent's own verbosity.
    pub verbose: u8,
}

/// The children.
pub struct Workers {
    tasks: JoinSet<Result<(), Failure>>,
    stop: CancellationToken,
}

impl Workers {
    /// Starts them.
    pub fn start(launch: &Launch) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for place in 0..launch.workers {
            tasks.spawn(keep_alive(launch.clone(), place, stop.clone()));
        }
        Self { tasks, stop }
    }

    /// Completes when one of them was given up.
    pub async fn given_up(&mut self) -> Failure {
        while let Some(ended) = self.tasks.join_next().await {
            if let Ok(Err(failure)) = ended {
                return failure;
            }
        }
        std::future::pending().await
    }

    /// Asks them to stop and waits until they have.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Keeps one worker alive until stopped.
async fn keep_alive(launch: Launch, place: u32, stop: CancellationToken) -> Result<(), Failure> {
    let mut early_deaths = 0;
    while early_deaths < EARLY_DEATHS {
        let began = Instant::now();
        let (mut child, input) = spawn(&launch, place)?;
        tokio::select! {
            ended = child.wait() => match ended {
                Ok(status) if matches!(status.code(), Some(1 | 2)) => {
                    return Err(Failure::Operation(format!("worker local-{place} could not work: see above")));
                }
                Ok(status) => tracing::warn!("worker local-{place} ended ({status}); starting it again"),
                Err(error) => tracing::warn!("worker local-{place}: {error}"),
            },
            () = stop.cancelled() => return end(child, input).await,
        }
        early_deaths = if began.elapsed() < SOUND { early_deaths + 1 } else { 0 };
        tokio::time::sleep(RESTART_PAUSE).await;
    }
    Err(Failure::Operation(format!("worker local-{place} died {EARLY_DEATHS} times right after its start; given up")))
}

/// Closes the child's standard input, which asks it to stop, and waits.
async fn end(mut child: Child, input: ChildStdin) -> Result<(), Failure> {
    drop(input);
    if tokio::time::timeout(STOP_PATIENCE, child.wait()).await.is_err() {
        tracing::warn!("a worker did not stop within {} s; killing it", STOP_PATIENCE.as_secs());
        let _ = child.kill().await;
    }
    Ok(())
}

/// A worker's own device: of GPUs, the workers take one each, in turn; from the one that was named on, if one was.
fn device_of(launch: &Launch, place: u32) -> Result<DeviceChoice, Failure> {
    let gpus = || Cuda::count().map_err(|error| Failure::Operation(error.to_string()));
    match launch.device {
        DeviceChoice::Cpu => Ok(DeviceChoice::Cpu),
        DeviceChoice::Cuda(first) => {
            let from_it = gpus()?.saturating_sub(first).max(1);
            Ok(DeviceChoice::Cuda(first + place as usize % from_it))
        }
        DeviceChoice::Auto => match gpus() {
            Ok(0) => Ok(DeviceChoice::Cpu),
            Ok(gpus) if gpus > 1 && Cuda::has_libraries() => Ok(DeviceChoice::Cuda(place as usize % gpus)),
            // A worker that is left the choice takes the CPU where the GPU is of no use, and says why.
            Ok(_) | Err(_) => Ok(DeviceChoice::Auto),
        },
    }
}

/// The child, and its standard input apart: waiting for a child would close it.
fn spawn(launch: &Launch, place: u32) -> Result<(Child, ChildStdin), Failure> {
    let program = std::env::current_exe().map_err(|e| Failure::operation("find this program's own file", e))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = launch.threads.unwrap_or_else(|| (cores / launch.workers.max(1) as usize).max(1));
    let mut command = Command::new(program);
    command.args(["worker", "--attached", "--coordinator", &launch.coordinator]);
    command.args(launch.job.iter().flat_map(|job| ["--job", job]));
    command.args(["--name", &format!("local-{place}"), "--threads", &threads.to_string()]);
    command.args(["--device", &device_of(launch, place)?.to_string()]);
    command.args(std::iter::repeat_n("-v", launch.verbose.into()));
    // What is meant for another coordinator is nothing to this one.
    for name in ["INSULA_CA", "INSULA_TOKEN_FILE", "INSULA_TOKEN"] {
        command.env_remove(name);
    }
    // A process group of its own: Ctrl-C reaches the parent alone, which then stops its workers politely.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| Failure::operation(format!("start worker local-{place}"), e))?;
    let input = child.stdin.take().expect("the child's standard input is a pipe");
    Ok((child, input))
}
