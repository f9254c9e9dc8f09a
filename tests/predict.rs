//! Dialogues nobody annotated get labels from an adapter that a job left: over the command line and over gRPC.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Output, Stdio},
};

use insula_proto::v1::{PredictRequest, PredictResponse, SpokenUtterance, predictor_client::PredictorClient};
use serde_json::{Value, json};
use support::{fail, insula, succeed, text, tiny_job};
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt as _;

/// MELD's labels, in prompt order.
const LABELS: [&str; 7] = ["neutral", "surprise", "fear", "sad", "joyful", "disgust", "angry"];
const TURNS: [(&str, &str); 3] = [("Ann", "oh no"), ("Bo", "hooray"), ("Ann", "well, well")];

/// A home with a trained adapter in `out/adapter`.
fn trained() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    tiny_job(home.path());
    succeed(insula(home.path()).args(["run", "job.toml", "--out", "out", "--set", "epochs=1"]));
    home
}

fn dialogue(id: &str) -> String {
    let utterances: Vec<Value> = TURNS.iter().map(|(who, what)| json!({ "speaker": who, "text": what })).collect();
    json!({ "id": id, "utterances": utterances }).to_string()
}

fn predict(home: &Path) -> Command {
    let mut command = insula(home);
    command.args(["predict", "--adapter", "out/adapter", "--threads", "1"]);
    command
}

fn with_input(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn lines(json: &str) -> Vec<Value> {
    json.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_adapter_that_was_exported_labels_dialogues_by_itself() {
    let home = trained();
    let home = home.path();
    let card: Value = serde_json::from_str(&fs::read_to_string(home.join("out/adapter/insula.json")).unwrap()).unwrap();
    assert_eq!(
        (&card["labels"], &card["window"], &card["template"]),
        (&json!(LABELS), &2.into(), &"instructerc".into())
    );
    assert_eq!(card["base"]["source"], home.join("base").canonicalize().unwrap().display().to_string());

    let output = with_input(predict(home).arg("--json"), &format!("{}\n\n{}", dialogue("d1"), dialogue("d2")));
    assert!(output.status.success(), "{}", text(&output));
    let said = lines(&String::from_utf8(output.stdout).unwrap());
    let places: Vec<_> =
        said.iter().map(|line| (line["dialogue"].as_str().unwrap(), line["utterance"].as_u64().unwrap())).collect();
    assert_eq!(places, [("d1", 1), ("d1", 2), ("d1", 3), ("d2", 1), ("d2", 2), ("d2", 3)]);
    for (line, (speaker, words)) in said.iter().zip(TURNS.iter().cycle()) {
        assert_eq!((line["speaker"].as_str(), line["text"].as_str()), (Some(*speaker), Some(*words)));
        let shares = line["probabilities"].as_object().unwrap();
        assert_eq!(shares.keys().collect::<Vec<_>>(), LABELS);
        let greatest = shares.iter().max_by(|a, b| a.1.as_f64().unwrap().total_cmp(&b.1.as_f64().unwrap())).unwrap();
        assert_eq!((line["label"].as_str().unwrap(), &line["probability"]), (greatest.0.as_str(), greatest.1));
        assert!((shares.values().map(|p| p.as_f64().unwrap()).sum::<f64>() - 1.0).abs() < 1e-9);
    }
    assert_eq!(said[0]["probabilities"], said[3]["probabilities"], "a dialogue depends on itself alone");

    // The same from a file, for reading; and with everything said outright.
    fs::write(home.join("asked.jsonl"), dialogue("d1")).unwrap();
    let shown = succeed(predict(home).arg("asked.jsonl"));
    assert_eq!(shown.lines().count(), 3);
    let first: Vec<&str> = shown.lines().next().unwrap().split_whitespace().collect();
    let probability = format!("{:.3}", said[0]["probability"].as_f64().unwrap());
    assert_eq!(first, ["d1", "1", "Ann", said[0]["label"].as_str().unwrap(), &probability, "oh", "no"]);
    let outright = ["--base", "base", "--corpus-layout", "meld", "--window", "2", "--json", "asked.jsonl"];
    assert_eq!(lines(&succeed(predict(home).args(outright))), said[..3]);
    // Another window, other labels and the bare base are other answers.
    let shares =
        |command: &mut Command| lines(&succeed(command.args(["--json", "asked.jsonl"])))[2]["probabilities"].clone();
    assert_ne!(shares(predict(home).args(["--window", "0"])), said[2]["probabilities"]);
    let two = shares(predict(home).args(["--labels", "sad,joyful"]));
    assert_eq!(two.as_object().unwrap().len(), 2);
    let mut bare = insula(home);
    bare.args(["predict", "--base", "base", "--corpus-layout", "meld", "--window", "2"]);
    assert_ne!(shares(&mut bare), said[2]["probabilities"]);
}

#[test]
fn what_cannot_be_predicted_is_named_and_earlier_output_stands() {
    let home = trained();
    let home = home.path();
    for (line, problem) in [
        ("{\"utterances\": [", "standard input: line 3: EOF while parsing"),
        ("{\"utterances\": []}", "standard input: line 3: utterances: has 0 of them"),
        ("{\"utterances\": [{\"speaker\": \"A\", \"text\": \"\"}]}", "line 3: utterances[0].text: is empty"),
    ] {
        let output =
            with_input(predict(home).arg("--json"), &format!("{}\n\n{line}\n{}", dialogue("d1"), dialogue("d2")));
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(problem), "expected '{problem}' in: {}", text(&output));
        assert_eq!(lines(&String::from_utf8(output.stdout).unwrap()).len(), 3);
    }
    let long = json!({ "utterances": [{ "speaker": "A", "text": "x".repeat(5000) }] }).to_string();
    let output = with_input(&mut predict(home), &long);
    assert!(text(&output).contains("line 1: dialogue 1, utterance 1: its prompt alone has"), "{}", text(&output));
    let refused = |more: &[&str], part: &str| {
        let said = fail(predict(home).args(more), 2);
        assert!(said.contains(part), "expected '{part}' in: {said}");
    };
    refused(&["nowhere.jsonl"], "nowhere.jsonl");
    refused(&["--labels", "sad"], "--labels: a label set needs at least 2 labels");
    refused(&["--corpus-layout", "meldy"], "--corpus-layout 'meldy': expected meld, emorynlp or iemocap");
    fs::remove_file(home.join("out/adapter/insula.json")).unwrap();
    refused(&["--base", "base"], "no labels: expected --labels, --corpus-layout, or an adapter with insula.json");
    refused(&["--labels", "sad,joyful"], "no base: expected --base");
}

#[test]
fn a_served_adapter_answers_as_the_command_does() {
    let home = trained();
    let home = home.path();
    let said = fail(insula(home).args(["serve", "--adapter", "out/adapter", "--listen", "0.0.0.0:0"]), 2);
    assert!(said.contains("0.0.0.0:0 can be reached from other machines"), "{said}");
    let output = with_input(predict(home).arg("--json"), &dialogue("d1"));
    let expected = lines(&String::from_utf8(output.stdout).unwrap());

    let mut command = insula(home);
    command.args(["serve", "--adapter", "out/adapter", "--threads", "1", "--listen", "127.0.0.1:0"]);
    let mut serving = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut told = String::new();
    BufReader::new(serving.stdout.as_mut().unwrap()).read_line(&mut told).unwrap();
    let address = told.trim().strip_prefix("predictor at ").unwrap().to_owned();
    tokio::runtime::Runtime::new().unwrap().block_on(ask(&address, &expected));
    Command::new("kill").args(["-TERM", &serving.id().to_string()]).status().unwrap();
    assert!(serving.wait().unwrap().success());
}

async fn ask(address: &str, expected: &[Value]) {
    let channel = Channel::from_shared(address.to_owned()).unwrap().connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let request = tonic_health::pb::HealthCheckRequest { service: "insula.v1.Predictor".into() };
    let healthy = health.check(request).await.unwrap().into_inner();
    assert_eq!(healthy.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);

    let client = PredictorClient::new(channel);
    let request = |turns: &[(&str, &str)]| {
        let spoken = turns.iter().map(|(who, what)| SpokenUtterance { speaker: (*who).into(), text: (*what).into() });
        PredictRequest { utterances: spoken.collect() }
    };
    // Several at once: they wait for one another.
    let asked = (0..5).map(|_| {
        let (mut client, request) = (client.clone(), request(&TURNS));
        tokio::spawn(async move { client.predict(request).await.unwrap().into_inner() })
    });
    for answer in asked.collect::<Vec<_>>() {
        let PredictResponse { labels, predictions } = answer.await.unwrap();
        assert_eq!(labels, LABELS);
        assert_eq!(predictions.len(), expected.len());
        for (prediction, line) in predictions.iter().zip(expected) {
            assert_eq!(prediction.label, line["label"].as_str().unwrap());
            assert_eq!(prediction.probability, line["probability"].as_f64().unwrap());
            let shares: Vec<f64> =
                line["probabilities"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).collect();
            assert_eq!(prediction.probabilities, shares);
        }
    }
    let long = "x".repeat(5000);
    for (turns, fields) in [
        (vec![], vec!["utterances"]),
        (vec![("Ann", "Hi."), ("", " ")], vec!["utterances[1].speaker", "utterances[1].text"]),
        (vec![("Ann", long.as_str())], vec!["utterances"]),
    ] {
        let refused = client.clone().predict(request(&turns)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let details = refused.get_error_details();
        let found: Vec<_> = details.bad_request().unwrap().field_violations.iter().map(|v| v.field.clone()).collect();
        assert_eq!(found, fields, "{refused}");
    }
}
