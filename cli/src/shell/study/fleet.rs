//! Who computes a study: a coordinator and workers started here, or a cluster's own.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use insula_coordinator::{
    shell::server::CoordinatorConfig,
    study::halving::{Decision, Early, Standing, Standstill},
};
use insula_proto::v1::{CancelRequest, Job, JobState, ResumeRequest};
use tonic::Code;
use tracing_appender::non_blocking::WorkerGuard;

use super::get;
use crate::{
    args::StudyArgs,
    failure::Failure,
    progress::state_name,
    shell::{
        client::{ANY_PORT, Client, Serving, access},
        follow::Shown,
        launch::{Launch, Workers},
        logging,
        run::make_state_directory,
    },
};

/// How often jobs are looked at.
const LOOK: Duration = Duration::from_millis(700);

/// A coordinator, and workers where they were started here.
pub struct Fleet {
    client: Client,
    workers: Option<Workers>,
    shown: Shown,
    /// Warnings that were told: jobs of a study mostly share theirs.
    warned: RefCell<BTreeSet<String>>,
    _log: Option<WorkerGuard>,
}

impl Fleet {
    /// The coordinator that was named, or one started here over the state directory, with workers.
    ///
    /// # Errors
    /// When it does not answer, or cannot be started.
    pub async fn start(args: &StudyArgs, verbose: u8) -> Result<Self, Failure> {
        let shown = Shown::for_stderr();
        if let Some(address) = &args.coordinator {
            return Ok(Self {
                client: Client::to(address, &access(&args.access)?).await?,
                workers: None,
                shown,
                warned: RefCell::default(),
                _log: None,
            });
        }
        let state = &args.state.state;
        make_state_directory(state)?;
        let log = logging::start(verbose, Some((state, "insula.log")));
        let client = Client::over(Serving::start(CoordinatorConfig::new(state.clone(), ANY_PORT)).await?).await?;
        let (coordinator, workers, device) = (client.address.clone(), args.workers, args.device.device);
        shown.note(&format!("{workers} worker(s), coordinator at {coordinator}"));
        let workers =
            Workers::start(&Launch { coordinator, job: None, workers, device, threads: args.threads, verbose });
        Ok(Self { client, workers: Some(workers), shown, warned: RefCell::default(), _log: log })
    }

    /// A line to the coordinator.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Tells a warning, once.
    pub fn warn(&self, text: &str) {
        if !self.warned.borrow_mut().insert(text.to_owned()) {
            return;
        }
        self.shown.note(&format!("warning: {text}"));
    }

    /// Waits until all jobs have ended, telling each as it does, and giving up early those that `early` says; gives the jobs
    /// in order.
    ///
    /// # Errors
    /// When the coordinator or the workers are given up, or the person interrupts: what has ended is kept.
    pub async fn wait(&mut self, jobs: &[String], early: &Early) -> Result<Vec<Job>, Failure> {
        let mut workers = self.workers.take();
        let given_up = async {
            match &mut workers {
                Some(workers) => workers.given_up().await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = self.all_ended(jobs, early) => ended,
            failure = given_up => Err(failure),
            _ = tokio::signal::ctrl_c() => {
                Err(Failure::Interrupted("what has ended is kept; go on with the same command".into()))
            }
        };
        self.workers = workers;
        ended
    }

    async fn all_ended(&self, jobs: &[String], early: &Early) -> Result<Vec<Job>, Failure> {
        let mut known: BTreeMap<&String, (String, Option<Job>)> = BTreeMap::new();
        let mut told = BTreeSet::new();
        loop {
            for id in jobs {
                let (etag, job) = known.entry(id).or_default();
                if job.as_ref().is_some_and(|job| is_final(job.state())) {
                    continue;
                }
                let (news, now) = get(self, id, etag).await?;
                if news.is_some() {
                    (*etag, *job) = (now, news);
                }
                if let Some(progress) = job.as_ref().and_then(|job| job.progress.as_ref()) {
                    self.shown.progress(progress);
                }
                if let Some(job) = job.as_ref().filter(|job| is_final(job.state()))
                    && told.insert(id)
                {
                    let name = job.spec.as_ref().map_or("", |spec| &spec.name);
                    let why = if job.failure.is_empty() { String::new() } else { format!(": {}", job.failure) };
                    let (count, all) = (told.len(), jobs.len());
                    self.shown.note(&format!("[{count}/{all}] {id} {name}: {}{why}", state_name(job.state())));
                }
            }
            if told.len() == known.len() {
                break;
            }
            let standings: Vec<_> =
                jobs.iter().map(|id| standing(known.get(id).and_then(|(_, job)| job.as_ref()))).collect();
            for decision in early.decide(&standings) {
                self.act_on(decision, jobs).await?;
            }
            tokio::time::sleep(LOOK).await;
        }
        let last = |id: &String| known.get(id).and_then(|(_, job)| job.clone()).unwrap_or_default();
        Ok(jobs.iter().map(last).collect())
    }

    async fn act_on(&self, decision: Decision, jobs: &[String]) -> Result<(), Failure> {
        let client = &self.client;
        match decision {
            Decision::Resume { trial, pause_epoch } => {
                let request = ResumeRequest { job_id: jobs[trial].clone(), pause_epoch };
                match client.jobs().resume(request).await {
                    Ok(_) => {}
                    // It was cancelled since it was looked at: the next look sees its end.
                    Err(status) if status.code() == Code::FailedPrecondition => return Ok(()),
                    Err(status) => return Err(client.failure(&status)),
                }
                let goal = if pause_epoch == 0 { "its end".into() } else { format!("epoch {pause_epoch}") };
                self.shown.note(&format!("{} goes on to {goal}", jobs[trial]));
            }
            Decision::Stop { trial, why } => {
                let request = CancelRequest { job_id: jobs[trial].clone() };
                client.jobs().cancel(request).await.map_err(|status| client.failure(&status))?;
                self.shown.note(&format!("{} is stopped: {why}", jobs[trial]));
            }
        }
        Ok(())
    }

    /// Stops the coordinator and the workers, where they were started here.
    pub async fn close(self) {
        self.shown.finish();
        if let Some(workers) = self.workers {
            tokio::select! {
                () = workers.stop() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        self.client.close().await;
    }
}

/// What a job has come to, as a trial of a search.
fn standing(job: Option<&Job>) -> Standing {
    let Some(job) = job else { return Standing::default() };
    let stage = match job.paused_epoch {
        _ if is_final(job.state()) => Standstill::Ended,
        0 => Standstill::Running,
        epoch => Standstill::Paused(epoch),
    };
    Standing { scores: job.epochs.iter().map(|e| (e.epoch, e.weighted_f1)).collect(), stage }
}

fn is_final(state: JobState) -> bool {
    matches!(state, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}
