//! Several corpora are one training set by the mix's formula, under one label set, and each is evaluated apart.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::{fs, path::Path};

use serde_json::{Value, json};
use support::{
    corpora::{dialogues, write, write_emorynlp, write_meld},
    fail, insula, json_file, succeed, tiny_base,
};

/// Training utterances of the two corpora, chosen so that every share below rounds differently by the two mixes.
const UTTERANCES: [usize; 2] = [43, 23];

const NAMES: &str = "names = [\"joyful\", \"sad\", \"neutral\", \"other\"]\n";

const MELD: &str = "[map.meld]\nneutral = \"neutral\"\nsad = \"sad\"\njoyful = \"joyful\"\nsurprise = \"other\"\n\
    fear = \"other\"\ndisgust = \"other\"\nangry = \"other\"\n";

const EMORYNLP: &str = "[map.emorynlp]\nJoyful = \"joyful\"\nSad = \"sad\"\nNeutral = \"neutral\"\nMad = \"other\"\n\
    Peaceful = \"other\"\nPowerful = \"other\"\nScared = \"other\"\n";

/// A job over two corpora that write their labels differently, and the mapping that makes them one set.
fn mixed_job(home: &Path) {
    tiny_base(home);
    let said = [("oh no", "sadness"), ("hooray", "joy"), ("well", "neutral"), ("grr", "anger")];
    for (split, turns) in [("train", UTTERANCES[0]), ("dev", 8), ("test", 12)] {
        write_meld(&home.join("friends"), split, &dialogues(turns, 4, &["Ann", "Bo"], &said));
    }
    let said = [("oh no", "Sad"), ("hooray", "Joyful"), ("well", "Neutral"), ("hush", "Peaceful")];
    for (split, turns) in [("train", UTTERANCES[1]), ("dev", 4), ("test", 8)] {
        write_emorynlp(&home.join("scenes"), split, &dialogues(turns, 4, &["Cy", "Di", "Ed"], &said));
    }
    write(&home.join("labels.toml"), &format!("{NAMES}{MELD}{EMORYNLP}"));
    let job = "name = \"mix\"\n[corpora.a]\npath = \"friends\"\n[corpora.b]\npath = \"scenes\"\n\
        [labels]\nfile = \"labels.toml\"\n[data]\nwindow = 1\n[base]\nsource = \"base\"\n[adapter]\nr = 4\n\
        [train]\nepochs = 1\nbatch = 16\nlr = 5e-3\n[evaluate]\nmode = \"score\"\n";
    write(&home.join("job.toml"), job);
}

fn run(home: &Path, out: &str, more: &[&str]) -> Value {
    succeed(insula(home).args(["run", "job.toml", "--out", out]).args(more));
    json_file(&home.join(out).join("report.json"))
}

#[test]
fn each_corpus_is_evaluated_apart_under_the_shared_labels() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    mixed_job(home);
    let report = run(home, "out", &[]);
    let arms = report["arms"].as_array().unwrap();
    let rows: Vec<_> =
        arms.iter().map(|arm| (arm["name"].as_str().unwrap(), arm["corpus"].as_str().unwrap())).collect();
    assert_eq!(rows, [("zero-shot", "a"), ("zero-shot", "b"), ("trained", "a"), ("trained", "b")]);
    let lines = fs::read_to_string(home.join("out/predictions.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for arm in arms {
        let of_arm = |line: &&Value| line["arm"] == arm["name"] && line["corpus"] == arm["corpus"];
        let own: Vec<&Value> = lines.iter().filter(of_arm).collect();
        let right = own.iter().filter(|line| line["gold"] == line["label"]).count();
        assert_eq!(own.len(), if arm["corpus"] == "a" { 12 } else { 8 }, "{arm}");
        assert_eq!(arm["samples"], own.len(), "{arm}");
        assert_eq!(arm["accuracy"].as_f64().unwrap(), right as f64 / own.len() as f64, "{arm}");
        let labels: Vec<_> =
            arm["labels"].as_array().unwrap().iter().map(|row| row["label"].as_str().unwrap()).collect();
        assert_eq!(labels, ["joyful", "sad", "neutral", "other"]);
        for row in arm["labels"].as_array().unwrap() {
            let support = own.iter().filter(|line| line["gold"] == row["label"]).count();
            assert!(support > 0, "the test corpora show every label: {row}");
            assert_eq!(row["support"], support, "{row} of {arm}");
        }
    }
    assert_eq!(report["provenance"]["samples_trained_on"], UTTERANCES.iter().sum::<usize>());
    let corpus = &report["provenance"]["corpus"];
    let parts: Vec<_> = corpus["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| (part["name"].clone(), part["speakers"].clone()))
        .collect();
    assert_eq!(parts, [(json!("a"), json!(2)), (json!("b"), json!(3))]);
    let digest = |part: usize| corpus["parts"][part]["digest"].as_str().unwrap().to_owned();
    assert!(digest(0).starts_with("sha256:") && digest(0) != digest(1) && corpus["digest"] != digest(0));
    assert_eq!((&corpus["name"], &corpus["splits"]["train"]["utterances"]), (&json!("a+b"), &json!(66)));
    assert!(report["provenance"]["recipe"]["labels"]["file"].as_str().unwrap().ends_with("labels.toml"));
    let shown = fs::read_to_string(home.join("out/report.md")).unwrap();
    assert!(shown.contains("trained") && shown.contains("a+b"), "{shown}");
}

#[test]
fn the_samples_trained_on_are_the_mixs_formula() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    mixed_job(home);
    for denominator in [2, 4] {
        let total = UTTERANCES.iter().sum::<usize>() / denominator;
        let ratio = UTTERANCES.iter().map(|n| n / denominator).sum::<usize>();
        assert_ne!(total, ratio, "the fixture tells the mixes apart");
        for (mix, expected) in [("total", total), ("ratio", ratio)] {
            let settings = [format!("data.mix={mix}"), format!("data.share=1/{denominator}")];
            let more = ["--set", &settings[0], "--set", &settings[1], "--set", "evaluate.arms=[\"trained\"]"];
            let report = run(home, &format!("{mix}{denominator}"), &more);
            assert_eq!(report["provenance"]["samples_trained_on"], expected, "{mix} at 1/{denominator}");
            // What the coordinator reckons is what the worker computed.
            assert_eq!(report["training"]["samples"], expected, "{mix} at 1/{denominator}");
            assert_eq!(report["training"]["updates"], expected.div_ceil(16), "{mix} at 1/{denominator}");
        }
    }
}

#[test]
fn a_mix_may_be_matched_by_updates() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    mixed_job(home);
    let more = ["--set", "data.share=1/4", "--set", "train.updates=7", "--set", "evaluate.arms=[\"trained\"]"];
    let report = run(home, "out", &more);
    assert_eq!((&report["training"]["updates"], &report["provenance"]["updates"]), (&json!(7), &json!(7)));
    assert_eq!(report["training"]["losses"].as_array().unwrap().len(), 7);
    assert_eq!(report["provenance"]["samples_trained_on"], 16, "the same samples, more often");
}

#[test]
fn labels_that_do_not_become_one_set_are_refused_with_label_and_field() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    mixed_job(home);
    let refused = |more: &[&str], parts: &[&str]| {
        let said = fail(insula(home).args(["run", "job.toml"]).args(more), 2);
        for part in parts {
            assert!(said.contains(part), "expected '{part}' in: {said}");
        }
    };
    let mapping = |text: &str| write(&home.join("labels.toml"), text);
    refused(&["--set", "labels.file=\"\""], &["labels.file", "corpora a and b have different labels", "Peaceful"]);

    mapping(&format!("{NAMES}{}{EMORYNLP}", MELD.replace("angry = \"other\"\n", "")));
    refused(&[], &["label 'angry' of meld is not mapped", "labels.map.meld", "surprise"]);

    mapping(&format!("{NAMES}{MELD}"));
    refused(&[], &["labels.map has no mapping for emorynlp"]);

    mapping(&format!("{NAMES}{}{EMORYNLP}", MELD.replace("fear = \"other\"", "fear = \"dread\"")));
    refused(&[], &["labels.map.meld", "'fear' is mapped to 'dread'", "joyful, sad, neutral, other"]);

    let own = |labels: [&str; 7]| labels.map(|label| format!("{label} = \"{label}\"\n")).concat();
    let meld = ["neutral", "surprise", "fear", "sad", "joyful", "disgust", "angry"];
    let emorynlp = ["Joyful", "Mad", "Peaceful", "Neutral", "Sad", "Powerful", "Scared"];
    let names = [meld, emorynlp].concat();
    mapping(&format!("names = {names:?}\n[map.meld]\n{}[map.emorynlp]\n{}", own(meld), own(emorynlp)));
    refused(&[], &["labels.map merges nothing", "emorynlp, meld"]);

    mapping("names = [\"joyful\", \"sad\"\n");
    refused(&[], &["labels.file", "labels.toml"]);
    fs::remove_file(home.join("labels.toml")).unwrap();
    refused(&[], &["labels.file", "labels.toml"]);
    assert!(succeed(insula(home).arg("status")).contains("no jobs"), "a refused job is none");
}

#[test]
fn what_is_wrong_with_one_corpus_of_a_mix_names_that_one() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    mixed_job(home);
    write_emorynlp(&home.join("scenes"), "train", &dialogues(23, 4, &["Cy", "Di"], &[("hooray", "Joyful")]));
    let said = fail(insula(home).args(["run", "job.toml"]), 2);
    assert!(said.contains("corpora.b.path: every training utterance is 'joyful'"), "{said}");
    let said = succeed(insula(home).args(["submit", "job.toml", "--json", "--set", "evaluate.arms=[\"zero-shot\"]"]));
    assert!(said.contains("corpora.a.path: ") && said.contains("corpora.b.path: "), "{said}");
    assert!(!said.contains("corpus.path"), "{said}");
}
