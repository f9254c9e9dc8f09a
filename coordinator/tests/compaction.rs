//! What watchers of a job that ended long ago are told, and what they are refused.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "test code")]
mod common;

use std::path::Path;

use common::*;
use insula_coordinator::shell::server::{CoordinatorConfig, Running, start};
use insula_proto::{
    job::Arm,
    v1::{self, job_event::Event, lease::Task},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

async fn start_keeping(state: &Path, stories_kept_days: u32) -> Running {
    let config = CoordinatorConfig::new(state, "127.0.0.1:0".parse().unwrap());
    start(CoordinatorConfig { stories_kept_days, ..config }, CancellationToken::new()).await.unwrap()
}

/// All that a watcher is told of a job that has ended, or why not.
async fn told(clients: &mut Clients, job_id: &str, resume_token: &str) -> Result<Vec<v1::JobEvent>, Status> {
    let request = v1::WatchRequest { job_id: job_id.into(), resume_token: resume_token.into() };
    let mut stream = clients.jobs.watch(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await? {
        events.push(event);
    }
    Ok(events)
}

fn is_progress(event: &v1::JobEvent) -> bool {
    matches!(event.event, Some(Event::Progress(_)))
}

async fn make_progress(clients: &mut Clients, worker_id: u64, lease_id: u64) {
    let progress = Some(v1::Progress { done: 1, total: 4, what: "evaluate".into(), ..Default::default() });
    let beat = v1::HeartbeatRequest { worker_id, lease_id, progress, ..Default::default() };
    clients.fleet.heartbeat(beat).await.unwrap();
}

#[tokio::test]
async fn progress_of_a_job_that_ended_long_ago_is_dropped_and_nobody_misses_it_unawares() {
    let (state, corpus) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_corpus(corpus.path(), [3, 3, 3]);
    let mut spec = spec(corpus.path(), 1);
    spec.evaluate.arms = vec![Arm::ZeroShot];
    let running = start_keeping(state.path(), 30).await;
    let mut clients = Clients::to(&running).await;
    let (ended, open) =
        (clients.submit("1", &spec).await.unwrap().job_id, clients.submit("2", &spec).await.unwrap().job_id);
    let (worker, other) = (clients.register("w").await, clients.register("v").await);
    let lease = clients.lease(worker, 0).await.unwrap();
    assert_eq!(lease.job_id, ended);
    make_progress(&mut clients, worker, lease.lease_id).await;
    let Some(Task::Evaluate(task)) = lease.task else { panic!("an evaluation has one task") };
    clients.evaluate(worker, lease.lease_id, task).await;
    let lease = clients.lease(other, 0).await.unwrap();
    make_progress(&mut clients, other, lease.lease_id).await;
    let whole = told(&mut clients, &ended, "").await.unwrap();
    let place = whole.iter().position(is_progress).unwrap();
    assert!(place > 0 && whole.iter().filter(|event| is_progress(event)).count() == 1);
    running.stop().await.unwrap();

    // The next start finds that the job ended more than no days ago.
    let running = start_keeping(state.path(), 0).await;
    let mut clients = Clients::to(&running).await;
    let left: Vec<_> = whole.iter().filter(|event| !is_progress(event)).cloned().collect();
    let mut now = whole.clone();
    for _ in 0..200 {
        match told(&mut clients, &ended, "").await {
            Ok(told) => now = told,
            // It was compacted between two looks of this very watch.
            Err(status) => assert_eq!(status.code(), Code::OutOfRange, "{status}"),
        }
        if now != whole {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(now[1..], left);
    let Some(Event::Note(note)) = &now[0].event else { panic!("{:?}", now[0]) };
    assert!(note.contains("compacted") && now[0].resume_token.is_empty(), "{note}");

    check_resumes(&mut clients, &ended, &whole, place).await;
    // A job that has not ended keeps everything.
    let open = clients.watch(&open, "", 5).await;
    assert_eq!(open.iter().filter(|event| is_progress(event)).count(), 1);
    running.stop().await.unwrap();

    // What was dropped stays known.
    let running = start_keeping(state.path(), 30).await;
    let mut clients = Clients::to(&running).await;
    check_resumes(&mut clients, &ended, &whole, place).await;
    running.stop().await.unwrap();
}

/// From before what was dropped nobody goes on; from there, and from after it, everybody.
async fn check_resumes(clients: &mut Clients, job: &str, whole: &[v1::JobEvent], dropped: usize) {
    for (place, event) in whole.iter().enumerate() {
        let resumed = told(clients, job, &event.resume_token).await;
        if place < dropped {
            let status = resumed.unwrap_err();
            assert_eq!(status.code(), Code::OutOfRange);
            assert!(status.message().starts_with("relist: ") && status.message().contains("Watch without"), "{status}");
        } else {
            assert_eq!(resumed.unwrap(), whole[place + 1..]);
        }
    }
    let unknown = told(clients, job, "999.0").await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
}
