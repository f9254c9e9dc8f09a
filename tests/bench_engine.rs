//! `insula bench engine` prints the figures that scripts rely on, of a training and an evaluation on a job's path.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::fs;

use serde_json::Value;
use support::{fail, insula, succeed, tiny_base, tiny_corpus};

/// The command on the tiny base and corpus.
fn bench(home: &std::path::Path) -> std::process::Command {
    let (base, corpus) = (tiny_base(home), tiny_corpus(home));
    let mut command = insula(home);
    command.args(["bench", "engine", "--batch", "4", "--threads", "1", "--set", "adapter.r=4"]);
    command.arg("--base").arg(base).arg("--corpus").arg(corpus);
    command
}

#[test]
fn bench_engine_prints_rates_peaks_and_the_time_of_each_operation() {
    let home = tempfile::tempdir().unwrap();
    let predictions = home.path().join("answers.jsonl");
    // Forty samples are ten updates an epoch: eleven timed ones and the warm-up go into a second epoch.
    let mut command = bench(home.path());
    command.args(["--json", "--updates", "11", "--samples", "6", "--predictions"]).arg(&predictions);
    let report: Value = serde_json::from_str(&succeed(&mut command)).unwrap();
    for key in ["gemm_peak_gflops", "useful_gflops", "peak_rss_bytes"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    for phase in ["train", "evaluate"] {
        assert!(report[phase]["samples_per_s"].as_f64().unwrap() > 0.0, "{phase}: {report}");
        assert!(report[phase]["tree_tokens_per_s"].as_f64().unwrap() > 0.0, "{phase}: {report}");
        let operations = report[phase]["operations"].as_array().unwrap();
        let shares: f64 = operations.iter().map(|operation| operation["share"].as_f64().unwrap()).sum();
        assert!((shares - 1.0).abs() < 0.02, "{phase}: the shares add up to {shares}");
        assert!(operations.iter().any(|operation| operation["name"] == "attention"), "{operations:?}");
    }
    assert_eq!(report["train"]["losses"].as_array().unwrap().len(), 12);
    assert_eq!((&report["train"]["samples"], &report["evaluate"]["samples"]), (&44.into(), &6.into()));
    assert_eq!(fs::read_to_string(predictions).unwrap().lines().count(), 6);
}

#[test]
fn updates_from_a_file_are_computed_as_they_stand() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("updates.jsonl");
    let text = r#"[{"prompt": "oh no:", "target": "sad"}, {"prompt": "hooray:", "target": "joyful"}]"#;
    let ids = r#"[{"prompt": [111, 104, 32, 110, 111, 58], "target": [115, 97, 100, 256]}]"#;
    fs::write(&file, [text, text, text, ids].join("\n")).unwrap();
    let mut command = bench(home.path());
    command.args(["--json", "--samples", "0", "--batches-lr", "1e-2", "--batches"]).arg(&file);
    let report: Value = serde_json::from_str(&succeed(&mut command)).unwrap();
    let losses: Vec<f64> = report["train"]["losses"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
    assert!(losses.len() == 4 && losses[0] > losses[1] && losses[1] > losses[2], "{losses:?}");
    assert_eq!(report["evaluate"], Value::Null);

    fs::write(&file, [text, r#"[{"prompt": "oh no:"}]"#].join("\n")).unwrap();
    let mut command = bench(home.path());
    let error = fail(command.arg("--batches").arg(&file), 2);
    assert!(error.contains("updates.jsonl: line 2: missing field `target`"), "{error}");
}
