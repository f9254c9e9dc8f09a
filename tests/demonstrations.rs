//! Demonstrations are embedded once, stand behind the prompts of every arm but zero-shot, and are told where they leak.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

#[path = "support/encoder.rs"]
mod encoder;
mod support;

use std::{fs, path::Path};

use encoder::tiny_encoder;
use serde_json::{Value, json};
use support::{
    corpora::{Turn, turn, write_meld},
    fail, insula, json_file, succeed, tiny_job,
};

const ARMS: &str = r#"evaluate.arms=["zero-shot", "few-shot", "trained", "shuffled-demonstrations"]"#;

const DEMONSTRATIONS: [&str; 6] = ["--set", "retrieval.k=1", "--set", "retrieval.encoder=encoder", "--set", ARMS];

const WORDS: [&str; 8] = ["the", "cat", "sat", "on", "mat", "nobody", "a", "knows"];
const LABELS: [&str; 3] = ["joy", "sadness", "neutral"];

/// Dialogues of four turns whose texts are mostly different, so that what is most alike hangs on the encoder.
fn texts(first: usize, count: usize) -> Vec<Vec<Turn>> {
    let one = |&at: &usize| {
        let text = [at, at * 3 + 1, at / 3 * 5 + 2].map(|n| WORDS[n % WORDS.len()]).join(" ");
        turn(["Ann", "Bo"][at % 2], text, LABELS[(at * 7 + at / 4) % LABELS.len()])
    };
    let places: Vec<usize> = (first..first + count).collect();
    places.chunks(4).map(|dialogue| dialogue.iter().map(one).collect()).collect()
}

/// The tiny job with an encoder beside it and texts of which it knows the words.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    tiny_job(home.path());
    tiny_encoder(home.path());
    for (split, first, count) in [("train", 0, 40), ("dev", 50, 8), ("test", 70, 16)] {
        write_meld(&home.path().join("corpus"), split, &texts(first, count));
    }
    home
}

fn run(home: &Path, state: &str, out: &str, more: &[&str]) -> (Value, Vec<u8>) {
    let mut command = insula(home);
    command.args(["run", "job.toml", "--state", state, "--out", out, "--set", "train.epochs=1"]);
    succeed(command.args(DEMONSTRATIONS).args(more));
    let report = json_file(&home.join(out).join("report.json"));
    (report, fs::read(home.join(out).join("adapter/adapter_model.safetensors")).unwrap())
}

fn arm<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["arms"].as_array().unwrap().iter().find(|arm| arm["name"] == name).unwrap()
}

#[test]
fn every_arm_is_in_the_report_and_the_adapter_is_the_same_whatever_the_workers() {
    let home = home();
    let home = home.path();
    let (report, adapter) = run(home, "one", "one", &["--threads", "1"]);
    let names: Vec<_> = report["arms"].as_array().unwrap().iter().map(|arm| arm["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["zero-shot", "few-shot", "trained", "shuffled-demonstrations"]);
    assert_eq!(arm(&report, "zero-shot")["copied"], 0, "a zero-shot prompt shows no demonstration to copy");
    assert!(report.get("warnings").is_none() || !report["warnings"].to_string().contains("own label"), "{report}");
    let (by_two, same) = run(home, "two", "two", &["--workers", "2", "--threads", "1"]);
    assert!(adapter == same, "one worker and two give other weights");
    let scores = |report: &Value| -> Vec<_> {
        let of = |arm: &Value| (arm["weighted_f1"].clone(), arm["copied"].clone(), arm["confusion"].clone());
        report["arms"].as_array().unwrap().iter().map(of).collect()
    };
    assert_eq!(scores(&report), scores(&by_two));

    // Without them, and with two in place of one, prompts are others.
    let trained = r#"evaluate.arms=["zero-shot", "trained"]"#;
    let (_, without) = run(home, "none", "none", &["--set", "retrieval.k=0", "--set", trained]);
    let (_, two) = run(home, "k2", "k2", &["--set", "retrieval.k=2"]);
    let (_, unbalanced) = run(home, "all", "all", &["--set", "retrieval.balanced=false"]);
    assert!(without != adapter && two != adapter && two != without && unbalanced != adapter);
}

#[test]
fn a_second_job_takes_its_embeddings_from_the_first() {
    let home = home();
    let home = home.path();
    let (_, first) = run(home, "state", "first", &[]);
    let (_, second) = run(home, "state", "second", &[]);
    assert!(first == second);
    let log = |job: &str| succeed(insula(home).args(["logs", job, "--state", "state"]));
    // A shard of each split; dev is evaluated with demonstrations too.
    let (made, taken) = (log("job-1"), log("job-2"));
    for (split, utterances) in [("train", 40), ("dev", 8), ("test", 16)] {
        assert!(made.contains(&format!("embed {split}: {utterances} utterances are embedded")), "{made}");
        assert!(taken.contains(&format!("embed {split}: {utterances} utterances were embedded before")), "{taken}");
    }

    // Another encoder is another key.
    encoder::Bert::random(8).write(&home.join("encoder"), &encoder::Settings::default());
    let (_, other) = run(home, "state", "other", &[]);
    assert_eq!(log("job-3").matches("utterances are embedded").count(), 3, "{}", log("job-3"));
    assert!(other != first, "another encoder finds other demonstrations");
}

#[test]
fn demonstrations_of_the_same_label_are_warned_of() {
    let home = home();
    let home = home.path();
    let (report, adapter) = run(home, "same", "same", &["--set", "retrieval.training=same-label"]);
    let expected = "training demonstrations were chosen among examples of the sample's own label, so each gave its \
                    answer away";
    assert!(report["warnings"].as_array().unwrap().contains(&json!(expected)), "{report}");
    assert!(fs::read_to_string(home.join("same/report.md")).unwrap().contains(expected));
    let said = succeed(insula(home).args(["report", "job-1", "--state", "same"]));
    assert!(said.contains("Warning: training demonstrations"), "{said}");
    let (_, any) = run(home, "any", "any", &["--set", "retrieval.training=any"]);
    assert!(any != adapter, "the label's own demonstrations are others");
    // Whoever submits it is told before it begins.
    let settings = ["retrieval.k=1", "retrieval.encoder=encoder", "retrieval.training=same-label"];
    let mut command = insula(home);
    command.args(["submit", "job.toml", "--json", "--state", "any"]);
    let answer = succeed(command.args(settings.iter().flat_map(|setting| ["--set", setting])));
    assert!(answer.contains("may learn to copy it"), "{answer}");
}

#[test]
fn an_encoder_that_cannot_be_read_is_named() {
    let home = home();
    let home = home.path();
    let refused = |more: &[&str], code: i32, parts: &[&str]| {
        let said = fail(insula(home).args(["run", "job.toml", "--set", "retrieval.k=1"]).args(more), code);
        for part in parts {
            assert!(said.contains(part), "expected '{part}' in: {said}");
        }
    };
    refused(&["--set", "retrieval.encoder=\"\""], 2, &["retrieval.encoder", "is empty"]);
    refused(&["--set", "retrieval.k=17"], 2, &["retrieval.k", "0 to 16"]);
    refused(&["--set", "retrieval.training=mine"], 2, &["retrieval.training", "`mine`", "`same-label`"]);
    refused(&["--set", "retrieval.encoder=nowhere"], 2, &["nowhere"]);
    // A base is no sentence encoder.
    refused(&["--set", "retrieval.encoder=base"], 3, &["base", "bert"]);
}
