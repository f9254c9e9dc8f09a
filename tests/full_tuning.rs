//! A job may train all weights of its base; what it leaves is a base again.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use support::{fail, insula, json_file, kill_9, processes, succeed, tiny_job, wait_for};

const ALL: [&str; 4] = ["--set", "train.parameters=all", "--set", "train.lr=2e-3"];

fn run(home: &Path, out: &str, more: &[&str]) -> Command {
    let mut command = insula(home);
    command.args(["run", "job.toml", "--out", out, "--state", &format!("state-{out}")]).args(more);
    command
}

fn weights(out: &Path) -> Vec<u8> {
    fs::read(out.join("adapter/model.safetensors")).unwrap()
}

/// An arm's answers to the test split, in order.
fn answers(out: &Path, arm: &str) -> Vec<Value> {
    let lines = fs::read_to_string(out.join("predictions.jsonl")).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut answers: Vec<Value> = lines.filter(|line| line["arm"] == arm).collect();
    answers.iter_mut().for_each(|line| _ = line.as_object_mut().unwrap().remove("arm"));
    answers
}

#[test]
fn the_weights_are_the_same_whatever_the_threads_and_answer_alike_as_the_base_of_another_job() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    succeed(run(home, "one", &["--threads", "1"]).args(ALL));
    succeed(run(home, "two", &["--threads", "2"]).args(ALL));
    let (one, two) = (home.join("one"), home.join("two"));
    assert!(weights(&one) == weights(&two), "one thread and two give other weights");
    let report = json_file(&one.join("report.json"));
    let losses = report["training"]["losses"].as_array().unwrap();
    assert!(losses.last().unwrap().as_f64() < losses[0].as_f64(), "{losses:?}");
    let shown = fs::read_to_string(one.join("report.md")).unwrap();
    assert!(shown.contains("all weights of the base"), "{shown}");

    let tuned = format!("base.source={}", one.join("adapter").display());
    succeed(&mut run(home, "again", &["--set", &tuned, "--set", "evaluate.arms=[\"zero-shot\"]"]));
    assert_eq!(answers(&home.join("again"), "zero-shot"), answers(&one, "trained"));
    assert_ne!(answers(&one, "zero-shot"), answers(&one, "trained"));

    // The base is as it was, and an adapter's job is not touched by any of this.
    succeed(&mut run(home, "lora", &[]));
    assert_eq!(answers(&home.join("lora"), "zero-shot"), answers(&one, "zero-shot"));
}

#[test]
fn a_killed_worker_resumes_from_its_checkpoint() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    let more = [&ALL[..], &["--set", "train.epochs=12", "--set", "checkpoint_updates=3"]].concat();
    succeed(&mut run(home, "calm", &more));
    let mut command = run(home, "out", &more);
    let mut running = command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().unwrap();
    let address = wait_for("the address file", || fs::read_to_string(home.join("state-out/address")).ok());
    let log = || {
        let files = fs::read_dir(home.join("state-out/logs")).into_iter().flatten().flatten();
        files.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect::<String>()
    };
    wait_for("some updates", || log().contains("update 8/").then_some(()));
    processes(&["worker", "--attached", &address]).into_iter().for_each(kill_9);
    assert!(running.wait().unwrap().success());
    assert!(weights(&home.join("out")) == weights(&home.join("calm")));
    assert!(!log().contains("is passed over"), "{}", log());
}

#[test]
fn a_base_in_few_bits_is_refused() {
    let home = tempfile::tempdir().unwrap();
    tiny_job(home.path());
    let shown = fail(run(home.path(), "out", &["--set", "base.precision=q8"]).args(ALL), 2);
    assert!(shown.contains("base.precision") && shown.contains("expected f32"), "{shown}");
}
