//! A model behind an endpoint is evaluated as any other, and no answer is paid for twice.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use serde_json::Value;
use support::{
    fail, insula, json_file, kill_9, processes,
    standin::{Reply, StandIn},
    succeed, wait_for,
};

/// Utterances of the sample corpus's test split.
const SAMPLES: usize = 103;
const KEY: &str = "sk-of-the-test";

/// Runs a zero-shot evaluation of the sample corpus at the endpoint.
fn run(home: &Path, at: &StandIn) -> Command {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/sample");
    let text = format!(
        "name = \"asked\"\n[corpus]\npath = {:?}\n[base]\nsource = \"endpoint:stand-in@{}\"\n\
         [evaluate]\narms = [\"zero-shot\"]\n[endpoint]\nkey_env = \"STAND_IN_KEY\"\nconcurrency = 4\n\
         usd_per_million_input = 1.0\nusd_per_million_output = 10.0\n",
        sample.display().to_string(),
        at.url(),
    );
    fs::write(home.join("job.toml"), text).unwrap();
    let mut command = asking(home);
    command.args(["run", "job.toml", "--out", "out"]);
    command
}

/// The command with the key, and nothing between it and the stand-in.
fn asking(home: &Path) -> Command {
    let mut command = insula(home);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name);
    }
    command.env("STAND_IN_KEY", KEY);
    command
}

/// A label for every prompt, the same each time; now and then something that is none.
fn answer(prompt: &str) -> Reply {
    let labels = ["neutral", " joyful", "I would say sad.", "angry"];
    Reply::Answer(labels[prompt.len() % labels.len()].to_owned())
}

fn external(home: &Path, key: &str) -> u64 {
    json_file(&home.join("out/report.json"))["arms"][0]["external"][key].as_u64().unwrap()
}

/// Whole lines in the one file of kept answers.
fn kept(home: &Path) -> usize {
    let files: Vec<_> = fs::read_dir(home.join("cache/external")).into_iter().flatten().flatten().collect();
    assert!(files.len() <= 1, "{files:?}");
    let text = files.first().map(|file| fs::read_to_string(file.path()).unwrap()).unwrap_or_default();
    text.matches('\n').count()
}

#[test]
fn an_endpoint_that_falters_is_asked_again_and_its_answers_become_a_report() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let faltering = |request: usize, prompt: &str| match request {
        0 => Reply::Status(429, "Retry-After: 1\r\n", "{\"error\": \"slow down\"}"),
        1 => Reply::Status(500, "", "oops"),
        2 => Reply::Hang(Duration::from_secs(3)),
        3 => Reply::Status(200, "", "<html>a proxy says hello</html>"),
        4 => Reply::Status(200, "", "{\"choices\": []}"),
        5 => Reply::Cut,
        _ => answer(prompt),
    };
    let at = StandIn::start(faltering);
    succeed(run(home, &at).args(["--set", "endpoint.timeout_s=1"]));
    let asked: BTreeSet<String> = at.prompts().into_iter().collect();
    assert_eq!(at.requests.load(SeqCst), asked.len() + 6, "six requests had to be made twice, none more often");
    assert!(at.first_retried_after() >= Duration::from_secs(1), "{:?}", at.first_retried_after());
    assert!(at.keys().iter().all(|key| key == &format!("Bearer {KEY}")), "{:?}", at.keys());
    assert!(asked.iter().all(|prompt| prompt.starts_with("Now you are expert of sentiment")), "{asked:?}");

    let report = json_file(&home.join("out/report.json"));
    let arm = &report["arms"][0];
    assert_eq!((&arm["name"], &arm["samples"]), (&"zero-shot".into(), &SAMPLES.into()));
    let lines = fs::read_to_string(home.join("out/predictions.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |right: fn(&Value) -> bool| lines.iter().filter(|line| right(line)).count();
    assert_eq!(lines.len(), SAMPLES);
    assert_eq!(arm["unreadable"].as_u64().unwrap() as usize, count(|line| line["label"].is_null()));
    assert!(count(|line| line["label"].is_null() && line["paper_label"] == "sad") > 0);
    let accuracy = count(|line| line["label"] == line["gold"]) as f64 / SAMPLES as f64;
    assert_eq!(arm["accuracy"].as_f64().unwrap(), accuracy);
    assert!(lines.iter().all(|line| line["margin"].is_null() && line["logprob"] == serde_json::json!([])));
    // The stand-in charges 100 tokens a prompt and 2 an answer.
    let usage = (external(home, "input_tokens"), external(home, "output_tokens"), external(home, "cached"));
    assert_eq!(usage, (100 * asked.len() as u64, 2 * asked.len() as u64, (SAMPLES - asked.len()) as u64));
    let usd = arm["external"]["usd"].as_f64().unwrap();
    assert!((usd - asked.len() as f64 * 120e-6).abs() < 1e-9, "{usd}");
    let markdown = fs::read_to_string(home.join("out/report.md")).unwrap();
    assert!(markdown.contains("## Cost of the endpoint"), "{markdown}");
    assert!(!fs::read_to_string(home.join("out/report.json")).unwrap().contains(KEY));

    // A second job with the same prompts has all its answers at hand.
    let requests = at.requests.load(SeqCst);
    succeed(&mut run(home, &at));
    assert_eq!(at.requests.load(SeqCst), requests);
    assert_eq!((external(home, "input_tokens"), external(home, "cached")), (0, SAMPLES as u64));
    let again = json_file(&home.join("out/report.json"));
    assert_eq!(again["arms"][0]["confusion"], arm["confusion"]);
    assert_eq!(again["provenance"]["base"]["digest"], report["provenance"]["base"]["digest"]);
}

#[test]
fn a_killed_run_asks_on_resumption_only_for_what_is_missing() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    // The thirty-first request and those after it wait until the stand-in is told to go on.
    let at = StandIn::start(|request, prompt| if request < 30 { answer(prompt) } else { Reply::Hold });
    let mut command = run(home, &at);
    let mut running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("thirty answers", || (kept(home) == 30).then_some(()));
    let address = fs::read_to_string(home.join(".insula/address")).unwrap();
    let workers = processes(&["worker", "--attached", &address]);
    assert_eq!(workers.len(), 1);
    kill_9(running.id());
    workers.into_iter().for_each(kill_9);
    running.wait().unwrap();
    // Half of the last line was never written.
    let file = fs::read_dir(home.join("cache/external")).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 20]).unwrap();
    let before = at.requests.load(SeqCst);
    at.go_on(answer);

    succeed(asking(home).args(["run", "--resume", "job-1", "--out", "out"]));
    let prompts = at.prompts();
    let distinct = prompts.iter().collect::<BTreeSet<_>>().len();
    assert_eq!(at.requests.load(SeqCst) - before, distinct - 29, "29 answers were kept whole");
    assert_eq!(external(home, "cached") as usize, SAMPLES - (distinct - 29));
    assert_eq!(json_file(&home.join("out/report.json"))["arms"][0]["samples"], SAMPLES);
}

#[test]
fn an_endpoint_that_refuses_fails_the_job_and_what_it_answered_is_kept() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let limit = Mutex::new(20);
    let at = StandIn::start(move |_, prompt| {
        let mut left = limit.lock().unwrap();
        if *left == 0 {
            return Reply::Status(401, "", "{\"error\": {\"message\": \"this key was revoked\"}}");
        }
        *left -= 1;
        answer(prompt)
    });
    let said = fail(&mut run(home, &at), 3);
    for part in ["endpoint:stand-in@http://127.0.0.1", "it answered 401", "revoked", "20 of 103 answers are kept"] {
        assert!(said.contains(part), "expected '{part}' in: {said}");
    }
    assert_eq!(kept(home), 20);
    at.go_on(|_| Reply::Status(503, "", "overloaded"));
    let said = fail(run(home, &at).args(["--set", "endpoint.retries=1"]), 3);
    assert!(said.contains("it answered 503: overloaded (tried 2 times)"), "{said}");

    let before = at.requests.load(SeqCst);
    at.go_on(answer);
    // 120 millionths of a dollar an answer: the bound is reached by the fortieth, and those under way are kept too.
    let said = fail(run(home, &at).args(["--set", "endpoint.max_usd=0.0048"]), 3);
    assert!(said.contains("endpoint.max_usd is 0.0048: raise it"), "{said}");
    assert!((40..48).contains(&kept(home)), "{}", kept(home));
    succeed(&mut run(home, &at));
    let distinct = kept(home);
    assert_eq!(at.requests.load(SeqCst) - before, distinct - 20, "every answer was asked for once");
}

#[test]
fn settings_that_cannot_work_with_an_endpoint_are_named() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let at = StandIn::start(|_, prompt| answer(prompt));
    let said = fail(run(home, &at).args(["--set", "evaluate.arms=[\"zero-shot\", \"trained\"]"]), 2);
    assert!(said.contains("evaluate.arms: trained: a base behind an endpoint is for evaluation only"), "{said}");
    let said = fail(run(home, &at).args(["--set", "evaluate.mode=score", "--set", "concurrency=0"]), 2);
    assert!(said.contains("evaluate.mode: score") && said.contains("endpoint.concurrency: 0"), "{said}");
    let said = fail(run(home, &at).env_remove("STAND_IN_KEY"), 3);
    assert!(said.contains("STAND_IN_KEY is not set where this worker runs"), "{said}");
    assert_eq!(at.requests.load(SeqCst), 0);
}
