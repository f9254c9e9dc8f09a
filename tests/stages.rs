//! A training may have stages, each going on from what the one before it left, and may start from another job's adapter.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use support::{fail, insula, json_file, kill_9, processes, succeed, tiny_job, wait_for};

/// Who speaks first, then the emotion with a tenth of the next utterance's.
const STAGES: &str = "\n[[stages]]\nobjectives = [\"speaker\"]\nepochs = 1\n\n\
    [[stages]]\nobjectives = [\"main\", \"impact\"]\nimpact_weight = 0.1\nepochs = 4\nlr = 2e-3\n";

/// The tiny job, one with stages beside it, and one with a second stage so long that there is a middle to be killed in.
fn jobs(home: &Path) {
    let job = fs::read_to_string(tiny_job(home)).unwrap();
    fs::write(home.join("staged.toml"), format!("{job}{STAGES}")).unwrap();
    fs::write(home.join("long.toml"), format!("{job}{}", STAGES.replace("epochs = 4", "epochs = 15"))).unwrap();
}

fn run(home: &Path, job: &str, out: &str, more: &[&str]) -> Value {
    succeed(insula(home).args(["run", job, "--out", out, "--state", &format!("state-{out}")]).args(more));
    json_file(&home.join(out).join("report.json"))
}

fn adapter(home: &Path, out: &str) -> Vec<u8> {
    fs::read(home.join(out).join("adapter/adapter_model.safetensors")).unwrap()
}

fn first_loss(report: &Value) -> f64 {
    report["training"]["losses"][0].as_f64().unwrap()
}

/// A process that does not outlive the test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn stages_follow_each_other_and_the_report_tells_them_apart() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    jobs(home);
    let report = run(home, "staged.toml", "staged", &[]);
    let earlier = report["earlier_stages"].as_array().unwrap();
    assert_eq!(earlier.len(), 1, "{report}");
    assert_eq!(earlier[0]["objectives"], "speaker");
    // Forty turns asked once, eight an update; then forty asked twice for four epochs.
    assert_eq!((&earlier[0]["updates"], &earlier[0]["samples"]), (&json!(5), &json!(40)));
    assert_eq!((&report["training"]["updates"], &report["training"]["samples"]), (&json!(40), &json!(320)));
    assert_eq!(report["training"]["epochs"].as_array().unwrap().len(), 4);
    let status: Value =
        serde_json::from_str(&succeed(insula(home).args(["status", "job-1", "--json", "--state", "state-staged"])))
            .unwrap();
    let tasks: Vec<_> = status["tasks"].as_array().unwrap().iter().map(|task| task["what"].as_str().unwrap()).collect();
    assert!(tasks.contains(&"train speaker") && tasks.contains(&"train main+impact"), "{tasks:?}");

    // The second stage goes on from the first's adapter, and its weight of impact is not the authors' one mean.
    let only_second = STAGES.split_once("\n\n").unwrap().1;
    let job = fs::read_to_string(home.join("job.toml")).unwrap();
    fs::write(home.join("second.toml"), format!("{job}\n{only_second}")).unwrap();
    fs::write(home.join("equal.toml"), format!("{job}\n{}", only_second.replace("impact_weight = 0.1\n", ""))).unwrap();
    let (second, equal) = (run(home, "second.toml", "second", &[]), run(home, "equal.toml", "equal", &[]));
    assert!(second.get("earlier_stages").is_none(), "{second}");
    assert_ne!(first_loss(&second), first_loss(&report));
    assert_ne!(first_loss(&second), first_loss(&equal));
    assert!(adapter(home, "second") != adapter(home, "staged") && adapter(home, "second") != adapter(home, "equal"));
}

#[test]
fn a_staged_adapter_is_the_same_whatever_the_threads_and_over_a_crash_in_the_second_stage() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    jobs(home);
    run(home, "long.toml", "one", &["--threads", "1"]);
    run(home, "long.toml", "two", &["--threads", "2"]);
    assert!(adapter(home, "one") == adapter(home, "two"), "one thread and two give other weights");

    let mut command = insula(home);
    command.args(["run", "long.toml", "--out", "out", "--state", "state-out"]);
    let mut crashed = Running::start(&mut command);
    let address = wait_for("the address file", || fs::read_to_string(home.join("state-out/address")).ok());
    let log = || {
        let files = fs::read_dir(home.join("state-out/logs")).into_iter().flatten().flatten();
        files.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect::<String>()
    };
    // Both stages count their updates from 1; the second has 150.
    wait_for("updates of the second stage", || log().contains("update 20/150").then_some(()));
    processes(&["worker", "--attached", &address]).into_iter().for_each(kill_9);
    assert!(crashed.0.wait().unwrap().success());
    assert!(adapter(home, "out") == adapter(home, "one"), "a crash gives other weights");
    let resumed = log();
    let resumed = resumed.lines().filter(|line| line.contains("train main+impact:") && line.contains("updates done"));
    assert!(resumed.clone().any(|line| !line.contains(" 0 of ")), "no run began after update 0:\n{}", log());
    assert_eq!(log().matches("train speaker: 0 of 5 updates done").count(), 1, "the first stage is not made again");
}

#[test]
fn a_job_goes_on_from_another_jobs_adapter_and_waits_for_it() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    jobs(home);
    let start = ["--set", "adapter.from=job-1"];
    let fresh = run(home, "job.toml", "fresh", &[]);
    succeed(insula(home).args(["run", "job.toml", "--out", "after", "--state", "state-fresh"]).args(start));
    let after = json_file(&home.join("after/report.json"));
    assert_eq!(after["provenance"]["recipe"]["adapter"]["from"], "job-1");
    // The same first batch, by the same seed: what differs is the adapter it meets.
    assert!(first_loss(&after) < first_loss(&fresh), "{} {}", first_loss(&after), first_loss(&fresh));

    // Both submitted before anyone works: the second waits for the first, and is the same job.
    let _coordinator = Running::start(insula(home).args(["coordinator", "--state", "both", "--listen", "127.0.0.1:0"]));
    let address = wait_for("the coordinator", || {
        let address = fs::read_to_string(home.join("both/address")).ok()?;
        std::net::TcpStream::connect(address.trim().strip_prefix("http://")?).ok()?;
        Some(address.trim().to_owned())
    });
    for more in [&[][..], &start] {
        succeed(insula(home).args(["submit", "job.toml", "--coordinator", &address]).args(more));
    }
    let _worker = Running::start(insula(home).args(["worker", "--coordinator", &address, "--name", "w"]));
    succeed(insula(home).args(["watch", "job-2", "--coordinator", &address]));
    succeed(insula(home).args(["report", "job-2", "--out", "waited", "--coordinator", &address]));
    assert!(adapter(home, "waited") == adapter(home, "after"));
}

#[test]
fn a_start_that_cannot_be_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    jobs(home);
    let refused = |more: &[&str], code: i32, parts: &[&str]| {
        let said = fail(insula(home).args(["run", "job.toml"]).args(more), code);
        for part in parts {
            assert!(said.contains(part), "expected '{part}' in: {said}");
        }
    };
    refused(&["--set", "adapter.from=job-7"], 2, &["adapter.from", "job-7 does not exist"]);
    refused(&["--set", "adapter.from=yesterday"], 2, &["adapter.from", "'yesterday'", "job-3"]);
    succeed(insula(home).args(["run", "job.toml", "--set", "evaluate.arms=[\"zero-shot\"]"]));
    refused(&["--set", "adapter.from=job-1"], 2, &["adapter.from", "job-1 trains nothing"]);
    succeed(insula(home).args(["run", "job.toml"]));
    refused(&["--set", "adapter.from=job-2", "--set", "adapter.r=8"], 3, &["r 4, alpha 8", "expected this job's r 8"]);
}
