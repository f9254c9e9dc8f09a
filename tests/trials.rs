//! Sweeps over a fleet: each trial gives one result while workers are killed, and halving stops what it says it stops.
//!
//! `INSULA_TRIALS` says how many trials (24 without it); `INSULA_TRIALS=500 cargo nextest run --release every_trial` is the
//! long form.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{insula, json_file, kill_9, processes, succeed, tiny_job, wait_for};

fn sweep_file(home: &Path, text: &str) {
    tiny_job(home);
    fs::write(home.join("sweep.toml"), format!("name = \"s\"\njob = \"job.toml\"\n{text}")).unwrap();
}

fn jobs(home: &Path) -> Vec<String> {
    let status = succeed(insula(home).args(["status", "--json", "--state", "state"]));
    let status: Value = serde_json::from_str(&status).unwrap();
    status["jobs"].as_array().unwrap().iter().map(|job| job["state"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_trial_of_a_sweep_gives_exactly_one_result_while_its_workers_are_killed() {
    let trials: usize = std::env::var("INSULA_TRIALS").map_or(24, |text| text.parse().unwrap());
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let set = "[set]\ntrain.epochs = 1\nevaluate.arms = [\"trained\"]\n";
    sweep_file(
        home,
        &format!("{set}[random]\ntrials = {trials}\nseed = 1\nkeys.train.lr = {{ log = [1e-4, 1e-2] }}\n"),
    );
    let (ended, began) = (AtomicBool::new(false), Instant::now());
    let kills = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let (mut kills, mut last) = (0, Instant::now());
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
                let mut workers = processes(&["worker", "--attached"]);
                workers.retain(|pid| in_folder(*pid, home));
                if last.elapsed() > Duration::from_secs(2) && !workers.is_empty() {
                    kill_9(workers[kills % workers.len()]);
                    (kills, last) = (kills + 1, Instant::now());
                }
            }
            kills
        });
        let run = ["sweep", "sweep.toml", "--workers", "4", "--threads", "1", "--out", "out", "--state", "state"];
        succeed(insula(home).args(run));
        ended.store(true, Ordering::Relaxed);
        killer.join().unwrap()
    });
    let rows = json_file(&home.join("out/sweep.json"))["rows"].as_array().unwrap().clone();
    let results = rows.iter().filter(|row| row["weighted_f1"].is_number()).count();
    println!("{trials} trials, {results} results, {kills} kills, {:.0} s", began.elapsed().as_secs_f64());
    assert_eq!((rows.len(), results), (trials, trials), "a row and a result for each trial");
    assert!(kills > 0, "nobody was killed");
    let listed = jobs(home);
    assert!(listed.iter().all(|state| state == "succeeded"), "{listed:?}");
    assert_eq!(listed.len(), trials, "a job for each trial");
}

/// Whether a process works in a folder.
fn in_folder(pid: u32, folder: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder.canonicalize().unwrap())
}

#[test]
fn halving_stops_the_worse_half_at_its_rung_and_runs_the_rest_again_with_another_seed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let set = "[set]\nevaluate.arms = [\"trained\"]\nevaluate.mode = \"score\"\n";
    let grid = "[grid]\ntrain.lr = [1e-6, 2e-3, 5e-3, 1e-2]\n";
    sweep_file(home, &format!("{set}{grid}[halving]\nrungs = [1]\neta = 2\nreplicate = [7]\n"));
    let run = ["sweep", "sweep.toml", "--workers", "2", "--threads", "1", "--state", "state", "--out"];
    succeed(insula(home).args(run).arg("out"));
    let states = jobs(home);
    let count = |state: &str| states.iter().filter(|s| *s == state).count();
    let (ended, stopped) = (count("succeeded"), count("cancelled"));
    // Half of four go on; more where a better one came after others had been told to.
    assert!((4..=8).contains(&ended) && ended % 2 == 0, "{states:?}: who ends is run again with another seed");
    assert_eq!(ended / 2 + stopped, 4, "{states:?}");
    let rows = json_file(&home.join("out/sweep.json"))["rows"].clone();
    let whole = rows.as_array().unwrap().iter().filter(|row| row["seeds"].as_array().unwrap().len() == 2).count();
    assert_eq!(whole, ended / 2, "{rows}");
    succeed(insula(home).args(run).arg("again"));
    assert_eq!(jobs(home).len(), states.len(), "what was stopped stays stopped, what ended is not computed again");
    wait_for("the tables", || home.join("again/sweep.md").is_file().then_some(()));
}
