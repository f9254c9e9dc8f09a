//! Whatever dies, nothing acknowledged is lost and the adapter is the undisturbed run's, bit for bit.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use support::{insula, kill_9, processes, succeed, tiny_job, wait_for};

/// Enough updates that there is a middle to be killed in.
const MORE: [&str; 4] = ["--set", "train.epochs=12", "--set", "checkpoint_updates=3"];

fn undisturbed(home: &Path) -> Vec<u8> {
    succeed(insula(home).args(["run", "job.toml", "--out", "calm", "--state", "calm-state"]).args(MORE));
    adapter(&home.join("calm"))
}

fn adapter(out: &Path) -> Vec<u8> {
    fs::read(out.join("adapter/adapter_model.safetensors")).unwrap()
}

fn quiet(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().unwrap()
}

fn log_of(home: &Path, state: &str) -> String {
    // Read as the coordinator keeps it; asking it would need it alive.
    let folder = home.join(state).join("logs");
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|f| fs::read_to_string(f.path()).unwrap_or_default())
        .collect()
}

#[test]
fn a_killed_worker_is_replaced_and_the_job_resumes_from_its_checkpoint() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    let calm = undisturbed(home);
    let mut run = quiet(insula(home).args(["run", "job.toml", "--out", "out", "--state", "state"]).args(MORE));
    let here = fs::read_to_string(wait_for("the address file", || {
        let file = home.join("state/address");
        file.is_file().then_some(file)
    }))
    .unwrap();
    for update in [5, 20] {
        wait_for("some updates", || log_of(home, "state").contains(&format!("update {update}/")).then_some(()));
        processes(&["worker", "--attached", &here]).into_iter().for_each(kill_9);
    }
    assert!(run.wait().unwrap().success());
    assert_eq!(adapter(&home.join("out")), calm);
    let log = log_of(home, "state");
    let resumed = log.lines().filter(|line| line.contains("updates done") && !line.contains(" 0 of ")).count();
    assert!(resumed >= 1, "no run began after update 0:\n{log}");
}

#[test]
fn a_killed_coordinator_comes_back_with_everything_acknowledged() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    let calm = undisturbed(home);
    let start = || {
        let child = quiet(insula(home).args(["coordinator", "--state", "state", "--listen", "127.0.0.1:0"]));
        let status = || insula(home).args(["status", "--json", "--state", "state"]).output().ok();
        wait_for("the coordinator", || {
            let address = fs::read_to_string(home.join("state/address")).ok()?;
            std::net::TcpStream::connect(address.trim().strip_prefix("http://")?).ok()?;
            status().filter(|output| output.status.success())
        });
        child
    };
    let address = || fs::read_to_string(home.join("state/address")).unwrap();
    let mut coordinator = start();
    let port = address();
    let submit = |id: &str| {
        let mut command = insula(home);
        command.args(["submit", "job.toml", "--json", "--request-id", id, "--state", "state"]).args(MORE);
        serde_json::from_str::<Value>(&succeed(&mut command)).unwrap()
    };
    assert_eq!((submit("one")["job_id"].as_str(), submit("one")["existed"].as_bool()), (Some("job-1"), Some(true)));
    let mut worker = quiet(insula(home).args(["worker", "--coordinator", &port, "--name", "w", "--threads", "1"]));
    for update in [5, 20] {
        wait_for("some updates", || log_of(home, "state").contains(&format!("update {update}/")).then_some(()));
        coordinator.kill().unwrap();
        coordinator.wait().unwrap();
        let listen = port.trim().strip_prefix("http://").unwrap();
        coordinator = quiet(insula(home).args(["coordinator", "--state", "state", "--listen", listen]));
    }
    wait_for("the coordinator to answer again", || {
        insula(home).args(["status", "job-1", "--coordinator", &port]).output().ok().filter(|o| o.status.success())
    });
    assert_eq!(submit("one")["existed"], true, "an acknowledged job is known after two crashes");
    succeed(insula(home).args(["watch", "job-1", "--coordinator", &port]));
    succeed(insula(home).args(["report", "job-1", "--out", "out", "--coordinator", &port]));
    assert_eq!(adapter(&home.join("out")), calm);
    for child in [&mut worker, &mut coordinator] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn an_interrupted_run_says_what_it_kept_and_can_be_resumed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    let calm = undisturbed(home);
    let mut command = insula(home);
    command.args(["run", "job.toml", "--state", "state"]).args(MORE);
    let run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("some updates", || log_of(home, "state").contains("update 5/").then_some(()));
    Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
    let output = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("insula run --resume job-1"), "{said}");
    succeed(insula(home).args(["run", "--resume", "job-1", "--state", "state", "--out", "out"]));
    assert_eq!(adapter(&home.join("out")), calm);
}
