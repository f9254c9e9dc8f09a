//! Demonstrations chosen by a training sample's own label teach the model to copy them; chosen freely they do not.
//!
//! One corpus, two jobs that differ in `retrieval.training` alone. The text of an utterance gives its label away, and so, three
//! times of four, does the label of what is found for it when all are looked at.
#![expect(clippy::unwrap_used, reason = "a test whose fixture fails stops there")]

#[path = "support/encoder.rs"]
mod encoder;
mod support;

use std::path::Path;

use encoder::tiny_encoder;
use serde_json::Value;
use support::{
    corpora::{Turn, turn, write, write_lines},
    insula, json_file, succeed, tiny_base,
};

/// Words that the encoder tells apart; what the model must read to know the label is none to it.
const WORDS: [&str; 8] = ["the", "cat", "sat", "on", "mat", "nobody", "a", "knows"];
const SIGNS: [&str; 2] = ["zzzzzz", "qqqqqq"];
const LABELS: [&str; 2] = ["A", "B"];

/// Dialogues of one turn. Every second word stands mostly beside the second label, the others beside the first; its first
/// three utterances of four, which are found for it, always do. Of the first eight, which are found for most, `astray`
/// gives half a text that belies their label, so that a demonstration's label is not to be had from its text.
fn turns(count: usize, astray: bool) -> Vec<Vec<Turn>> {
    let one = |at: usize| {
        let (word, round) = (at % WORDS.len(), at / WORDS.len());
        let label = if round % 4 == 3 { 1 - word % 2 } else { word % 2 };
        let sign = if astray && round == 0 && word / 2 % 2 == 1 { 1 - label } else { label };
        vec![turn("Ann", format!("{} {}", WORDS[word], SIGNS[sign]), LABELS[label])]
    };
    (0..count).map(one).collect()
}

fn leak_job(home: &Path) {
    tiny_base(home);
    tiny_encoder(home);
    let corpus = home.join("corpus");
    write(&corpus.join("labels.json"), r#"["A", "B"]"#);
    for (split, count) in [("train", 128), ("dev", 32), ("test", 96)] {
        write_lines(&corpus, split, &turns(count, split == "train"));
    }
    let job = "name = \"leak\"\n[corpus]\npath = \"corpus\"\n[data]\nwindow = 0\n[base]\nsource = \"base\"\n\
        [retrieval]\nk = 1\nencoder = \"encoder\"\nbalanced = false\n[adapter]\nr = 16\nalpha = 16\n\
        targets = [\"q\", \"k\", \"v\", \"o\", \"gate\", \"up\", \"down\"]\n\
        [train]\nepochs = 12\nbatch = 16\nlr = 1e-2\nbatching = \"utterance\"\n\
        [evaluate]\nmode = \"score\"\narms = [\"trained\", \"shuffled-demonstrations\"]\n";
    write(&home.join("job.toml"), job);
}

/// Accuracy with the demonstrations' own labels and with labels drawn at random, how many answers of the latter are the
/// demonstration's label, and what the report warns of.
fn outcome(home: &Path, training: &str) -> (f64, f64, u64, String) {
    let setting = format!("retrieval.training={training}");
    succeed(insula(home).args(["run", "job.toml", "--state", training, "--out", training, "--set", &setting]));
    let report = json_file(&home.join(training).join("report.json"));
    let arms = report["arms"].as_array().unwrap();
    let of = |name: &str| -> &Value { arms.iter().find(|arm| arm["name"] == name).unwrap() };
    let (trained, shuffled) = (of("trained"), of("shuffled-demonstrations"));
    let accuracy = |arm: &Value| arm["accuracy"].as_f64().unwrap();
    let warnings = report.get("warnings").map(Value::to_string).unwrap_or_default();
    println!("{training}: {trained}\n{shuffled}\n{warnings}");
    (accuracy(trained), accuracy(shuffled), shuffled["copied"].as_u64().unwrap(), warnings)
}

#[test]
fn training_on_demonstrations_of_the_own_label_leaks_it_and_is_warned_of() {
    let home = tempfile::tempdir().unwrap();
    leak_job(home.path());
    let (trained, shuffled, copied, warnings) = outcome(home.path(), "same-label");
    assert!(copied >= 90, "{copied} of 96 answers are the demonstration's label");
    assert!(trained - shuffled > 0.05, "{trained} {shuffled}");
    assert!((0.35..0.65).contains(&shuffled), "copying a label drawn at random is guessing: {shuffled}");
    assert!(warnings.contains("label leak on corpus: accuracy falls from"), "{warnings}");
    assert!(warnings.contains("own label"), "{warnings}");
}

#[test]
fn training_on_demonstrations_of_any_label_learns_the_text() {
    let home = tempfile::tempdir().unwrap();
    leak_job(home.path());
    let (trained, shuffled, copied, warnings) = outcome(home.path(), "any");
    assert!(trained > 0.9 && trained - shuffled <= 0.05, "{trained} {shuffled}");
    // Of right answers about half are a label drawn at random.
    assert!((34..=62).contains(&copied), "{copied} of 96 answers are the demonstration's label");
    assert!(!warnings.contains("label leak"), "{warnings}");
}
