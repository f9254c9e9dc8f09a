//! Workers and the coordinator are killed at random moments: no acknowledged job is lost, each task has one result, and
//! every job's adapter and predictions are the undisturbed run's.
//!
//! `INSULA_CHAOS_KILLS` says how many kills (6 without it), `INSULA_CHAOS_SEED` which ones; `tests/chaos` is the long form.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use support::{
    fleet::{Results, Started, address},
    insula, succeed, tiny_job, wait_for,
};

const WORKERS: usize = 3;
/// Enough updates that there is a middle to be killed in.
const MORE: [&str; 4] = ["--set", "train.epochs=12", "--set", "checkpoint_updates=3"];
const STATE: [&str; 2] = ["--state", "state"];

/// A coordinator and workers, and what was acknowledged to whoever submitted.
struct Fleet {
    home: PathBuf,
    chance: ChaCha8Rng,
    coordinator: Started,
    url: String,
    workers: Vec<Started>,
    /// Request id -> job, of every submission that was answered.
    acknowledged: BTreeMap<String, String>,
    /// The longest that a coordinator took to answer again.
    longest_absence: Duration,
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}='{text}': expected a whole number")))
}

fn start_coordinator(home: &Path, listen: &str) -> Started {
    Started::new(insula(home).args(["coordinator", "--listen", listen]).args(STATE))
}

fn start_worker(home: &Path, url: &str, place: usize) -> Started {
    let name = format!("w{place}");
    Started::new(insula(home).args(["worker", "--coordinator", url, "--name", &name, "--threads", "1"]))
}

impl Fleet {
    fn start(home: &Path, seed: u64) -> Self {
        let coordinator = start_coordinator(home, "127.0.0.1:0");
        let url = address(home, "state");
        let workers = (0..WORKERS).map(|place| start_worker(home, &url, place)).collect();
        Self {
            home: home.to_owned(),
            chance: ChaCha8Rng::seed_from_u64(seed),
            coordinator,
            url,
            workers,
            acknowledged: BTreeMap::new(),
            longest_absence: Duration::ZERO,
        }
    }

    fn pause(&mut self, ms: std::ops::Range<u64>) -> Duration {
        let pause = Duration::from_millis(self.chance.random_range(ms));
        std::thread::sleep(pause);
        pause
    }

    /// One submission; `None` where no answer came.
    fn try_submit(&self, request: &str) -> Option<Value> {
        let output = self.submission(request).output().unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    fn submission(&self, request: &str) -> std::process::Command {
        let mut command = insula(&self.home);
        command.args(["submit", "job.toml", "--json", "--request-id", request, "--coordinator", &self.url]).args(MORE);
        command
    }

    /// Submits until it is answered; what was answered before must be answered again.
    fn submit(&mut self, request: &str) {
        let answer = wait_for("a submission's answer", || self.try_submit(request));
        self.acknowledge(request, &answer);
    }

    fn acknowledge(&mut self, request: &str, answer: &Value) {
        let job = answer["job_id"].as_str().unwrap().to_owned();
        if let Some(before) = self.acknowledged.insert(request.to_owned(), job.clone()) {
            assert_eq!(before, job, "{request} was acknowledged as another job before");
            assert_eq!(answer["existed"], true, "{request} was acknowledged, and forgotten");
        }
    }

    fn status(&self) -> Value {
        let ask = || insula(&self.home).args(["status", "--json", "--coordinator", &self.url]).output().unwrap();
        let output = wait_for("the coordinator", || Some(ask()).filter(|output| output.status.success()));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Submits jobs until two have not ended: kills of an idle fleet prove little.
    fn keep_busy(&mut self, request: &str) {
        let status = self.status();
        let ended = |job: &&Value| ["succeeded", "failed", "cancelled"].contains(&job["state"].as_str().unwrap());
        let jobs = status["jobs"].as_array().unwrap();
        for place in jobs.len() - jobs.iter().filter(ended).count()..2 {
            self.submit(&format!("{request}-{place}"));
        }
    }

    /// The workers that are at something, by place.
    fn at_work(&self) -> Vec<usize> {
        let status = self.status();
        let place = |worker: &Value| worker["name"].as_str()?.strip_prefix('w')?.parse().ok();
        let busy = |worker: &&Value| worker["alive"] == true && worker["doing"] != "";
        status["workers"].as_array().unwrap().iter().filter(busy).filter_map(place).collect()
    }

    /// Kills the coordinator while a submission is under way, and starts it again.
    fn kill_coordinator(&mut self, request: &str) {
        let mut command = self.submission(request);
        let submitting = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
        let submitting = submitting.spawn().unwrap();
        self.pause(0..120);
        self.coordinator.kill();
        let output = submitting.wait_with_output().unwrap();
        if output.status.success() {
            self.acknowledge(request, &serde_json::from_slice(&output.stdout).unwrap());
        }
        self.pause(0..1000);
        let began = Instant::now();
        self.coordinator = start_coordinator(&self.home, self.url.strip_prefix("http://").unwrap());
        self.status();
        self.longest_absence = self.longest_absence.max(began.elapsed());
        self.submit(request);
    }

    fn kill_worker(&mut self, place: usize) {
        self.workers[place].kill();
        self.pause(0..1500);
        self.workers[place] = start_worker(&self.home, &self.url, place);
    }

    /// That a job came out right: every task done once, the results those of `calm`.
    fn judge(&self, job: &str, calm: &Results) {
        let told = succeed(insula(&self.home).args(["watch", job, "--json", "--coordinator", &self.url]));
        let mut done: BTreeMap<u64, u32> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for line in told.lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            if let Some(task) = event["task"]["index"].as_u64() {
                seen.insert(task);
                *done.entry(task).or_default() += u32::from(event["task"]["state"] == "done");
            }
        }
        assert!(seen.len() > 12, "a job of twelve epochs has more tasks than {}: {told}", seen.len());
        for (task, results) in done {
            assert_eq!(results, 1, "{job}: task {task} has {results} results:\n{told}");
        }
        let audit = succeed(insula(&self.home).args(["audit", job, "--coordinator", &self.url]));
        assert!(audit.contains("12 passes over") && audit.contains("every one exactly once"), "{audit}");
        let out = format!("out-{job}");
        succeed(insula(&self.home).args(["report", job, "--out", &out, "--coordinator", &self.url]));
        assert!(Results::of(&self.home.join(out)) == *calm, "{job}: the adapter or the predictions differ");
    }
}

#[test]
fn random_kills_lose_no_job_double_no_result_and_change_no_bit() {
    let kills = variable("INSULA_CHAOS_KILLS").unwrap_or(6);
    let seed = variable("INSULA_CHAOS_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
    println!("{kills} kills with seed {seed}; again: INSULA_CHAOS_KILLS={kills} INSULA_CHAOS_SEED={seed}");
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let file = tiny_job(home);
    fs::write(&file, format!("workers = {WORKERS}\n{}", fs::read_to_string(&file).unwrap())).unwrap();
    let calm = Results::undisturbed(home, &MORE);

    let mut fleet = Fleet::start(home, seed);
    let (began, mut hits) = (Instant::now(), 0);
    for kill in 1..=kills {
        let pause = fleet.pause(200..3000);
        fleet.keep_busy(&format!("busy-{kill}"));
        fleet.pause(0..400);
        // The first two are the two that matter most; after them, whoever chance picks.
        let victim = match kill {
            1 => wait_for("a worker at work", || fleet.at_work().first().copied()),
            2 => WORKERS,
            _ => fleet.chance.random_range(0..=WORKERS),
        };
        hits += u32::from(victim == WORKERS || fleet.at_work().contains(&victim));
        let name = if victim == WORKERS { "the coordinator".into() } else { format!("w{victim}") };
        println!("{:.1} s: kill {kill}: {name}, after {} ms", began.elapsed().as_secs_f64(), pause.as_millis());
        if victim == WORKERS {
            fleet.kill_coordinator(&format!("killed-{kill}"));
        } else {
            fleet.kill_worker(victim);
        }
    }
    let requests: Vec<String> = fleet.acknowledged.keys().cloned().collect();
    for request in &requests {
        fleet.submit(request);
    }
    let jobs: BTreeSet<String> = fleet.acknowledged.values().cloned().collect();
    assert_eq!(jobs.len(), requests.len(), "two requests became one job: {:?}", fleet.acknowledged);
    for job in &jobs {
        fleet.judge(job, &calm);
    }
    assert_eq!(fleet.status()["jobs"].as_array().unwrap().len(), jobs.len(), "jobs that nobody was told of");
    println!(
        "{} jobs, all as undisturbed; {hits} of {kills} kills hit somebody at work; a coordinator that was started again \
         answered after {:.1} s at most",
        jobs.len(),
        fleet.longest_absence.as_secs_f64()
    );
}
