//! `insula bench fleet`: what the coordinator bears. It runs as a process of its own, the real binary over an empty state
//! directory, so that its processor time and memory are its own; everything goes over gRPC on loopback.
//!
//! ```text
//! trials timed -> stored up to 10,000 -> SIGKILL, restart -> status -> stored up to all -> memory
//!     -> GetJob as fast as it goes, at the bar's rate -> polling -> SIGKILL, restart
//! ```
#![expect(clippy::disallowed_methods, reason = "asks the time, and writes a corpus to submit")]

mod child;
mod load;

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use self::{
    child::Coordinator,
    load::{Load, Pace},
};
use crate::{
    args::FleetBenchArgs,
    bench::fleet::{Bar, Figure, Figures, percentile_ms},
    failure::Failure,
    shell::out::{self, say},
};

/// Jobs stored while a restart and `insula status` are measured.
const RESTARTED: u64 = 10_000;

/// After this a corpus is no longer new.
const SETTLED: Duration = Duration::from_millis(3500);

/// Calls of `insula status` of which the median counts.
const STATUS_CALLS: usize = 20;

/// GetJob calls a second at which the slowest hundredth is measured.
const GETS_PER_S: f64 = 5000.0;

/// Measures and prints.
///
/// # Errors
/// When the coordinator does not start or answers what it should not.
pub async fn run(args: &FleetBenchArgs) -> Result<(), Failure> {
    let made = match &args.at {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let folder = made.map_err(|e| Failure::operation("make a temporary folder", e))?;
    let figures = measured(args, folder.path()).await?;
    if args.json {
        say!("{}", serde_json::to_value(&figures).map_err(|e| Failure::operation("print the figures", e))?);
    } else {
        say!("{}", figures.text());
    }
    Ok(())
}

async fn measured(args: &FleetBenchArgs, folder: &Path) -> Result<Figures, Failure> {
    let corpus = folder.join("corpus");
    load::write_corpus(&corpus).map_err(|e| Failure::operation("write the corpus", e))?;
    // A corpus lies there long before it is submitted: one that changed just now is read at every submit.
    tokio::time::sleep(SETTLED).await;
    let state = folder.join("state");
    let mut coordinator = Coordinator::start(&state).await?;
    let mut load = Load::new(&corpus);
    let mut figures = Vec::new();
    throughput(args, &coordinator, &mut load, &mut figures).await?;
    load.store(&coordinator.url, args.workers, args.stored.min(RESTARTED)).await?;
    coordinator = restarted(coordinator, &load, &state, Some(2.0), &mut figures).await?;
    figures.push(status(&coordinator, &load).await?);
    if args.stored > load.stored {
        out::tell(&format!("storing {} trials", args.stored));
        load.store(&coordinator.url, args.workers, args.stored).await?;
    }
    memory(&coordinator, &load, "memory", Some(Bar::AtMost(300.0)), &mut figures);
    gets(args, &coordinator, &load, &mut figures).await?;
    polling(args, &coordinator, &load, &mut figures).await?;
    if load.stored > RESTARTED {
        coordinator = restarted(coordinator, &load, &state, None, &mut figures).await?;
        memory(&coordinator, &load, "memory after the restart", None, &mut figures);
    }
    load.check(&coordinator.url).await?;
    Ok(Figures { trials: args.trials, workers: args.workers, stored: load.stored, figures })
}

/// Trials from submit to their job's end.
async fn throughput(
    args: &FleetBenchArgs,
    coordinator: &Coordinator,
    load: &mut Load,
    figures: &mut Vec<Figure>,
) -> Result<(), Failure> {
    let warm = u64::from(args.workers).max(100);
    load.store(&coordinator.url, args.workers, warm).await?;
    let (began, cpu) = (Instant::now(), coordinator.cpu_seconds());
    let mut submits = load.store(&coordinator.url, args.workers, warm + args.trials).await?;
    let seconds = began.elapsed().as_secs_f64();
    let spent = cpu.zip(coordinator.cpu_seconds()).map(|(before, after)| after - before);
    let rate = args.trials as f64 / seconds;
    let what = format!("no-op trials, {} workers", args.workers);
    figures.push(Figure::new(what, Some(rate), "/s", Some(Bar::AtLeast(1000.0))));
    let per_trial = spent.map(|spent| spent / args.trials as f64 * 1e6);
    figures.push(Figure::new("  coordinator's processor time", per_trial, "us/trial", None));
    figures.push(Figure::new("Submit, median", Some(percentile_ms(&mut submits, 0.5)), "ms", None));
    figures.push(Figure::new("Submit, p99", Some(percentile_ms(&mut submits, 0.99)), "ms", None));
    Ok(())
}

/// Kills the coordinator, and times the way from a new one's start to its first answer about the last job.
async fn restarted(
    coordinator: Coordinator,
    load: &Load,
    state: &Path,
    bar: Option<f64>,
    figures: &mut Vec<Figure>,
) -> Result<Coordinator, Failure> {
    coordinator.kill().await?;
    let began = Instant::now();
    let coordinator = Coordinator::start(state).await?;
    load.get_last(&coordinator.url).await?;
    let seconds = began.elapsed().as_secs_f64();
    let what = format!("back after SIGKILL, {} jobs", load.stored);
    figures.push(Figure::new(what, Some(seconds), "s", bar.map(Bar::AtMost)));
    Ok(coordinator)
}

/// The median of some calls of `insula status`, as a person waits for them.
async fn status(coordinator: &Coordinator, load: &Load) -> Result<Figure, Failure> {
    let program = std::env::current_exe().map_err(|e| Failure::operation("find this program's own file", e))?;
    let mut calls = Vec::new();
    for _ in 0..STATUS_CALLS {
        let began = Instant::now();
        let mut command = tokio::process::Command::new(&program);
        command.args(["status", "--coordinator", &coordinator.url]).stdin(Stdio::null()).stdout(Stdio::null());
        let ended = command.status().await.map_err(|e| Failure::operation("call insula status", e))?;
        if !ended.success() {
            return Err(Failure::Operation(format!("insula status ended with {ended}")));
        }
        calls.push(began.elapsed());
    }
    let what = format!("insula status, {} jobs, median of {STATUS_CALLS}", load.stored);
    Ok(Figure::new(what, Some(percentile_ms(&mut calls, 0.5)), "ms", Some(Bar::AtMost(10.0))))
}

fn memory(coordinator: &Coordinator, load: &Load, what: &str, bar: Option<Bar>, figures: &mut Vec<Figure>) {
    let what = format!("{what}, {} trials", load.stored);
    figures.push(Figure::new(what, coordinator.rss_bytes().map(|bytes| bytes / 1e6), "MB", bar));
}

/// GetJob from many clients: as fast as it goes, and at the bar's rate.
async fn gets(
    args: &FleetBenchArgs,
    coordinator: &Coordinator,
    load: &Load,
    figures: &mut Vec<Figure>,
) -> Result<(), Failure> {
    let (clients, time) = (args.clients, Duration::from_secs(args.seconds));
    let cpu = coordinator.cpu_seconds();
    let mut calls = load.gets(&coordinator.url, clients, time, Pace::Unbound).await?;
    let spent = cpu.zip(coordinator.cpu_seconds()).map(|(before, after)| (after - before) / calls.len() as f64 * 1e6);
    let rate = calls.len() as f64 / time.as_secs_f64();
    let what = format!("GetJob, {} trials, {clients} clients", load.stored);
    figures.push(Figure::new(&what, Some(rate), "/s", Some(Bar::AtLeast(GETS_PER_S))));
    figures.push(Figure::new("  p99 at that rate", Some(percentile_ms(&mut calls, 0.99)), "ms", None));
    figures.push(Figure::new("  coordinator's processor time", spent, "us/call", None));
    let mut calls = load.gets(&coordinator.url, clients, time, Pace::PerSecond(GETS_PER_S)).await?;
    let what = format!("  p99 at {GETS_PER_S}/s");
    figures.push(Figure::new(what, Some(percentile_ms(&mut calls, 0.99)), "ms", Some(Bar::AtMost(5.0))));
    Ok(())
}

/// What a scheduler costs that asks for a thousand jobs once a second.
async fn polling(
    args: &FleetBenchArgs,
    coordinator: &Coordinator,
    load: &Load,
    figures: &mut Vec<Figure>,
) -> Result<(), Failure> {
    let seconds = args.seconds * 4;
    let poller = load.poller(&coordinator.url).await?;
    let cpu = coordinator.cpu_seconds();
    let began = Instant::now();
    poller.poll(seconds).await?;
    let took = began.elapsed().as_secs_f64();
    let spent = cpu.zip(coordinator.cpu_seconds()).map(|(before, after)| (after - before) / took * 100.0);
    let what = format!("polling {} jobs a second", poller.jobs());
    figures.push(Figure::new(what, spent, "% of a core", Some(Bar::AtMost(5.0))));
    Ok(())
}
