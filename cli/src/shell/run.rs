//! `insula run`: coordinator, workers, progress and report in one go, over real gRPC on loopback.

use std::path::{Path, PathBuf};

use insula_coordinator::shell::server::CoordinatorConfig;
use insula_proto::{
    ids::JobId,
    job::JobSpec,
    v1::{GetJobRequest, JobState, SubmitRequest},
};
use insula_worker::shell::Access;

use super::{
    client::{Client, Serving},
    export,
    follow::{Shown, follow},
    launch::{Launch, Workers},
    logging,
    out::{self, say},
    settings,
};
use crate::{
    args::{RunArgs, SettingsArgs},
    failure::Failure,
};

/// Runs a job here, from settings to report.
///
/// # Errors
/// Whatever kept the job from its report; what was finished stays in the state directory.
pub async fn run(args: RunArgs, verbose: u8) -> Result<(), Failure> {
    let spec = match &args.resume {
        Some(_) => None,
        None => {
            // As many as are started may train together.
            let workers = args.workers.map(|workers| format!("workers={workers}"));
            let sets = args.settings.sets.iter().cloned().chain(workers).collect();
            Some(settings::job(&SettingsArgs { job: args.settings.job.clone(), sets })?)
        }
    };
    if spec.is_some() && args.settings.job.is_none() && args.settings.sets.is_empty() {
        return Err(Failure::Input(
            "no job: name a job file such as configs/jobs/quickstart.toml, or --resume JOB".into(),
        ));
    }
    let state = &args.state.state;
    make_state_directory(state)?;
    let _log = logging::start(verbose, Some((state, "insula.log")));
    let mut shown = Shown::for_stderr();
    if let Some(spec) = &spec {
        fetch_base(spec.clone(), &shown).await?;
    }
    let config = CoordinatorConfig::new(state.clone(), args.listen);
    let serving = Serving::start(config).await?;
    let result = serve(&args, spec, &serving, verbose, &mut shown).await;
    shown.finish();
    serving.stop().await;
    result
}

/// Everything between the coordinator's start and its stop.
async fn serve(
    args: &RunArgs,
    spec: Option<JobSpec>,
    serving: &Serving,
    verbose: u8,
    shown: &mut Shown,
) -> Result<(), Failure> {
    let client = Client::to(&serving.url(), &Access::default()).await?;
    let job = match (&spec, &args.resume) {
        (Some(spec), _) => submit(&client, spec, shown).await?,
        (None, Some(job)) => job_name(job)?,
        (None, None) => unreachable!("settings or a job to resume: checked before"),
    };
    let workers = match (args.workers, &spec) {
        (Some(workers), _) => workers,
        (None, Some(spec)) => spec.workers,
        (None, None) => spec_workers(&client, &job).await?,
    };
    shown.note(&format!("{job}: {workers} worker(s), coordinator at {}", serving.url()));
    // A job that starts from another's adapter may have to wait for it, so its workers compute that one too.
    let alone = spec.as_ref().is_none_or(|spec| spec.starts_from().is_none());
    let launch = Launch {
        coordinator: serving.url(),
        job: alone.then(|| job.clone()),
        workers,
        device: args.device.device,
        threads: args.threads,
        verbose,
    };
    let mut workers = Workers::start(&launch);
    let ended = tokio::select! {
        ended = follow(&client, &job, "", shown) => ended,
        failure = workers.given_up() => Err(failure),
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted(String::new())),
    };
    shown.finish();
    if let Err(Failure::Interrupted(_)) = ended {
        shown.note("stopping after the update in hand; Ctrl-C again to stop at once");
        tokio::select! {
            () = workers.stop() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        return Err(Failure::Interrupted(kept(&client, &job, &args.state.state).await));
    }
    workers.stop().await;
    finish(args, &client, &job, ended?).await
}

/// The job's end, shown.
async fn finish(args: &RunArgs, client: &Client, job: &str, state: JobState) -> Result<(), Failure> {
    match state {
        JobState::Succeeded => {}
        JobState::Cancelled => return Err(Failure::JobCancelled(job.to_owned())),
        _ => return Err(Failure::JobFailed { job: job.to_owned(), why: failure_of(client, job).await? }),
    }
    let report = export::report(client, job).await?;
    let folder = args.out.clone().unwrap_or_else(|| args.state.state.join("reports").join(job));
    export::write(client, &report, &folder).await?;
    if args.json {
        say!("{}", report.report_json);
    } else {
        out::print(format_args!("{}", super::jobs::report_text(&report)?));
        say!("\nreport, predictions and adapter: {}", folder.display());
    }
    Ok(())
}

/// Brings the base to this machine first: a bad source or digest is told before anything starts.
async fn fetch_base(spec: JobSpec, shown: &Shown) -> Result<(), Failure> {
    shown.note(&format!("base {}", spec.base.source));
    if spec.external().is_some() {
        return Ok(()); // there is nothing to bring here
    }
    let predicted = spec.clone();
    let digest = spec.base.digest.as_ref().map(ToString::to_string);
    let resolving = tokio::task::spawn_blocking(move || super::model::resolve(&spec.base.source, digest.as_deref()));
    let base = resolving.await.map_err(|e| Failure::operation("fetch the base", e))??;
    shown.note(&format!("base is at {} ({})", base.path.display(), base.digest));
    if predicted.retrieves() {
        fetch_encoder(predicted.clone(), shown).await?;
    }
    if let Some(note) = memory_note(predicted).await {
        shown.note(&note);
    }
    Ok(())
}

/// Brings the sentence encoder to this machine as well.
async fn fetch_encoder(spec: JobSpec, shown: &Shown) -> Result<(), Failure> {
    let digest = spec.retrieval.encoder_digest.as_ref().map(ToString::to_string);
    let source = spec.retrieval.encoder.clone();
    let resolving = tokio::task::spawn_blocking(move || super::model::resolve(&source, digest.as_deref()));
    let encoder = resolving.await.map_err(|e| Failure::operation("fetch the encoder", e))??;
    shown.note(&format!("encoder is at {} ({})", encoder.path.display(), encoder.digest));
    Ok(())
}

/// What the job will take of memory, where that can be told here.
pub async fn memory_note(spec: JobSpec) -> Option<String> {
    tokio::task::spawn_blocking(move || super::memory::note(&spec)).await.ok().flatten()
}

async fn submit(client: &Client, spec: &JobSpec, shown: &Shown) -> Result<String, Failure> {
    let request = SubmitRequest { request_id: uuid::Uuid::new_v4().to_string(), spec: Some(spec.into()) };
    let answer = client.jobs().submit(request).await.map_err(|status| client.failure(&status))?.into_inner();
    answer.warnings.iter().for_each(|warning| shown.note(&format!("warning: {warning}")));
    Ok(answer.job_id)
}

/// A job's name in full, as the coordinator writes it.
pub fn job_name(text: &str) -> Result<String, Failure> {
    text.parse::<JobId>().map(|id| id.to_string()).map_err(|e| Failure::Input(e.to_string()))
}

async fn get(client: &Client, job: &str) -> Result<insula_proto::v1::Job, Failure> {
    let request = GetJobRequest { job_id: job.to_owned(), etag: String::new() };
    let answer = client.jobs().get(request).await.map_err(|status| client.failure(&status))?;
    Ok(answer.into_inner().job.unwrap_or_default())
}

async fn spec_workers(client: &Client, job: &str) -> Result<u32, Failure> {
    Ok(get(client, job).await?.spec.unwrap_or_default().workers.max(1))
}

async fn failure_of(client: &Client, job: &str) -> Result<String, Failure> {
    Ok(get(client, job).await?.failure)
}

/// What an interrupted job keeps, and how to go on.
async fn kept(client: &Client, job: &str, state: &Path) -> String {
    let Ok(found) = get(client, job).await else { return format!("{job} is kept in {}", state.display()) };
    let done = found.tasks.iter().filter(|task| task.state == "done").count();
    let trained = found.progress.map(|p| format!(", training at update {} of {}", p.update, p.updates));
    format!(
        "kept in {}: {job}, {done} of {} tasks done{}; go on with: insula run --resume {job}",
        state.display(),
        found.tasks.len(),
        trained.unwrap_or_default()
    )
}

/// Makes the state directory, or says why it cannot be one.
#[expect(clippy::disallowed_methods, reason = "the state directory is made where the person asked for it")]
pub fn make_state_directory(state: &PathBuf) -> Result<(), Failure> {
    std::fs::create_dir_all(state).map_err(|e| Failure::operation(format!("state directory {}", state.display()), e))
}
