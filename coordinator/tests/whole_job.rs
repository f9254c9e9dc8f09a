//! A job from submit to report over the wire, with the coordinator killed in the middle.
#![allow(clippy::unwrap_used, reason = "test code")]
mod common;

use common::*;
use insula_coordinator::report;
use insula_proto::v1::{self, JobState, job_event::Event, lease::Task};

#[tokio::test]
async fn a_job_ends_in_a_report_though_the_coordinator_is_killed_after_every_task() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), [20, 10, 300]);
    let state = folder.path().join("state");
    let mut running = start_at(&state).await;
    let mut clients = Clients::to(&running).await;
    let submitted = clients.submit("request 1", &spec(folder.path(), 2)).await.unwrap();
    assert_eq!((submitted.job_id.as_str(), submitted.existed), ("job-1", false));
    // 20 dialogues of two utterances fill one update of 32, so only the corpus is warned of.
    let untested =
        "the test split has no utterance of neutral, surprise, fear, sad, disgust: nothing is said about them";
    let shared = "corpus.path: the texts of 10 of 20 dev utterances (50.0 %) occur in train".to_owned();
    assert_eq!(submitted.warnings, [format!("corpus.labels: {untested}"), shared]);

    let worker = clients.register("w1").await;
    let (mut seen, mut tasks) = (Vec::new(), Vec::new());
    while let Some(lease) = clients.lease(worker, 0).await {
        tasks.push(lease.what.clone());
        clients.work(worker, lease).await;
        let resume = seen.last().map_or(String::new(), |e: &v1::JobEvent| e.resume_token.clone());
        seen.extend(clients.watch("job-1", &resume, 3).await);
        running.kill().await;
        running = start_at(&state).await;
        clients = Clients::to(&running).await;
    }
    let mut expected = (1..=3).map(|n| format!("evaluate zero-shot test {n}/3")).collect::<Vec<_>>();
    expected.extend(["train", "evaluate epoch 1 dev", "evaluate epoch 2 dev"].map(String::from));
    expected.extend((1..=3).map(|n| format!("evaluate trained test {n}/3")));
    assert_eq!(tasks, expected, "every task was handed out once");

    let job = clients.job("job-1").await;
    assert_eq!(job.state(), JobState::Succeeded);
    assert!(job.tasks.iter().all(|task| task.state == "done" && task.attempts == 1), "{:?}", job.tasks);

    // What was seen in pieces, over kills, is what one watcher sees from the beginning, and both end.
    let resume = seen.last().unwrap().resume_token.clone();
    seen.extend(clients.watch("job-1", &resume, usize::MAX).await);
    let whole = clients.watch("job-1", "", usize::MAX).await;
    assert_eq!(seen, whole);
    assert_eq!(whole.last().unwrap().event, Some(Event::State(JobState::Succeeded.into())));
    let last = whole.last().unwrap().resume_token.clone();
    assert_eq!(clients.watch("job-1", &last, usize::MAX).await, []);

    check_report(&mut clients).await;
    running.stop().await.unwrap();
}

async fn check_report(clients: &mut Clients) {
    let request = v1::JobReportRequest { job_id: "job-1".into() };
    let answer = clients.jobs.report(request).await.unwrap().into_inner();
    let report = report::Report::from_json(&answer.report_json).unwrap();
    let arms: Vec<_> = report.arms.iter().map(|a| (a.name.as_str(), a.samples, a.unreadable, a.weighted_f1)).collect();
    assert_eq!(arms, [("zero-shot", 600, 600, 0.0), ("trained", 600, 0, 1.0)]);
    let training = report.training.as_ref().unwrap();
    assert_eq!((training.best_epoch, training.epochs.len(), training.epochs[1].weighted_f1), (2, 2, 1.0));
    assert_eq!(report.provenance.samples_trained_on, 40);
    assert_eq!(answer.adapter[0].name, "adapter_model.safetensors");
    assert_eq!(clients.get(&answer.adapter[0].digest).await.unwrap(), b"adapter 2");
    assert_eq!(answer.predictions.len(), 6);
    let value: serde_json::Value = serde_json::from_str(&answer.report_json).unwrap();
    for key in
        ["name", "corpus", "split", "samples", "weighted_f1", "macro_f1", "accuracy", "unreadable", "paper_weighted_f1"]
    {
        assert!(value["arms"][1].get(key).is_some(), "{key}");
    }
    assert!(answer.report_markdown.contains("| trained | 100.00 |"), "{}", answer.report_markdown);
    let text = report::text::render(&report);
    println!("{text}\n{}", answer.report_markdown);
    let widest = text.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(80), "{widest:?}\n{text}");
}

#[tokio::test]
async fn a_worker_waiting_for_work_is_woken_and_a_watcher_follows_live() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), [2, 2, 2]);
    let running = start_at(&folder.path().join("state")).await;
    let mut clients = Clients::to(&running).await;
    let mut waiting = Clients::to(&running).await;
    let worker = waiting.register("w1").await;
    let wait = tokio::spawn(async move { (waiting.lease(worker, 20_000).await, waiting) });
    let submitted = clients.submit("r", &spec(folder.path(), 1)).await.unwrap();
    let (lease, mut waiting) = wait.await.unwrap();
    let lease = lease.unwrap();
    assert_eq!(lease.job_id, submitted.job_id);
    let mut watching = Clients::to(&running).await;
    let watched = tokio::spawn(async move { watching.watch("job-1", "", usize::MAX).await });
    let mut next = Some(lease);
    while let Some(lease) = next {
        waiting.work(worker, lease).await;
        next = waiting.lease(worker, 0).await;
    }
    let watched = watched.await.unwrap();
    assert_eq!(watched.last().unwrap().event, Some(Event::State(JobState::Succeeded.into())));
    let epochs = watched.iter().filter_map(|e| match &e.event {
        Some(Event::Epoch(scored)) => Some((scored.epoch, scored.best)),
        _ => None,
    });
    assert_eq!(epochs.collect::<Vec<_>>(), [(1, true)]);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_worker_keeps_its_lease_over_a_restart_and_its_report_counts() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), [2, 2, 2]);
    let state = folder.path().join("state");
    let running = start_at(&state).await;
    let mut clients = Clients::to(&running).await;
    clients.submit("r", &spec(folder.path(), 1)).await.unwrap();
    let worker = clients.register("w1").await;
    let lease = clients.lease(worker, 0).await.unwrap();
    running.kill().await;
    let running = start_at(&state).await;
    let mut clients = Clients::to(&running).await;
    let beat = v1::HeartbeatRequest { worker_id: worker, lease_id: lease.lease_id, ..Default::default() };
    assert!(!clients.fleet.heartbeat(beat).await.unwrap().into_inner().stop);
    let Some(Task::Evaluate(task)) = lease.task else { panic!("zero-shot comes first") };
    clients.evaluate(worker, lease.lease_id, task).await;
    assert_eq!(clients.job("job-1").await.tasks[0].state, "done");
    running.stop().await.unwrap();
}
