//! Where there is a token, nothing but health is answered without it.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "test code that writes files")]
mod common;

use std::{fs, future::poll_fn, path::Path};

use common::*;
use insula_coordinator::shell::{
    guard::Protection,
    server::{CoordinatorConfig, Running, StartError, start},
};
use insula_proto::v1::{ListJobsRequest, jobs_client::JobsClient};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request,
    body::Body,
    codegen::{Service, http},
    transport::Channel,
};
use tonic_reflection::pb::v1 as reflection;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

async fn start_with(state: &Path, protection: Protection) -> Result<Running, StartError> {
    let config = CoordinatorConfig { protection, ..CoordinatorConfig::new(state, "127.0.0.1:0".parse().unwrap()) };
    start(config, CancellationToken::new()).await
}

async fn guarded(folder: &Path) -> Running {
    let file = folder.join("token");
    fs::write(&file, format!("{TOKEN}\nthis line is no part of it\n")).unwrap();
    start_with(&folder.join("state"), Protection { token_file: Some(file), ..Protection::default() }).await.unwrap()
}

fn shown<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

#[tokio::test]
async fn a_call_needs_the_token_and_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let running = guarded(folder.path()).await;
    let mut jobs = JobsClient::new(channel(&running).await);
    let missing = jobs.list(ListJobsRequest::default()).await.unwrap_err();
    assert_eq!(missing.code(), Code::Unauthenticated);
    assert!(missing.message().contains("expected --token-file FILE, or INSULA_TOKEN_FILE"), "{missing}");
    let wrong = jobs.list(shown(&TOKEN.replace('0', "1"), ListJobsRequest::default())).await.unwrap_err();
    assert_eq!(wrong.code(), Code::Unauthenticated);
    assert!(wrong.message().contains("is not this coordinator's"), "{wrong}");
    jobs.list(shown(TOKEN, ListJobsRequest::default())).await.unwrap();
    drop(jobs);
    running.stop().await.unwrap();
}

/// What a service says to a call of a method it does not have, without a token.
async fn answer_without_token(channel: &mut Channel, service: &str) -> String {
    let uri = format!("http://insula/{service}/NoSuchMethod");
    let request = http::Request::post(uri).header("content-type", "application/grpc").body(Body::empty());
    poll_fn(|context| Service::<http::Request<Body>>::poll_ready(channel, context)).await.unwrap();
    let answer = channel.call(request.unwrap()).await.unwrap();
    answer.headers()["grpc-status"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_service_but_health_is_behind_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let running = guarded(folder.path()).await;
    let mut channel = channel(&running).await;
    let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let list = reflection::server_reflection_request::MessageRequest::ListServices(String::new());
    let asked = reflection::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let stream = futures::stream::iter([asked]);
    assert_eq!(client.server_reflection_info(stream.clone()).await.unwrap_err().code(), Code::Unauthenticated);
    let mut answers = client.server_reflection_info(shown(TOKEN, stream)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let reflection::server_reflection_response::MessageResponse::ListServicesResponse(listed) = answer else {
        panic!("a list was asked for: {answer:?}");
    };
    let names: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
    assert!(names.len() >= 6, "{names:?}");
    for name in &names {
        let expected = if name == "grpc.health.v1.Health" { Code::Unimplemented } else { Code::Unauthenticated };
        assert_eq!(answer_without_token(&mut channel, name).await, (expected as i32).to_string(), "{name}");
    }
    drop((client, answers, channel));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn files_that_do_not_protect_are_named_with_their_setting() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        Some(path)
    };
    let state = folder.path().join("state");
    let (short, pem) = (file("short", "secret\n"), file("text.pem", "no certificate\n"));
    let missing = Some(folder.path().join("missing"));
    for (protection, expected) in [
        (Protection { token_file: missing.clone(), ..Protection::default() }, "missing: No such file"),
        (Protection { token_file: short, ..Protection::default() }, "short: the access token has 6 characters"),
        (Protection { tls_cert: pem.clone(), ..Protection::default() }, "tls_cert is set and tls_key is not"),
        (Protection { tls_cert: pem.clone(), tls_key: missing, token_file: None }, "tls_key "),
        (Protection { tls_cert: pem.clone(), tls_key: pem, token_file: None }, "text.pem cannot be used: "),
    ] {
        let said = start_with(&state, protection).await.unwrap_err().to_string();
        assert!(said.contains(expected), "expected '{expected}': {said}");
    }
}
