//! Bad input ends with a clear error that names the thing, a nonzero exit code, and nothing lost.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::{fs, net::TcpListener, path::Path};

use support::{fail, insula, json_file, succeed, tiny_job};

/// Runs the tiny job with more settings, expects `code`, and every one of `parts` in what it says.
fn refused(home: &Path, more: &[&str], code: i32, parts: &[&str]) {
    let said = fail(insula(home).args(["run", "job.toml"]).args(more), code);
    for part in parts {
        assert!(said.contains(part), "expected '{part}' in: {said}");
    }
}

/// Replaces text in a file of the tiny corpus.
fn edit(home: &Path, split: &str, change: impl Fn(String) -> Vec<u8>) {
    let path = home.join(format!("corpus/{split}_sent_emo.csv"));
    fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
}

/// A fresh home with the tiny job.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    tiny_job(home.path());
    home
}

#[test]
fn settings_that_cannot_work_are_all_named() {
    let home = home();
    let home = home.path();
    refused(home, &["--set", "train.lrate=1"], 2, &["unknown key 'train.lrate'", "train.lr"]);
    refused(home, &["--set", "lr=-1", "--set", "r=0"], 2, &["train.lr", "adapter.r"]);
    refused(home, &["--set", "corpus.path=nowhere"], 2, &["nowhere"]);
    refused(home, &["--set", "base.source=nowhere.gguf"], 2, &["nowhere.gguf"]);
    refused(home, &["--set", "base.digest=sha256:00"], 2, &["sha256:00"]);
    let wrong = format!("base.digest=sha256:{}", "0".repeat(64));
    refused(home, &["--set", &wrong], 2, &["sha256:0000"]);
    let said = fail(insula(home).args(["run", "absent.toml"]), 2);
    assert!(said.contains("absent.toml"), "{said}");
    fs::write(home.join("broken.toml"), "[train\nlr = 1").unwrap();
    assert!(fail(insula(home).args(["run", "broken.toml"]), 2).contains("broken.toml"));
    fs::write(home.join("typo.toml"), "[data]\nwindw = 1").unwrap();
    assert!(fail(insula(home).args(["run", "typo.toml"]), 2).contains("did you mean 'data.window'"));
}

#[test]
fn a_corpus_that_cannot_be_read_is_refused_with_file_and_row() {
    type Change = fn(String) -> Vec<u8>;
    let cases: [(&str, Change, &[&str]); 6] = [
        ("train", |csv| csv.replace("Emotion", "Mood").into(), &["train_sent_emo.csv", "Emotion"]),
        ("dev", |csv| csv.replacen("joy", "glee", 1).into(), &["dev_sent_emo.csv", "glee"]),
        ("test", |csv| csv.replacen("well", "\"well", 1).into(), &["test_sent_emo.csv"]),
        ("test", |csv| csv.lines().next().unwrap().into(), &["test_sent_emo.csv"]),
        ("train", |csv| [csv.as_bytes(), b"1,\xff\xfe,Ann,joy,x,99,0\r\n"].concat(), &["train_sent_emo.csv", "UTF-8"]),
        ("dev", |_| vec![], &["dev_sent_emo.csv"]),
    ];
    for (split, change, parts) in cases {
        let home = home();
        edit(home.path(), split, change);
        refused(home.path(), &[], 2, parts);
    }
    let home = home();
    fs::remove_file(home.path().join("corpus/dev_sent_emo.csv")).unwrap();
    refused(home.path(), &[], 2, &["dev"]);
}

#[test]
fn a_label_set_that_cannot_be_told_apart_is_refused() {
    let home = home();
    let labels = r#"corpus.labels=["neutral", "sad", "sad"]"#;
    refused(home.path(), &["--set", labels], 2, &["corpus.labels", "sad"]);
    // A tokenizer that lower-cases cannot tell these two labels apart.
    let path = home.path().join("base/tokenizer.json");
    let mut tokenizer = json_file(&path);
    tokenizer["normalizer"] = serde_json::json!({ "type": "Lowercase" });
    fs::write(&path, tokenizer.to_string()).unwrap();
    let labels = r#"corpus.labels=["neutral", "sad", "joyful", "Sad"]"#;
    refused(home.path(), &["--set", labels], 3, &["\"Sad\"", "\"sad\""]);
}

#[test]
fn damaged_bases_are_refused() {
    let home = home();
    let home = home.path();
    let weights = home.join("base/model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    let said = fail(insula(home).args(["model", "describe", "base"]), 2);
    assert!(said.contains("model.safetensors"), "{said}");
    fs::write(
        home.join("lie.gguf"),
        [b"GGUF".as_slice(), &3u32.to_le_bytes(), &(1u64 << 60).to_le_bytes(), &[0; 8]].concat(),
    )
    .unwrap();
    let said = fail(insula(home).args(["model", "describe", "lie.gguf"]), 2);
    assert!(said.contains("lie.gguf"), "{said}");
}

#[test]
fn a_port_or_a_directory_that_cannot_be_used_is_named() {
    let home = home();
    let home = home.path();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(home, &["--listen", &address], 1, &[&address]);
    fs::write(home.join("file"), "").unwrap();
    refused(home, &["--state", "file/state"], 1, &["file/state"]);
    let said = fail(insula(home).args(["status", "--coordinator", "http://127.0.0.1:1"]), 5);
    assert!(said.contains("127.0.0.1:1"), "{said}");
}

#[test]
fn a_prompt_longer_than_the_context_loses_its_oldest_utterances_and_the_report_counts_them() {
    let home = home();
    let home = home.path();
    let path = home.join("base/config.json");
    let mut config = json_file(&path);
    // 290 bytes of instruction; with a window of two the longest prompts no longer fit.
    config["max_position_embeddings"] = 320.into();
    fs::write(&path, config.to_string()).unwrap();
    succeed(insula(home).args(["run", "job.toml", "--out", "out"]));
    let report = json_file(&home.join("out/report.json"));
    assert!(report["arms"][0]["dropped_utterances"].as_u64().unwrap() > 0, "{report}");
    config["max_position_embeddings"] = 100.into();
    fs::write(&path, config.to_string()).unwrap();
    refused(home, &[], 3, &["dialogue test/0", "context has 100"]);
}

#[test]
fn a_share_that_keeps_nothing_is_refused_and_the_finished_part_is_kept() {
    let home = home();
    refused(home.path(), &["--set", "share=1/1000"], 3, &["data.share 1/1000", "40 training samples"]);
    let status = succeed(insula(home.path()).args(["status", "job-1"]));
    assert!(status.contains("failed"), "{status}");
}
