//! One command goes from a corpus to a weighted F1 and an adapter, and leaves what scripts rely on.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::fs;

use support::{fail, insula, json_file, succeed, tiny_job};

#[test]
fn a_job_runs_from_a_corpus_to_a_report_and_an_adapter() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    let shown = succeed(insula(home).args(["run", "job.toml", "--out", "out"]));
    assert!(shown.contains("zero-shot") && shown.contains("trained"), "{shown}");
    let report = json_file(&home.join("out/report.json"));
    let arms = report["arms"].as_array().unwrap();
    assert_eq!(arms.iter().map(|arm| arm["name"].as_str().unwrap()).collect::<Vec<_>>(), ["zero-shot", "trained"]);
    for arm in arms {
        assert_eq!((arm["split"].as_str(), arm["samples"].as_u64()), (Some("test"), Some(16)));
        for key in ["weighted_f1", "macro_f1", "accuracy", "paper_weighted_f1"] {
            assert!((0.0..=1.0).contains(&arm[key].as_f64().unwrap()), "{key} of {arm}");
        }
        assert!(arm["unreadable"].as_u64().unwrap() <= 16);
    }
    for key in ["corpus", "base", "recipe", "seed", "commit"] {
        assert!(!report["provenance"][key].is_null(), "provenance.{key}");
    }
    let lines = fs::read_to_string(home.join("out/predictions.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 2 * 16);
    let correct = lines.lines().filter(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["arm"] == "trained" && line["gold"] == line["label"]
    });
    assert_eq!(correct.count() as f64 / 16.0, arms[1]["accuracy"].as_f64().unwrap());
    let config = json_file(&home.join("out/adapter/adapter_config.json"));
    assert_eq!((config["peft_type"].as_str(), config["r"].as_u64()), (Some("LORA"), Some(4)));
    assert!(config["base_model_name_or_path"].is_string() && config["revision"].is_string());
    assert!(home.join("out/adapter/adapter_model.safetensors").is_file());
    assert!(fs::read_to_string(home.join("out/report.md")).unwrap().contains("| trained |"));
}

#[test]
fn the_same_job_gives_the_same_adapter_whatever_the_threads_and_workers() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    let adapter = |out: &str, more: &[&str]| {
        succeed(insula(home).args(["run", "job.toml", "--out", out, "--state", &format!("state-{out}")]).args(more));
        let report = json_file(&home.join(out).join("report.json"));
        let f1: Vec<_> = report["arms"].as_array().unwrap().iter().map(|arm| arm["weighted_f1"].clone()).collect();
        (fs::read(home.join(out).join("adapter/adapter_model.safetensors")).unwrap(), f1)
    };
    let one = adapter("one", &["--threads", "1"]);
    assert_eq!(adapter("two-threads", &["--threads", "2"]), one);
    assert_eq!(adapter("two-workers", &["--workers", "2", "--threads", "1"]), one);
    let bf16 = adapter("bf16", &["--threads", "1", "--set", "base.precision=bf16"]);
    assert_ne!(bf16.0, one.0, "weights rounded to bfloat16 give another adapter");
    let other_seed = adapter("seed", &["--threads", "1", "--set", "seed=7"]);
    assert_ne!(other_seed.0, one.0);
}

#[test]
fn what_ran_can_be_asked_for_afterwards() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    let report = succeed(insula(home).args(["run", "job.toml", "--json", "--set", "evaluate.mode=score"]));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["arms"][0]["unreadable"], 0);
    let again = succeed(insula(home).args(["report", "job-1", "--json"]));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&again).unwrap(), report);
    let status: serde_json::Value =
        serde_json::from_str(&succeed(insula(home).args(["status", "job-1", "--json"]))).unwrap();
    assert_eq!(status["state"], "succeeded");
    let events = succeed(insula(home).args(["watch", "job-1", "--json"]));
    let events: Vec<serde_json::Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.last().unwrap()["state"], "succeeded");
    let token = events[events.len() / 2]["resume_token"].as_str().unwrap();
    let rest = succeed(insula(home).args(["watch", "job-1", "--json", "--resume-token", token]));
    let last = |text: &str| text.lines().last().map(str::to_owned);
    assert_eq!(last(&rest).unwrap(), events.last().unwrap().to_string());
    assert!(rest.lines().count() < events.len());
    assert!(succeed(insula(home).args(["logs", "job-1"])).contains("update 10/10"));
    assert!(succeed(insula(home).args(["status"])).contains("job-1  succeeded  tiny"));
    assert!(fail(insula(home).args(["status", "job-9"]), 2).contains("job-9"));
}
