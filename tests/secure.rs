//! Beyond loopback a coordinator speaks TLS and asks for a token; two commands set that up, and what is wrong is told.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use support::{fail, fleet::Started, insula, json_file, succeed, tiny_job, wait_for};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

/// Makes the keys of a coordinator that is called by 127.0.0.1.
fn init_tls(home: &Path, folder: &str) -> String {
    succeed(insula(home).args(["coordinator", "init-tls", folder, "--host", "127.0.0.1", "--port", "0"]))
}

/// A coordinator that other machines could reach, with the keys in `home/keys`.
fn open_coordinator(home: &Path) -> (Started, String) {
    let config = ["coordinator", "--config", "keys/coordinator.toml", "--state", "state"];
    let coordinator = Started::new(insula(home).args(config));
    let address = support::fleet::address(home, "state");
    (coordinator, address)
}

#[test]
fn a_job_runs_over_tls_by_two_commands_and_whoever_lacks_the_token_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    let told = init_tls(home, "keys");
    assert!(told.contains("insula coordinator --config keys/coordinator.toml"), "{told}");
    assert!(told.contains("insula worker --config join/worker.toml"), "{told}");
    let (_coordinator, url) = open_coordinator(home);
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");

    // Who is not let in is told what is missing.
    let outside = |more: &[&str]| {
        let mut command = insula(home);
        command.args(["status", "--coordinator", &url]).args(more);
        fail(&mut command, 2)
    };
    let (ca, token) = ("keys/join/ca.pem", "keys/join/token");
    let said = outside(&["--ca", ca]);
    assert!(said.contains("expected --token-file FILE, or INSULA_TOKEN_FILE"), "{said}");
    fs::write(home.join("wrong"), "0123456789abcdef0123456789abcdef").unwrap();
    let said = outside(&["--ca", ca, "--token-file", "wrong"]);
    assert!(said.contains("is not this coordinator's"), "{said}");
    init_tls(home, "other");
    let said = outside(&["--ca", "other/join/ca.pem", "--token-file", token]);
    assert!(said.contains("expected one signed by the CA in other/join/ca.pem"), "{said}");
    let said = outside(&["--token-file", token]);
    assert!(said.contains("name its own with --ca") || said.contains("TLS"), "{said}");

    // So is a worker, which ends rather than tries for ever.
    let worker = |more: &[&str]| {
        let mut command = insula(home);
        command.args(["worker", "--coordinator", &url, "--name", "w", "--threads", "1"]).args(more);
        command
    };
    let said = fail(&mut worker(&["--ca", ca]), 1);
    assert!(said.contains("refuses this worker: this coordinator answers only who shows its access token"), "{said}");
    let said = fail(&mut worker(&["--ca", ca, "--token-file", "wrong"]), 1);
    assert!(said.contains("is not this coordinator's"), "{said}");
    let said = fail(&mut worker(&["--ca", "other/join/ca.pem", "--token-file", token]), 2);
    assert!(said.contains("not to be trusted"), "{said}");

    // Who is let in by settings, by options, by the environment; and a command beside the state directory needs nothing.
    let _worker = Started::new(&mut worker(&["--config", "keys/join/worker.toml"]));
    let job = succeed(insula(home).args(["submit", "job.toml", "--state", "state"]));
    assert!(job.contains("job-1"), "{job}");
    let mut by_environment = insula(home);
    by_environment.env("INSULA_COORDINATOR", &url).env("INSULA_CA", ca);
    by_environment.env("INSULA_TOKEN", fs::read_to_string(home.join(token)).unwrap());
    succeed(by_environment.args(["watch", "job-1"]));
    let by_options = ["--coordinator", &url, "--ca", ca, "--token-file", token];
    succeed(insula(home).args(["report", "job-1", "--out", "out"]).args(by_options));
    succeed(insula(home).args(["run", "job.toml", "--state", "plain", "--out", "plain-out"]));
    let adapter = |out: &str| fs::read(home.join(out).join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(adapter("out"), adapter("plain-out"));
    let score = |out: &str| json_file(&home.join(out).join("report.json"))["arms"].clone();
    assert!(score("out").is_array() && score("out").as_array().unwrap().len() == 2);

    tokio::runtime::Runtime::new().unwrap().block_on(is_healthy(&url, &fs::read(home.join(ca)).unwrap()));
}

/// Asks for health, without a token.
async fn is_healthy(url: &str, ca: &[u8]) {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
    let channel = Channel::from_shared(url.to_owned()).unwrap().tls_config(tls).unwrap().connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest { service: "insula.v1.Jobs".into() };
    let status = health.check(request).await.unwrap().into_inner().status();
    assert_eq!(status, tonic_health::pb::health_check_response::ServingStatus::Serving);
}

#[test]
fn plain_text_and_tls_do_not_meet_and_say_so() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    init_tls(home, "keys");
    let (_coordinator, url) = open_coordinator(home);
    let plain = url.replace("https://", "http://");
    let asked = |address: &str, more: &[&str]| {
        let mut command = insula(home);
        command.args(["status", "--coordinator", address]).args(more);
        fail(&mut command, 2)
    };
    let said = asked(&plain, &[]);
    assert!(said.contains("it speaks TLS: expected https:// in its address"), "{said}");
    let said = fail(insula(home).args(["worker", "--coordinator", &plain]), 2);
    assert!(said.contains("it speaks TLS: expected https:// in its address"), "{said}");

    let _other = Started::new(insula(home).args(["coordinator", "--listen", "127.0.0.1:0", "--state", "open"]));
    let tls = support::fleet::address(home, "open").replace("http://", "https://");
    let said = asked(&tls, &["--ca", "keys/join/ca.pem"]);
    assert!(said.contains("it answers in plain text: expected http:// in its address"), "{said}");
    let said = asked("http://203.0.113.1:7461", &["--token-file", "keys/join/token"]);
    assert!(said.contains("would be read on the way: expected https://"), "{said}");
}

#[test]
fn keys_are_for_their_owner_are_not_overwritten_and_are_asked_for_beyond_loopback() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    init_tls(home, "keys");
    let mode = |path: &str| fs::metadata(home.join(path)).unwrap().permissions().mode() & 0o777;
    for file in ["server.pem", "server.key", "coordinator.toml", "join/ca.pem", "join/token", "join/worker.toml"] {
        assert_eq!(mode(&format!("keys/{file}")), 0o600, "{file}");
    }
    assert_eq!((mode("keys"), mode("keys/join")), (0o700, 0o700));
    let before = fs::read(home.join("keys/server.key")).unwrap();
    let said = fail(insula(home).args(["coordinator", "init-tls", "keys", "--host", "lab1"]), 2);
    assert!(said.contains("keys/coordinator.toml: is there already"), "{said}");
    assert_eq!(fs::read(home.join("keys/server.key")).unwrap(), before);

    let said = fail(insula(home).args(["coordinator", "--listen", "0.0.0.0:0", "--state", "s"]), 1);
    assert!(said.contains("tls_cert, tls_key, token_file are not set: expected"), "{said}");
    assert!(said.contains("insula coordinator init-tls DIR --host NAME"), "{said}");

    fs::set_permissions(home.join("keys/join/token"), fs::Permissions::from_mode(0o644)).unwrap();
    let (_coordinator, _) = open_coordinator(home);
    wait_for("a warning of the token's mode", || {
        let log = fs::read_to_string(home.join("state/coordinator.log")).ok()?;
        log.contains("can be read by others on this machine: expected mode 0600").then_some(())
    });
}
