//! Coordinators and workers as processes of their own, ended with the test whatever becomes of it.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::wait_for;

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
