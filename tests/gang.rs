//! Workers that train together leave the bytes that one leaves, and the ledger says who computed what.
#![expect(clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::path::Path;

use serde_json::Value;
use support::{fleet::Results, insula, json_file, succeed, tiny_job};

fn json(home: &Path, state: &str, command: &[&str]) -> Value {
    serde_json::from_str(&succeed(insula(home).args(command).args(["--json", "--state", state]))).unwrap()
}

#[test]
fn one_to_four_workers_train_the_same_adapter_and_every_sample_is_accounted_for() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    let calm = Results::undisturbed(home, &[]);
    let losses = |out: &str| json_file(&home.join(out).join("report.json"))["training"]["losses"].clone();
    for workers in ["2", "3", "4"] {
        let (out, state) = (format!("out-{workers}"), format!("state-{workers}"));
        // All or nothing, so that none begins alone.
        let together = format!("schedule.min_workers={workers}");
        let run = ["run", "job.toml", "--workers", workers, "--threads", "1", "--set", &together];
        succeed(insula(home).args(run).args(["--out", &out, "--state", &state]));
        assert!(Results::of(&home.join(&out)) == calm, "{workers} workers left another adapter or other predictions");
        assert_eq!(losses(&out), losses("calm"), "{workers} workers");
        let audit = json(home, &state, &["audit", "job-1"]);
        let stage = &audit["stages"][0];
        assert_eq!(stage["updates"], 10, "{audit}");
        assert_eq!(stage["used"].as_u64().unwrap(), 2 * stage["samples"].as_u64().unwrap(), "{audit}");
        let members = stage["workers"].as_object().unwrap().len();
        assert!(members > 1, "{workers} workers, and {members} of them computed anything: {audit}");
    }
    let told = succeed(insula(home).args(["audit", "job-1", "--state", "calm-state"]));
    assert!(told.contains("2 passes over") && told.contains("every one exactly once in each"), "{told}");
}
