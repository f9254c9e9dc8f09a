//! A run goes on after its worker was killed and after it was interrupted, and its adapter is the undisturbed run's, bit
//! for bit. Kills at random moments, of the coordinator too, are in `chaos`.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use support::{
    fleet::{Results, log},
    insula, kill_9, processes, succeed, tiny_job, wait_for,
};

/// Enough updates that there is a middle to be killed in.
const MORE: [&str; 4] = ["--set", "train.epochs=12", "--set", "checkpoint_updates=3"];

fn quiet(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_killed_worker_is_replaced_and_the_job_resumes_from_its_checkpoint() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    let calm = Results::undisturbed(home, &MORE);
    let mut run = quiet(insula(home).args(["run", "job.toml", "--out", "out", "--state", "state"]).args(MORE));
    let here = fs::read_to_string(wait_for("the address file", || {
        let file = home.join("state/address");
        file.is_file().then_some(file)
    }))
    .unwrap();
    for update in [5, 20] {
        wait_for("some updates", || log(home, "state").contains(&format!("update {update}/")).then_some(()));
        processes(&["worker", "--attached", &here]).into_iter().for_each(kill_9);
    }
    assert!(run.wait().unwrap().success());
    assert!(Results::of(&home.join("out")) == calm, "the adapter or the predictions differ");
    let log = log(home, "state");
    let resumed = log.lines().filter(|line| line.contains("updates done") && !line.contains(" 0 of ")).count();
    assert!(resumed >= 1, "no run began after update 0:\n{log}");
}

#[test]
fn an_interrupted_run_says_what_it_kept_and_can_be_resumed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_job(home);
    let calm = Results::undisturbed(home, &MORE);
    let mut command = insula(home);
    command.args(["run", "job.toml", "--state", "state"]).args(MORE);
    let run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("some updates", || log(home, "state").contains("update 5/").then_some(()));
    Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
    let output = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("insula run --resume job-1"), "{said}");
    succeed(insula(home).args(["run", "--resume", "job-1", "--state", "state", "--out", "out"]));
    assert!(Results::of(&home.join("out")) == calm, "the adapter or the predictions differ");
}
