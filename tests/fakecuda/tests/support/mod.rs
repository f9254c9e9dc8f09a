//! Tests whose body runs in a process of its own, with the stand-in in place of the CUDA libraries: the loader reads
//! `LD_LIBRARY_PATH` only when a process starts.
#![expect(clippy::disallowed_methods, reason = "the child learns from its environment which part it plays")]
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cudarc::driver::DriverError;

/// Set in a child: the part that it plays.
const PART: &str = "FAKECUDA_TEST_PART";
/// Longer than any child takes on a busy machine; one that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A test and its processes.
pub struct Stage {
    test: &'static str,
    /// Made by the parent; its processes learn its place.
    folder: OnceCell<tempfile::TempDir>,
}

/// What a child printed.
pub struct Said {
    pub out: String,
    pub err: String,
    pub success: bool,
}

/// Runs `body` in a child of the test called `test`, with these settings, and returns what it printed. In the child
/// itself this does not return.
pub fn on_fakecuda(test: &'static str, settings: &[(&str, &str)], body: impl FnOnce()) -> Said {
    let stage = Stage::new(test);
    stage.play("only", body);
    let said = finish(stage.start("only", settings));
    assert!(said.success, "{}\n{}", said.out, said.err);
    said
}

impl Stage {
    pub fn new(test: &'static str) -> Stage {
        Stage { test, folder: OnceCell::new() }
    }

    fn folder(&self) -> &Path {
        self.folder.get_or_init(|| tempfile::tempdir().unwrap()).path()
    }

    /// A folder that all processes of the test see: the parent's.
    pub fn path(&self, name: &str) -> PathBuf {
        match std::env::var("FAKECUDA_TEST_FOLDER") {
            Ok(folder) => Path::new(&folder).join(name),
            Err(_) => self.folder().join(name),
        }
    }

    /// In the child with this part: does `body` and ends the process.
    pub fn play(&self, part: &str, body: impl FnOnce()) {
        if std::env::var(PART).is_ok_and(|own| own == part) {
            body();
            println!("played {part}");
            std::process::exit(0);
        }
    }

    /// Starts the child with this part.
    pub fn start(&self, part: &str, settings: &[(&str, &str)]) -> Child {
        assert!(std::env::var(PART).is_err(), "a child came past its part");
        let libraries = insula_fakecuda::install(&self.folder().join("lib")).unwrap();
        Command::new(std::env::current_exe().unwrap())
            .args([self.test, "--exact", "--nocapture"])
            .env("LD_LIBRARY_PATH", libraries)
            .env("FAKECUDA_TEST_FOLDER", self.folder())
            .env(PART, part)
            .envs(settings.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// Waits for a child, which must not hang.
pub fn finish(mut child: Child) -> Said {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            let said = collect(child);
            panic!("a child hangs\n{}\n{}", said.out, said.err);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    collect(child)
}

fn collect(child: Child) -> Said {
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let [out, err] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Said { success: status.success() && out.contains("played "), out, err }
}

/// Waits until a condition holds; fails after `PATIENCE`.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The error's name, as `cuGetErrorName` says.
pub fn name_of<T>(result: Result<T, DriverError>) -> String {
    result.map(drop).expect_err("an error was due").error_name().unwrap().to_string_lossy().into_owned()
}

/// Reads a file that another process has finished to write: writers rename.
pub fn read_when_there(path: &Path) -> Vec<u8> {
    until(&format!("{} exists", path.display()), || path.exists());
    std::fs::read(path).unwrap()
}

/// Writes a file so that readers see all of it or nothing.
pub fn write_whole(path: &Path, bytes: &[u8]) {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, bytes).unwrap();
    std::fs::rename(partial, path).unwrap();
}
