//! A coordinator as a child process, and what the system tells of it.

use std::{path::Path, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdout, Command},
};

use crate::failure::Failure;

/// Parts of a second in which Linux tells processor time to programs, whatever the kernel counts in.
const TICKS_PER_S: f64 = 100.0;

/// Bytes in a kB of `/proc`.
const KB: f64 = 1024.0;

/// A running coordinator; killed when it is dropped.
pub struct Coordinator {
    child: Child,
    /// Where it listens.
    pub url: String,
    /// Held, so that the child can write there.
    _out: BufReader<ChildStdout>,
}

impl Coordinator {
    /// Starts this program as a coordinator over a state directory, and waits until it listens.
    ///
    /// # Errors
    /// When it ends instead.
    pub async fn start(state: &Path) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|e| Failure::operation("find this program's own file", e))?;
        let mut command = Command::new(program);
        command.args(["coordinator", "--listen", "127.0.0.1:0", "--state"]).arg(state).env("INSULA_LOG", "warn");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| Failure::operation("start the coordinator", e))?;
        let mut out = BufReader::new(child.stdout.take().expect("the child's standard output is a pipe"));
        let mut line = String::new();
        out.read_line(&mut line).await.map_err(|e| Failure::operation("read the coordinator's address", e))?;
        // "coordinator at http://127.0.0.1:PORT, state in DIR"
        let url = line.split_whitespace().find_map(|word| word.strip_suffix(',').filter(|w| w.starts_with("http")));
        let url = url.ok_or_else(|| Failure::Operation("the coordinator did not start: see above".into()))?.to_owned();
        Ok(Self { child, url, _out: out })
    }

    /// Ends it as a power cut would: SIGKILL.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(mut self) -> Result<(), Failure> {
        self.child.kill().await.map_err(|e| Failure::operation("kill the coordinator", e))
    }

    /// Processor time it has taken; `None` where the system has no `/proc`.
    pub fn cpu_seconds(&self) -> Option<f64> {
        let stat = self.proc("stat")?;
        // The second field is the program's name in parentheses, which may hold anything; utime and stime are the 14th
        // and 15th.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<f64>().ok();
        Some((ticks()? + ticks()?) / TICKS_PER_S)
    }

    /// Memory it has resident now.
    pub fn rss_bytes(&self) -> Option<f64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kb| kb * KB)
    }

    #[expect(clippy::disallowed_methods, reason = "reads what the system tells of the child")]
    fn proc(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id()?)).ok()
    }
}
