//! Prompts are tokenised once by a whole fleet, and what the cache lost is made again.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use support::{insula, succeed, tiny_job, wait_for};

fn adapter(out: &Path) -> Vec<u8> {
    fs::read(out.join("adapter/adapter_model.safetensors")).unwrap()
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(home: &Path, arguments: &[&str], log: &str) -> Running {
    let log = fs::File::create(home.join(log)).unwrap();
    let mut command = insula(home);
    command.args(arguments).env("INSULA_LOG", "warn,insula_worker=debug").env("NO_COLOR", "1");
    Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
}

/// How often each shard's tokens were `what` ("made", "from the cache"), in all workers' logs.
fn told(home: &Path, what: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for log in ["w1.log", "w2.log"] {
        let text = fs::read_to_string(home.join(log)).unwrap();
        let shards = text.lines().filter_map(|line| line.split_once("tokens of shard ")?.1.strip_suffix(what));
        shards.for_each(|shard| *counts.entry(shard.trim().to_owned()).or_default() += 1);
    }
    counts
}

/// The artifacts that hold tokens.
fn cached(home: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(home.join("state/artifacts/sha256")).unwrap().flatten();
    let files = folders.flat_map(|folder| fs::read_dir(folder.path()).unwrap().flatten().map(|file| file.path()));
    files.filter(|file| fs::read(file).unwrap().starts_with(b"insula tokens")).collect()
}

#[test]
fn two_workers_and_two_jobs_tokenise_every_shard_once_and_a_lost_cache_is_made_again() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    succeed(insula(home).args(["run", "job.toml", "--out", "alone", "--state", "alone-state"]));
    let _coordinator = start(home, &["coordinator", "--state", "state", "--listen", "127.0.0.1:0"], "coordinator.log");
    let address = wait_for("the coordinator", || {
        let address = fs::read_to_string(home.join("state/address")).ok()?.trim().to_owned();
        std::net::TcpStream::connect(address.strip_prefix("http://")?).ok().map(|_| address)
    });
    let job = |name: &str, seed: &str| {
        let submit = ["submit", "job.toml", "--request-id", name, "--set", seed, "--coordinator", &address];
        succeed(insula(home).args(submit));
    };
    let finished = |job: &str| {
        succeed(insula(home).args(["watch", job, "--coordinator", &address]));
        succeed(insula(home).args(["report", job, "--out", job, "--coordinator", &address]));
        adapter(&home.join(job))
    };
    job("one", "seed=42");
    job("two", "seed=7");
    let worker = |name: &str| {
        let arguments = ["worker", "--coordinator", &address, "--name", name, "--threads", "1"];
        start(home, &arguments, &format!("{name}.log"))
    };
    let _workers = [worker("w1"), worker("w2")];
    let alone = adapter(&home.join("alone"));
    assert_eq!(finished("job-1"), alone, "the adapter does not depend on whose tokens it was trained on");
    assert_ne!(finished("job-2"), alone);
    let made = told(home, "made");
    assert_eq!(made.values().collect::<Vec<_>>(), [&1, &1, &1], "train, dev and test, each once: {made:?}");
    assert!(told(home, "from the cache").values().sum::<usize>() >= 3, "the other job's tasks found them");

    let lost = cached(home);
    assert_eq!(lost.len(), 3);
    fs::remove_file(&lost[0]).unwrap();
    lost[1..].iter().for_each(|file| fs::write(file, b"insula tokens 1\nno more").unwrap());
    job("three", "seed=42");
    assert_eq!(finished("job-3"), alone);
    assert_eq!(told(home, "made").values().collect::<Vec<_>>(), [&2, &2, &2], "each once more");
    let log = succeed(insula(home).args(["logs", "job-3", "--coordinator", &address]));
    assert!(log.contains("made again") && log.contains("is damaged"), "{log}");
}
