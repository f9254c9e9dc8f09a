//! Local workers as child processes: started together, started again when they die, stopped together.

use std::{process::Stdio, time::Duration};

use tokio::{
    process::{Child, Command},
    sync::watch,
    task::JoinSet,
};

use crate::failure::Failure;

/// A worker that died is started again after so long.
const RESTART_PAUSE: Duration = Duration::from_millis(300);
/// A worker that keeps dying is given up after so many starts; the coordinator's own budget mostly ends the job first.
const STARTS: u32 = 25;
/// A worker asked to stop finishes its update and its checkpoint first; after so long it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(120);

/// What the children are told.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The coordinator, `http://HOST:PORT`.
    pub coordinator: String,
    /// The only job they work for.
    pub job: String,
    /// How many.
    pub workers: u32,
    /// Threads of each; `None`: the cores shared between them.
    pub threads: Option<usize>,
    /// How much they say: the parent's own verbosity.
    pub verbose: u8,
}

/// The children.
pub struct Workers {
    tasks: JoinSet<Result<(), Failure>>,
    stop: watch::Sender<bool>,
}

impl Workers {
    /// Starts them.
    pub fn start(launch: &Launch) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for place in 0..launch.workers {
            tasks.spawn(keep_alive(launch.clone(), place, stopped.clone()));
        }
        Self { tasks, stop }
    }

    /// Completes when one of them was given up.
    pub async fn given_up(&mut self) -> Failure {
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(Err(failure)) => return failure,
                Ok(Ok(())) | Err(_) => {}
            }
        }
        std::future::pending().await
    }

    /// Asks them to stop and waits until they have.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Keeps one worker alive until stopped.
async fn keep_alive(launch: Launch, place: u32, mut stopped: watch::Receiver<bool>) -> Result<(), Failure> {
    for _ in 0..STARTS {
        let mut child = spawn(&launch, place)?;
        tokio::select! {
            ended = child.wait() => match ended {
                Ok(status) if status.code() == Some(2) => {
                    return Err(Failure::Operation(format!("worker local-{place} could not start: see above")));
                }
                Ok(status) => tracing::warn!("worker local-{place} ended ({status}); starting it again"),
                Err(error) => tracing::warn!("worker local-{place}: {error}"),
            },
            _ = stopped.wait_for(|stop| *stop) => return stop(child).await,
        }
        tokio::time::sleep(RESTART_PAUSE).await;
    }
    Err(Failure::Operation(format!("worker local-{place} ended {STARTS} times; given up")))
}

/// Closes the child's standard input, which asks it to stop, and waits.
async fn stop(mut child: Child) -> Result<(), Failure> {
    drop(child.stdin.take());
    if tokio::time::timeout(STOP_PATIENCE, child.wait()).await.is_err() {
        tracing::warn!("a worker did not stop within {} s; killing it", STOP_PATIENCE.as_secs());
        let _ = child.kill().await;
    }
    Ok(())
}

fn spawn(launch: &Launch, place: u32) -> Result<Child, Failure> {
    let program = std::env::current_exe().map_err(|e| Failure::operation("find this program's own file", e))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = launch.threads.unwrap_or_else(|| (cores / launch.workers.max(1) as usize).max(1));
    let mut command = Command::new(program);
    command.args(["worker", "--attached", "--coordinator", &launch.coordinator, "--job", &launch.job]);
    command.args(["--name", &format!("local-{place}"), "--threads", &threads.to_string()]);
    command.args(std::iter::repeat_n("-v", launch.verbose.into()));
    // A process group of its own: Ctrl-C reaches the parent alone, which then stops its workers politely.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    command.spawn().map_err(|e| Failure::operation(format!("start worker local-{place}"), e))
}
