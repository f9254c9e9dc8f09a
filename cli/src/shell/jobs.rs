//! `insula submit`, `status`, `watch`, `logs`, `cancel`, `report`.

use std::io::Write as _;

use comfy_table::{Table, TableStyle};
use insula_coordinator::report::Report;
use insula_proto::v1::{
    CancelRequest, GetJobRequest, Job, JobReport, JobState, ListJobsRequest, ListJobsResponse, ListWorkersRequest,
    ReadLogRequest, SubmitRequest, WatchWorkersRequest, Worker,
};

use super::{
    client::Client,
    export,
    follow::{Shown, follow},
    out::{self, say},
    run::{job_name, memory_note},
    settings,
};
use crate::{
    args::{JobArgs, LogsArgs, ReportArgs, StatusArgs, SubmitArgs, WatchArgs, WorkersArgs},
    failure::Failure,
    progress::{progress_text, state_name},
};

/// Jobs that `status` lists for reading; `--json` has all of them.
const LISTED: u32 = 50;
/// Jobs asked for at a time.
const PAGE: u32 = 1000;

/// `insula submit`
pub async fn submit(args: SubmitArgs) -> Result<(), Failure> {
    let spec = settings::job(&args.settings)?;
    if let Some(note) = memory_note(spec.clone()).await {
        out::tell(&note);
    }
    let client = Client::connect(&args.client).await?;
    let request_id = args.request_id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let request = SubmitRequest { request_id, spec: Some((&spec).into()) };
    let answer = client.jobs().submit(request).await.map_err(|status| client.failure(&status))?.into_inner();
    if args.json {
        let (job, existed, warnings) = (&answer.job_id, answer.existed, &answer.warnings);
        say!("{}", serde_json::json!({ "job_id": job, "existed": existed, "warnings": warnings }));
    } else {
        answer.warnings.iter().for_each(|warning| out::tell(&format!("warning: {warning}")));
        say!("{}{}", answer.job_id, if answer.existed { " (submitted before)" } else { "" });
    }
    client.close().await;
    Ok(())
}

/// `insula status`
pub async fn status(args: StatusArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client).await?;
    match &args.job {
        Some(job) => one(&client, &job_name(job)?, args.json).await?,
        None => all(&client, args.json).await?,
    }
    client.close().await;
    Ok(())
}

async fn one(client: &Client, job: &str, json: bool) -> Result<(), Failure> {
    let request = GetJobRequest { job_id: job.to_owned(), etag: String::new() };
    let answer = client.jobs().get(request).await.map_err(|status| client.failure(&status))?.into_inner();
    let job = answer.job.unwrap_or_default();
    if json {
        say!("{}", job_json(&job));
        return Ok(());
    }
    say!("{}", summary(&job));
    if !job.failure.is_empty() {
        say!("{}", job.failure);
    }
    if let Some(progress) = &job.progress {
        say!("{}", progress_text(progress));
    }
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(["task", "state", "worker", "tries"]);
    for task in &job.tasks {
        table.add_row([&task.what, &task.state, &task.worker, &task.attempts.to_string()]);
    }
    say!("{table}");
    Ok(())
}

async fn page(client: &Client, page_size: u32, page_token: String) -> Result<ListJobsResponse, Failure> {
    let request = ListJobsRequest { page_size, page_token, ..ListJobsRequest::default() };
    Ok(client.jobs().list(request).await.map_err(|status| client.failure(&status))?.into_inner())
}

async fn all(client: &Client, json: bool) -> Result<(), Failure> {
    let mut jobs = page(client, if json { PAGE } else { LISTED }, String::new()).await?;
    while json && !jobs.next_page_token.is_empty() {
        let next = page(client, PAGE, jobs.next_page_token).await?;
        jobs.jobs.extend(next.jobs);
        jobs.next_page_token = next.next_page_token;
    }
    let workers = client.fleet().list_workers(ListWorkersRequest {}).await;
    let workers = workers.map_err(|status| client.failure(&status))?.into_inner().workers;
    if json {
        let jobs: Vec<_> = jobs.jobs.iter().map(job_json).collect();
        let workers: Vec<_> = workers.iter().map(worker_json).collect();
        say!("{}", serde_json::json!({ "jobs": jobs, "workers": workers }));
        return Ok(());
    }
    if jobs.jobs.is_empty() {
        say!("no jobs");
    }
    jobs.jobs.iter().for_each(|job| say!("{}", summary(job)));
    if !jobs.next_page_token.is_empty() {
        say!("... and older ones");
    }
    for worker in workers.iter().filter(|worker| worker.alive) {
        let doing = if worker.doing.is_empty() { "idle" } else { &worker.doing };
        say!("{} ({}, {} threads): {doing}", worker.name, worker.device, worker.threads);
    }
    Ok(())
}

/// A job in a line.
pub fn summary(job: &Job) -> String {
    let name = job.spec.as_ref().map_or("", |spec| &spec.name);
    format!("{}  {}  {name}", job.job_id, state_name(job.state()))
}

fn job_json(job: &Job) -> serde_json::Value {
    let task = |t: &insula_proto::v1::Task| {
        let (index, what, state, worker, attempts) = (t.index, &t.what, &t.state, &t.worker, t.attempts);
        serde_json::json!({ "index": index, "what": what, "state": state, "worker": worker, "attempts": attempts })
    };
    let progress = job.progress.as_ref().map(|p| {
        serde_json::json!({ "update": p.update, "updates": p.updates, "epoch": p.epoch, "loss": p.loss,
            "lr": p.lr, "samples_per_s": p.samples_per_s, "done": p.done, "total": p.total, "what": p.what })
    });
    serde_json::json!({
        "job_id": job.job_id,
        "name": job.spec.as_ref().map(|spec| &spec.name),
        "state": state_name(job.state()),
        "submitted_ms": job.submitted_ms,
        "finished_ms": (job.finished_ms != 0).then_some(job.finished_ms),
        "failure": (!job.failure.is_empty()).then_some(&job.failure),
        "tasks": job.tasks.iter().map(task).collect::<Vec<_>>(),
        "progress": progress,
    })
}

/// `insula workers`
pub async fn workers(args: WorkersArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client).await?;
    let request = WatchWorkersRequest::default();
    let mut looks = client.fleet().watch_workers(request).await.map_err(|status| client.failure(&status))?.into_inner();
    while let Some(look) = looks.message().await.map_err(|status| client.failure(&status))? {
        if args.json {
            say!("{}", serde_json::Value::Array(look.workers.iter().map(worker_json).collect()));
        } else {
            say!("{}", workers_table(&look.workers));
        }
        if !args.follow {
            break;
        }
    }
    client.close().await;
    Ok(())
}

fn workers_table(workers: &[Worker]) -> Table {
    let mut table = Table::new();
    let header = ["worker", "device", "threads", "state", "doing", "memory", "processor"];
    table.load_style(TableStyle::new()).set_header(header);
    for worker in workers {
        let (memory, processor) = match &worker.metrics {
            Some(of) => (format!("{} MiB", of.rss_bytes >> 20), format!("{:.0} s", of.cpu_seconds)),
            None => ("-".into(), "-".into()),
        };
        let state = if worker.alive { "here" } else { "gone" };
        let doing = if worker.doing.is_empty() { "-" } else { &worker.doing };
        let (threads, state, doing) = (worker.threads.to_string(), state.to_owned(), doing.to_owned());
        table.add_row([worker.name.clone(), worker.device.clone(), threads, state, doing, memory, processor]);
    }
    table
}

fn worker_json(worker: &Worker) -> serde_json::Value {
    serde_json::json!({ "worker_id": worker.worker_id, "name": worker.name, "device": worker.device,
        "threads": worker.threads, "alive": worker.alive, "doing": worker.doing,
        "rss_bytes": worker.metrics.map(|of| of.rss_bytes), "cpu_seconds": worker.metrics.map(|of| of.cpu_seconds) })
}

/// `insula watch`
pub async fn watch(args: WatchArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client).await?;
    let job = job_name(&args.job)?;
    let mut shown = if args.json { Shown::Json } else { Shown::for_stderr() };
    let state = follow(&client, &job, &args.resume_token, &mut shown).await;
    shown.finish();
    let why = match state? {
        JobState::Cancelled => return Err(Failure::JobCancelled(job)),
        JobState::Failed => {
            let request = GetJobRequest { job_id: job.clone(), etag: String::new() };
            let answer = client.jobs().get(request).await.map_err(|status| client.failure(&status))?.into_inner();
            answer.job.unwrap_or_default().failure
        }
        _ => {
            client.close().await;
            return Ok(());
        }
    };
    Err(Failure::JobFailed { job, why })
}

/// `insula logs`
pub async fn logs(args: LogsArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client).await?;
    let (job_id, offset, follow, worker) = (job_name(&args.job)?, args.offset, args.follow, args.worker);
    let request = ReadLogRequest { job_id, offset, follow, worker };
    let mut chunks = client.logs().read(request).await.map_err(|status| client.failure(&status))?.into_inner();
    while let Some(chunk) = chunks.message().await.map_err(|status| client.failure(&status))? {
        let mut stdout = std::io::stdout().lock();
        if stdout.write_all(&chunk.data).and_then(|()| stdout.flush()).is_err() {
            break; // the reader of the pipe has gone
        }
    }
    client.close().await;
    Ok(())
}

/// `insula cancel`
pub async fn cancel(args: JobArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client).await?;
    let request = CancelRequest { job_id: job_name(&args.job)? };
    let answer = client.jobs().cancel(request).await.map_err(|status| client.failure(&status))?.into_inner();
    say!("{}", summary(&answer.job.unwrap_or_default()));
    client.close().await;
    Ok(())
}

/// `insula report`
pub async fn report(args: ReportArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client).await?;
    let report = export::report(&client, &job_name(&args.job)?).await?;
    if let Some(folder) = &args.out {
        export::write(&client, &report, folder).await?;
    }
    if args.json {
        say!("{}", report.report_json);
    } else if args.markdown {
        out::print(format_args!("{}", report.report_markdown));
    } else {
        out::print(format_args!("{}", report_text(&report)?));
    }
    client.close().await;
    Ok(())
}

/// The report as tables for a terminal.
pub fn report_text(report: &JobReport) -> Result<String, Failure> {
    let report: Report = serde_json::from_str(&report.report_json)
        .map_err(|e| Failure::operation("read the coordinator's report", e))?;
    Ok(insula_coordinator::report::text::render(&report))
}
