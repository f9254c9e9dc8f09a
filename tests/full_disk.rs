//! A disk that takes no more: the coordinator ends and says why, and nothing it acknowledged is lost.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the world")]

mod support;

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use insula_proto::{
    job::{Arm, JobSpec},
    v1::{self, jobs_client::JobsClient},
};
use support::{insula, kill_9, tiny_corpus, wait_for};
use tonic::transport::Channel;

/// Starts a coordinator; the kernel refuses it every file of more than so many KiB, as a full disk does, if any.
fn coordinator(home: &Path, file_kib: Option<u32>) -> Child {
    let direct = insula(home);
    // Without the trap the kernel would end the process at the first byte too many, where a disk just refuses. The shell
    // counts in blocks of 512 or of 1024 bytes, which makes no difference here.
    let limit = file_kib.map_or(String::new(), |kib| format!("trap '' XFSZ; ulimit -f {kib}; "));
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limit}exec \"$0\" \"$@\"")]).arg(direct.get_program());
    command.args(["coordinator", "--listen", "127.0.0.1:0", "--state", "state"]).current_dir(home);
    for (name, value) in direct.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

async fn client(home: &Path) -> JobsClient<Channel> {
    let address = wait_for("the address file", || fs::read_to_string(home.join("state/address")).ok());
    let channel = wait_for("the coordinator", || {
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(Channel::from_shared(address.clone()).unwrap().connect()).ok()
        })
    });
    JobsClient::new(channel)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_coordinator_and_loses_nothing_acknowledged() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let corpus = tiny_corpus(home);
    let mut full = coordinator(home, Some(1200));
    let mut jobs = client(home).await;
    let mut spec = JobSpec::default();
    spec.corpus.path = corpus.to_string_lossy().into_owned();
    spec.evaluate.arms = vec![Arm::ZeroShot];
    let mut acknowledged = Vec::new();
    let status = loop {
        assert!(acknowledged.len() < 2000, "the disk was never full");
        spec.name = format!("trial {}", acknowledged.len());
        let request_id = spec.name.clone();
        match jobs.submit(v1::SubmitRequest { request_id, spec: Some((&spec).into()) }).await {
            Ok(answer) => acknowledged.push((answer.into_inner().job_id, spec.name.clone())),
            Err(status) => break status,
        }
    };
    assert!(acknowledged.len() > 10, "{status}");
    // The answer, or the connection's end: either way nothing was promised.
    let expected = [tonic::Code::Unavailable, tonic::Code::Unknown, tonic::Code::Cancelled];
    assert!(expected.contains(&status.code()), "{status}");
    let ended = wait_for("the coordinator's end", || full.try_wait().unwrap());
    let mut said = String::new();
    full.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(ended.code(), Some(1), "{said}");
    assert!(said.contains("error: the coordinator ended: journal ") && said.contains("disk"), "{said}");

    let mut sound = coordinator(home, None);
    let mut jobs = client(home).await;
    for (job_id, name) in &acknowledged {
        let request = v1::GetJobRequest { job_id: job_id.clone(), etag: String::new() };
        let job = jobs.get(request).await.unwrap().into_inner().job.unwrap();
        assert_eq!(job.spec.unwrap().name, *name);
    }
    // What was not acknowledged may be there or not, but is one job when it is sent again.
    let request_id = spec.name.clone();
    let again = jobs.submit(v1::SubmitRequest { request_id, spec: Some((&spec).into()) }).await.unwrap().into_inner();
    assert_eq!(again.job_id, format!("job-{}", acknowledged.len() + 1));
    kill_9(sound.id());
    sound.wait().unwrap();
}
