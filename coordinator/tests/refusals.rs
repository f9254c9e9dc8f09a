//! What the coordinator refuses, and that nothing changes by it.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "test code that spoils files")]
mod common;

use std::fs;

use common::*;
use insula_proto::v1::{self, JobState, lease::Task, report_request::Report};
use tonic::Code;
use tonic_types::StatusExt;

#[tokio::test]
async fn a_bad_submit_names_every_field_and_leaves_no_job() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), [2, 2, 2]);
    let running = start_at(&folder.path().join("state")).await;
    let mut clients = Clients::to(&running).await;
    let mut wrong = spec(folder.path(), 0);
    wrong.train.lr = -1.0;
    let status = clients.submit("r", &wrong).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let fields = |status: &tonic::Status| {
        let details = status.get_details_bad_request().unwrap().field_violations;
        details.into_iter().map(|v| v.field).collect::<Vec<_>>()
    };
    assert_eq!(fields(&status), ["train.epochs", "train.lr"]);

    fs::write(folder.path().join("dev.csv"), "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\nHi,Ross,glee,0,0\n")
        .unwrap();
    let status = clients.submit("r", &spec(folder.path(), 1)).await.unwrap_err();
    assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec!["corpus.path".to_owned()]));
    assert!(status.message().contains("dev.csv: row 2: unknown label 'glee'"), "{}", status.message());

    let status = clients.submit("r", &spec(&folder.path().join("none"), 1)).await.unwrap_err();
    assert_eq!(fields(&status), ["corpus.path"]);
    let listed = clients.jobs.list(v1::ListJobsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.jobs, []);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn the_same_request_id_is_one_job_even_after_a_restart_and_without_the_corpus() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), [2, 2, 2]);
    let state = folder.path().join("state");
    let running = start_at(&state).await;
    let mut clients = Clients::to(&running).await;
    let first = clients.submit("r", &spec(folder.path(), 1)).await.unwrap();
    running.kill().await;
    fs::remove_file(folder.path().join("test.csv")).unwrap();
    let running = start_at(&state).await;
    let mut clients = Clients::to(&running).await;
    let again = clients.submit("r", &spec(folder.path(), 1)).await.unwrap();
    assert_eq!((again.job_id, again.existed), (first.job_id, true));
    let status = clients.submit("r", &spec(folder.path(), 2)).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    assert_eq!(clients.submit("", &spec(folder.path(), 2)).await.unwrap_err().code(), Code::InvalidArgument);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_stale_lease_a_missing_artifact_and_an_unknown_job_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), [2, 2, 2]);
    let running = start_at(&folder.path().join("state")).await;
    let mut clients = Clients::to(&running).await;
    clients.submit("r", &spec(folder.path(), 1)).await.unwrap();
    let worker = clients.register("w1").await;
    let stale = clients.lease(worker, 0).await.unwrap();
    let lease = clients.lease(worker, 0).await.unwrap();
    let Some(Task::Evaluate(task)) = lease.task else { panic!("zero-shot comes first") };
    let report = clients.evaluated(task).await;
    let status = clients.report(worker, stale.lease_id, report.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "lease-1 is not held by worker-1 any more: ask for work again");

    let Report::Evaluated(mut lost) = report.clone() else { panic!("an evaluation") };
    lost.predictions.as_mut().unwrap().digest = insula_proto::ids::Digest::of(b"nowhere").to_string();
    let status = clients.report(worker, lease.lease_id, Report::Evaluated(lost)).await.unwrap_err();
    assert!(status.code() == Code::FailedPrecondition && status.message().contains("is not in the store"), "{status}");
    clients.report(worker, lease.lease_id, report.clone()).await.unwrap();
    clients.report(worker, lease.lease_id, report).await.unwrap();

    let unknown = v1::GetJobRequest { job_id: "job-9".into(), etag: String::new() };
    assert_eq!(clients.jobs.get(unknown).await.unwrap_err().code(), Code::NotFound);
    let dead = v1::WatchRequest { job_id: "job-1".into(), resume_token: "999.0".into() };
    let status = clients.jobs.watch(dead).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("'999.0'"), "{status}");
    let early = clients.jobs.report(v1::JobReportRequest { job_id: "job-1".into() }).await.unwrap_err();
    assert_eq!(
        (early.code(), early.message()),
        (Code::FailedPrecondition, "job-1 is running: expected a job that succeeded")
    );
    assert_eq!(clients.get("sha256:zz").await.unwrap_err().code(), Code::InvalidArgument);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_cancelled_job_stops_its_worker_and_an_unchanged_job_is_not_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), [2, 2, 2]);
    let running = start_at(&folder.path().join("state")).await;
    let mut clients = Clients::to(&running).await;
    clients.submit("r", &spec(folder.path(), 1)).await.unwrap();
    let worker = clients.register("w1").await;
    let lease = clients.lease(worker, 0).await.unwrap();
    let get = |etag: &str| v1::GetJobRequest { job_id: "job-1".into(), etag: etag.into() };
    let first = clients.jobs.get(get("")).await.unwrap().into_inner();
    assert_eq!(first.job.unwrap().tasks[0].worker, "w1");
    let second = clients.jobs.get(get(&first.etag)).await.unwrap().into_inner();
    assert_eq!((second.job, second.etag.clone()), (None, first.etag));
    let cancelled = clients.jobs.cancel(v1::CancelRequest { job_id: "job-1".into() }).await.unwrap().into_inner();
    assert_eq!(cancelled.job.unwrap().state(), JobState::Cancelled);
    let beat = v1::HeartbeatRequest { worker_id: worker, lease_id: lease.lease_id, ..Default::default() };
    assert!(clients.fleet.heartbeat(beat).await.unwrap().into_inner().stop);
    assert!(clients.jobs.get(get(&second.etag)).await.unwrap().into_inner().job.is_some());
    running.stop().await.unwrap();
}

#[tokio::test]
async fn logs_are_followed_until_the_job_ends() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), [2, 2, 2]);
    let running = start_at(&folder.path().join("state")).await;
    let mut clients = Clients::to(&running).await;
    clients.submit("r", &spec(folder.path(), 1)).await.unwrap();
    let worker_id = clients.register("w1").await;
    let read = v1::ReadLogRequest { job_id: "job-1".into(), offset: 0, follow: true, worker: String::new() };
    let mut stream = clients.logs.read(read).await.unwrap().into_inner();
    let lines = "loading\nready\n".to_owned();
    clients.logs.append(v1::AppendLogRequest { job_id: "job-1".into(), worker_id, lines }).await.unwrap();
    let chunk = stream.message().await.unwrap().unwrap();
    assert_eq!((chunk.offset, chunk.data), (0, b"w1: loading\nw1: ready\n".to_vec()));
    let other = clients.register("w2").await;
    let lines = "here too\n".to_owned();
    clients.logs.append(v1::AppendLogRequest { job_id: "job-1".into(), worker_id: other, lines }).await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().offset, 22);
    // One worker's lines have offsets of their own.
    let mut of = async |worker: &str, offset| {
        let read = v1::ReadLogRequest { job_id: "job-1".into(), offset, follow: false, worker: worker.into() };
        let chunk = clients.logs.read(read).await.unwrap().into_inner().message().await;
        chunk.map(|chunk| chunk.map(|chunk| (chunk.offset, String::from_utf8(chunk.data).unwrap())))
    };
    assert_eq!(of("w2", 0).await.unwrap(), Some((0, "w2: here too\n".into())));
    assert_eq!(of("w1", 12).await.unwrap(), Some((12, "w1: ready\n".into())));
    assert_eq!((of("w1", 22).await.unwrap(), of("w3", 0).await.unwrap()), (None, None));
    assert_eq!(of("w2", 14).await.unwrap_err().code(), Code::OutOfRange);
    clients.jobs.cancel(v1::CancelRequest { job_id: "job-1".into() }).await.unwrap();
    assert_eq!(stream.message().await.unwrap(), None);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_a_state_directory_in_use_and_an_open_address_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let running = start_at(&state).await;
    let address = running.addr.to_string();
    let refusal = |refused: Result<_, insula_coordinator::shell::server::StartError>| refused.unwrap_err().to_string();
    let other = folder.path().join("other");
    let message = refusal(try_start_at(&other, &address).await);
    assert!(message.starts_with(&format!("cannot listen on {address}: ")), "{message}");
    let message = refusal(try_start_at(&state, "127.0.0.1:0").await);
    assert_eq!(message, format!("state directory {} is in use by another coordinator", state.display()));
    let message = refusal(try_start_at(&other, "0.0.0.0:0").await);
    assert!(message.starts_with("0.0.0.0:0 can be reached from other machines"), "{message}");
    running.stop().await.unwrap();
    start_at(&state).await.stop().await.unwrap();
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let folder = tempfile::tempdir().unwrap();
    let running = start_at(&folder.path().join("state")).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel(&running).await);
    let request = tonic_health::pb::HealthCheckRequest { service: "insula.v1.Jobs".into() };
    assert_eq!(health.check(request).await.unwrap().into_inner().status, 1);
    use tonic_reflection::pb::v1 as reflection;
    let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel(&running).await);
    let list = reflection::server_reflection_request::MessageRequest::ListServices(String::new());
    let request = reflection::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut answers = client.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
    let answer = format!("{:?}", answers.message().await.unwrap().unwrap());
    for service in ["Jobs", "Fleet", "Corpora", "Logs", "Artifacts"] {
        assert!(answer.contains(&format!("insula.v1.{service}")), "{answer}");
    }
    drop((health, client, answers));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn tokens_are_claimed_under_a_live_lease_and_fulfilled_with_what_is_in_the_store() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(folder.path(), [2, 2, 2]);
    let state = folder.path().join("state");
    let running = start_at(&state).await;
    let mut clients = Clients::to(&running).await;
    clients.submit("r", &spec(folder.path(), 1)).await.unwrap();
    let worker_id = clients.register("w1").await;
    let lease_id = clients.lease(worker_id, 0).await.unwrap().lease_id;
    let key = insula_proto::ids::Digest::of(b"key").to_string();
    let claim =
        |lease_id, key: &str| v1::ClaimTokensRequest { worker_id, lease_id, key: key.into(), spoilt: "".into() };
    let fulfil = |artifact: &str| {
        let (key, artifact) = (key.clone(), artifact.into());
        v1::FulfilTokensRequest { worker_id, lease_id, key, artifact }
    };
    let status = clients.fleet.claim_tokens(claim(lease_id, "no digest")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let status = clients.fleet.claim_tokens(claim(lease_id + 1, &key)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    let tokens = clients.put("tokens", b"tokens").await;
    let status = clients.fleet.fulfil_tokens(fulfil(&tokens.digest)).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("is not claimed"), "{status}");

    assert!(clients.fleet.claim_tokens(claim(lease_id, &key)).await.unwrap().into_inner().granted);
    let status = clients.fleet.fulfil_tokens(fulfil(&key)).await.unwrap_err();
    assert!(status.message().contains("is not in the store"), "{status}");
    clients.fleet.fulfil_tokens(fulfil(&tokens.digest)).await.unwrap();
    running.kill().await;
    let running = start_at(&state).await;
    let mut clients = Clients::to(&running).await;
    let answer = clients.fleet.claim_tokens(claim(lease_id, &key)).await.unwrap().into_inner();
    assert_eq!(answer, v1::ClaimTokensResponse { artifact: tokens.digest, granted: false }, "kept over a restart");
    running.stop().await.unwrap();
}
