//! Coordinators and workers as processes of their own, ended with the test whatever becomes of it.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::{insula, succeed, wait_for};

/// A process that is killed when it is dropped.
pub struct Started(Child);

impl Started {
    /// Starts it, silent.
    pub fn new(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Ends it on the spot, as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The URL that the coordinator over a state directory left there, once it can be connected to.
pub fn address(home: &Path, state: &str) -> String {
    wait_for("the coordinator", || {
        let text = fs::read_to_string(home.join(state).join("address")).ok()?;
        let url = text.lines().next()?.to_owned();
        TcpStream::connect(url.split_once("://")?.1).ok()?;
        Some(url)
    })
}

/// What a job's workers logged so far, as the coordinator keeps it: asking it would need it alive.
pub fn log(home: &Path, state: &str) -> String {
    let files = fs::read_dir(home.join(state).join("logs")).into_iter().flatten().flatten();
    files.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect()
}

/// What a job leaves that must not depend on what happened to it.
#[derive(PartialEq, Eq)]
pub struct Results {
    adapter: Vec<u8>,
    predictions: Vec<u8>,
}

impl Results {
    /// Those in a folder that `--out` named.
    pub fn of(out: &Path) -> Self {
        let read = |file: &str| fs::read(out.join(file)).unwrap();
        Self { adapter: read("adapter/adapter_model.safetensors"), predictions: read("predictions.jsonl") }
    }

    /// Those of `home/job.toml`, run by one worker that nothing happens to.
    pub fn undisturbed(home: &Path, more: &[&str]) -> Self {
        let run = ["run", "job.toml", "--workers", "1", "--out", "calm", "--state", "calm-state"];
        succeed(insula(home).args(run).args(more));
        Self::of(&home.join("calm"))
    }
}
