//! `insula sweep` and `insula reproduce`: many jobs, from settings to tables.
//!
//! A trial is submitted under a request id made of its settings, so whoever asks for the same study again is given the
//! same jobs: what has ended is not computed again, what was interrupted goes on.

mod fleet;
mod reproduce;
mod sweep;

pub use self::{reproduce::reproduce, sweep::sweep};

use std::path::Path;

use insula_coordinator::study::{halving::Early, outcome::Outcome};
use insula_proto::{
    ids::Digest,
    job::JobSpec,
    v1::{GetArtifactRequest, GetJobRequest, Job, JobReportRequest, JobState, SubmitRequest},
};

use self::fleet::Fleet;
use crate::{failure::Failure, progress::state_name};

/// A job of a study.
pub struct Asked {
    /// What is asked for; `adapter.from` is filled in.
    pub spec: JobSpec,
    /// Place of the one it starts from, which is before it.
    pub from: Option<usize>,
}

/// Submits every job, gives up early those that `early` says, waits until all have ended, and reads what came of each, in
/// order: its outcome, or why there is none.
///
/// # Errors
/// When the coordinator refuses a job or stays away, or the wait is interrupted.
async fn computed(fleet: &mut Fleet, jobs: &[Asked], early: &Early) -> Result<Vec<Result<Outcome, String>>, Failure> {
    let mut ids: Vec<String> = Vec::new();
    for job in jobs {
        let mut spec = job.spec.clone();
        if let Some(from) = job.from {
            spec.adapter.from.clone_from(&ids[from]);
        }
        let id = submit(fleet, &spec, early).await.map_err(|failure| named(&spec.name, failure))?;
        ids.push(id);
    }
    let ended = fleet.wait(&ids, early).await?;
    let mut outcomes = Vec::new();
    for job in ended {
        outcomes.push(outcome(fleet, &job).await?);
    }
    Ok(outcomes)
}

/// Tries of a trial at most: one that failed is tried again by whoever asks for it again.
const TRIES: u32 = 100;

fn named(name: &str, failure: Failure) -> Failure {
    match failure {
        Failure::Input(text) => Failure::Input(format!("{name}: {text}")),
        other => other,
    }
}

async fn submit(fleet: &Fleet, spec: &JobSpec, early: &Early) -> Result<String, Failure> {
    let client = fleet.client();
    let trial = Digest::of(&serde_json::to_vec(spec).expect("settings are plain data"));
    let mut last = String::new();
    for attempt in 1..=TRIES {
        let request_id = format!("trial {trial} {attempt}");
        let request = SubmitRequest { request_id, spec: Some(spec.into()) };
        let answer = client.jobs().submit(request).await.map_err(|status| client.failure(&status))?.into_inner();
        answer.warnings.iter().for_each(|warning| fleet.warn(warning));
        last = answer.job_id;
        let (job, _) = get(fleet, &last, "").await?;
        // What a search has stopped stays stopped when it goes on.
        let stopped = early.is_none();
        let lost = job.is_some_and(|job| match job.state() {
            JobState::Cancelled => stopped,
            state => state == JobState::Failed,
        });
        if !(answer.existed && lost) {
            break;
        }
    }
    Ok(last)
}

/// What came of a job that has ended.
async fn outcome(fleet: &Fleet, job: &Job) -> Result<Result<Outcome, String>, Failure> {
    let id = &job.job_id;
    if job.state() != JobState::Succeeded {
        let why = if job.failure.is_empty() { String::new() } else { format!(": {}", job.failure) };
        return Ok(Err(format!("{id} is {}{why}", state_name(job.state()))));
    }
    let client = fleet.client();
    let request = JobReportRequest { job_id: id.clone() };
    let report = client.jobs().report(request).await.map_err(|status| client.failure(&status))?.into_inner();
    let mut predictions = Vec::new();
    for part in &report.predictions {
        let request = GetArtifactRequest { digest: part.digest.clone() };
        let mut chunks = client.artifacts().get(request).await.map_err(|s| client.failure(&s))?.into_inner();
        while let Some(chunk) = chunks.message().await.map_err(|status| client.failure(&status))? {
            predictions.extend_from_slice(&chunk.data);
        }
    }
    let predictions =
        String::from_utf8(predictions).map_err(|e| Failure::operation(format!("{id}: predictions"), e))?;
    let read = Outcome::new(id, &report.report_json, &predictions);
    read.map(Ok).map_err(|e| Failure::operation("read a job's results", e))
}

async fn get(fleet: &Fleet, job: &str, etag: &str) -> Result<(Option<Job>, String), Failure> {
    let client = fleet.client();
    let request = GetJobRequest { job_id: job.to_owned(), etag: etag.to_owned() };
    let answer = client.jobs().get(request).await.map_err(|status| client.failure(&status))?.into_inner();
    Ok((answer.job, answer.etag))
}

/// Writes files into a folder that is made where it is missing.
#[expect(clippy::disallowed_methods, reason = "leaves a study's tables and figures where the person asked for them")]
fn write_all(folder: &Path, files: &[(String, String)]) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|e| Failure::operation(folder.display(), e))?;
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|e| Failure::operation(path.display(), e))?;
    }
    Ok(())
}
