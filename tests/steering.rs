//! What a person asks and tells a coordinator about jobs that are there: explain, resume, pin, prune, workers.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::fs;

use serde_json::Value;
use support::{
    fail,
    fleet::{Results, Started, address},
    insula, succeed, tiny_job, wait_for,
};

const STATE: [&str; 2] = ["--state", "state"];

#[test]
fn a_job_that_waits_is_explained_pauses_when_asked_and_ends_as_if_it_had_not() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    let calm = Results::undisturbed(home, &[]);
    let _coordinator = Started::new(insula(home).args(["coordinator", "--listen", "127.0.0.1:0"]).args(STATE));
    let url = address(home, "state");
    let ask = |command: &[&str]| succeed(insula(home).args(command).args(STATE));
    ask(&["submit", "job.toml", "--set", "schedule.pause_epoch=1"]);
    let said = ask(&["explain", "job-1"]);
    assert!(said.contains("no worker is here: it starts when one comes"), "{said}");
    let worker = ["worker", "--coordinator", &url, "--name", "ada", "--threads", "1"];
    let _worker = Started::new(insula(home).args(worker));
    let said = wait_for("the pause", || Some(ask(&["explain", "job-1"])).filter(|said| said.contains("pauses")));
    assert!(said.contains("pauses after epoch 1 of 2 until it is told to go on: insula resume job-1"), "{said}");
    let workers: Value = serde_json::from_str(&ask(&["workers", "--json"])).unwrap();
    assert_eq!((workers[0]["name"].as_str(), workers[0]["alive"].as_bool()), (Some("ada"), Some(true)), "{workers}");
    let wrong = fail(insula(home).args(["resume", "job-1", "--epoch", "2"]).args(STATE), 2);
    assert!(wrong.contains("job-1 has 2 epochs: expected 0 to go on to the end"), "{wrong}");
    ask(&["resume", "job-1"]);
    ask(&["watch", "job-1"]);
    ask(&["report", "job-1", "--out", "out"]);
    assert!(Results::of(&home.join("out")) == calm, "a pause changed the adapter or the predictions");
    assert!(ask(&["audit", "job-1"]).contains("every one exactly once"));
    assert!(fail(insula(home).args(["resume", "job-1"]).args(STATE), 1).contains("job-1 has ended"));
}

#[test]
fn pruning_leaves_what_is_referred_to_and_what_is_young() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    succeed(insula(home).args(["run", "job.toml", "--out", "out"]).args(STATE));
    let prune = |more: &[&str]| succeed(insula(home).args(["prune"]).args(more).args(STATE));
    assert!(prune(&[]).starts_with("deleted 0 files"), "all of it is young: {}", prune(&[]));
    let files = || {
        let folders = fs::read_dir(home.join("state/artifacts/sha256")).unwrap().flatten();
        folders
            .flat_map(|folder| fs::read_dir(folder.path()).unwrap().flatten().map(|file| file.path()))
            .collect::<Vec<_>>()
    };
    let before = files();
    for file in &before {
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
        fs::File::options().append(true).open(file).unwrap().set_modified(old).unwrap();
    }
    succeed(insula(home).args(["pin", "job-1"]).args(STATE));
    let pinned = prune(&["--dry-run"]);
    succeed(insula(home).args(["pin", "job-1", "--off"]).args(STATE));
    let would = prune(&["--dry-run"]);
    assert_eq!(files().len(), before.len(), "a dry run deletes nothing");
    let count = |text: &str| text.split(' ').find_map(|word| word.parse::<usize>().ok()).unwrap();
    assert!(count(&pinned) < count(&would), "pinned: {pinned}not: {would}");
    let deleted = prune(&[]);
    assert_eq!(files().len(), before.len() - count(&deleted));
    assert!(count(&deleted) > 0, "{deleted}");
    // Everything that can be asked for still stands.
    succeed(insula(home).args(["report", "job-1", "--out", "again"]).args(STATE));
    assert!(Results::of(&home.join("again")) == Results::of(&home.join("out")));
    succeed(insula(home).args(["audit", "job-1"]).args(STATE));
}
