//! What the coordinator is driven with: trials of one task each, workers that answer at once, clients that ask.
#![expect(clippy::disallowed_methods, reason = "asks the time, and writes a corpus")]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use insula_proto::{
    VERSION,
    ids::Digest,
    job::{Arm, JobSpec},
    v1::{self, report_request::Report},
};
use insula_worker::shell::Access;
use tokio::task::JoinSet;
use tonic::Status;

use crate::{failure::Failure, shell::client::Client};

/// Clients that submit at once: enough that the next sync always has something to carry.
const SUBMITTERS: u64 = 32;

/// How long a simulated worker waits for a lease; it looks whether all is done in between.
const WAIT_MS: u32 = 200;

/// The corpus: one dialogue a split of two utterances, so that a trial is one task.
const UTTERANCES: [(&str, &str, usize); 2] = [("Ross", "joy", 4), ("Rachel", "anger", 6)];

/// Jobs a scheduler asks for.
const POLLED: u64 = 1000;

/// Calls of a scheduler under way at once.
const POLLED_AT_ONCE: usize = 50;

/// How fast clients call.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// The next call when the one before is answered.
    Unbound,
    /// So many a second, of all clients together; a call that has to wait for the one before counts from when it was due.
    PerSecond(f64),
}

/// The trials so far.
pub struct Load {
    spec: JobSpec,
    /// Jobs stored.
    pub stored: u64,
}

/// Writes the corpus that all trials are of.
pub fn write_corpus(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for split in ["train", "dev", "test"] {
        let mut text = String::from("Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\n");
        for (turn, (speaker, label, _)) in UTTERANCES.into_iter().enumerate() {
            text += &format!("The {split} split says {label}.,{speaker},{label},0,{turn}\n");
        }
        std::fs::write(folder.join(format!("{split}.csv")), text)?;
    }
    Ok(())
}

impl Load {
    /// None yet.
    pub fn new(corpus: &Path) -> Self {
        let mut spec = JobSpec::default();
        spec.corpus.path = corpus.display().to_string();
        spec.evaluate.arms = vec![Arm::ZeroShot];
        Self { spec, stored: 0 }
    }

    /// Submits trials until so many are stored, with workers that end them; how long each Submit took.
    ///
    /// # Errors
    /// The first call that fails.
    pub async fn store(&mut self, url: &str, workers: u32, stored: u64) -> Result<Vec<Duration>, Failure> {
        if stored <= self.stored {
            return Ok(vec![]);
        }
        let all_done = Arc::new(AtomicBool::new(false));
        let left = Arc::new(AtomicU64::new(stored - self.stored));
        let mut at_work = JoinSet::new();
        for number in 0..workers {
            let worker = Worker::register(url, number).await?;
            at_work.spawn(worker.work(left.clone(), all_done.clone()));
        }
        let next = Arc::new(AtomicU64::new(self.stored));
        let mut submitting = JoinSet::new();
        for _ in 0..SUBMITTERS {
            submitting.spawn(submit(
                Client::to(url, &Access::default()).await?,
                self.spec.clone(),
                next.clone(),
                stored,
            ));
        }
        let mut submits = Vec::new();
        while let Some(ended) = submitting.join_next().await {
            submits.extend(joined(ended)?);
        }
        while let Some(ended) = at_work.join_next().await {
            joined(ended)?;
        }
        self.stored = stored;
        Ok(submits)
    }

    /// Asks for the last job.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn get_last(&self, url: &str) -> Result<(), Failure> {
        let client = Client::to(url, &Access::default()).await?;
        let request = v1::GetJobRequest { job_id: format!("job-{}", self.stored), etag: String::new() };
        client.jobs().get(request).await.map_err(|status| client.failure(&status))?;
        Ok(())
    }

    /// Checks that there are exactly the jobs that were stored, and all have succeeded.
    ///
    /// # Errors
    /// When there are others.
    pub async fn check(&self, url: &str) -> Result<(), Failure> {
        let client = Client::to(url, &Access::default()).await?;
        let (mut found, mut succeeded, mut page_token) = (0, 0, String::new());
        loop {
            let request = v1::ListJobsRequest { page_size: 1000, page_token, states: vec![] };
            let page = client.jobs().list(request).await.map_err(|status| client.failure(&status))?.into_inner();
            found += page.jobs.len() as u64;
            succeeded += page.jobs.iter().filter(|job| job.state() == v1::JobState::Succeeded).count() as u64;
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        match (found, succeeded) == (self.stored, self.stored) {
            true => Ok(()),
            false => Err(Failure::Operation(format!(
                "{} trials were submitted, {found} are stored and {succeeded} have succeeded",
                self.stored
            ))),
        }
    }

    /// Asks for jobs from many clients for a while; how long each call took.
    ///
    /// # Errors
    /// The first call that fails.
    pub async fn gets(&self, url: &str, clients: u32, time: Duration, pace: Pace) -> Result<Vec<Duration>, Failure> {
        let mut asking = JoinSet::new();
        for number in 0..clients {
            let client = Client::to(url, &Access::default()).await?;
            asking.spawn(get_jobs(client, (number, clients), self.stored, time, pace));
        }
        let mut calls = Vec::new();
        while let Some(ended) = asking.join_next().await {
            calls.extend(joined(ended)?);
        }
        Ok(calls)
    }

    /// A scheduler that knows its jobs' etags.
    ///
    /// # Errors
    /// When a job is not there.
    pub async fn poller(&self, url: &str) -> Result<Poller, Failure> {
        let client = Client::to(url, &Access::default()).await?;
        let mut known = Vec::new();
        for number in 1..=POLLED.min(self.stored) {
            let request = v1::GetJobRequest { job_id: format!("job-{number}"), etag: String::new() };
            let answer = client.jobs().get(request.clone()).await.map_err(|status| client.failure(&status))?;
            known.push(v1::GetJobRequest { etag: answer.into_inner().etag, ..request });
        }
        Ok(Poller { client, known })
    }
}

fn joined<T>(ended: Result<Result<T, Failure>, tokio::task::JoinError>) -> Result<T, Failure> {
    ended.map_err(|e| Failure::operation("drive the coordinator", e))?
}

/// Submits the next trial until all are: each has a name, a seed and a learning rate of its own, as in a sweep.
async fn submit(client: Client, spec: JobSpec, next: Arc<AtomicU64>, end: u64) -> Result<Vec<Duration>, Failure> {
    let (mut jobs, mut calls) = (client.jobs(), Vec::new());
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= end {
            return Ok(calls);
        }
        let mut spec = spec.clone();
        (spec.name, spec.seed, spec.train.lr) = (format!("trial {number}"), number, 1e-6 * (number + 1) as f64);
        let request = v1::SubmitRequest { request_id: format!("bench-{number}"), spec: Some((&spec).into()) };
        let began = Instant::now();
        jobs.submit(request).await.map_err(|status| client.failure(&status))?;
        calls.push(began.elapsed());
    }
}

/// A worker that computes nothing.
struct Worker {
    client: Client,
    id: u64,
    predictions: v1::Artifact,
}

impl Worker {
    async fn register(url: &str, number: u32) -> Result<Self, Failure> {
        let client = Client::to(url, &Access::default()).await?;
        let request = v1::RegisterRequest {
            name: format!("bench-{number}"),
            version: VERSION.into(),
            device: "none".into(),
            threads: 1,
            ..Default::default()
        };
        let registered = client.fleet().register(request).await.map_err(|status| client.failure(&status))?;
        let id = registered.into_inner().worker_id;
        let data = Bytes::from(format!("{{\"worker\":{number}}}\n")).to_vec();
        let bytes = data.len() as u64;
        let chunks = tokio_stream::once(v1::ArtifactChunk { data });
        let put = client.artifacts().put(chunks).await.map_err(|status| client.failure(&status))?.into_inner();
        let predictions = v1::Artifact { name: "predictions".into(), digest: put.digest, bytes };
        Ok(Self { client, id, predictions })
    }

    /// Answers leases until all trials have ended.
    async fn work(self, left: Arc<AtomicU64>, all_done: Arc<AtomicBool>) -> Result<(), Failure> {
        let (mut fleet, mut heard) = (self.client.fleet(), 0);
        let base_digest = Digest::of(b"no base").to_string();
        let failed = |status: Status| self.client.failure(&status);
        while !all_done.load(Ordering::Acquire) {
            let request =
                v1::LeaseRequest { worker_id: self.id, wait_ms: WAIT_MS, heard_lease_id: heard, ..Default::default() };
            let Some(lease) = fleet.lease(request).await.map_err(failed)?.into_inner().lease else { continue };
            heard = lease.lease_id;
            let report = Some(self.answer(&lease)?);
            let base_digest = base_digest.clone();
            let request = v1::ReportRequest { worker_id: self.id, lease_id: heard, base_digest, report };
            fleet.report(request).await.map_err(failed)?;
            // A trial is one task: its job has ended when its report is answered.
            if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                all_done.store(true, Ordering::Release);
            }
        }
        Ok(())
    }

    /// The corpus's two utterances, both answered rightly.
    fn answer(&self, lease: &v1::Lease) -> Result<Report, Failure> {
        let Some(v1::lease::Task::Evaluate(_)) = &lease.task else {
            return Err(Failure::Operation(format!("a trial's task is '{}': expected an evaluation", lease.what)));
        };
        let labels = lease.corpus.as_ref().map_or(0, |corpus| corpus.labels.len());
        let mut counts = vec![0; labels * (labels + 1)];
        for (_, _, label) in UTTERANCES {
            counts[label * (labels + 1) + label] += 1;
        }
        let tally = Some(v1::Tally { labels: u32::try_from(labels).unwrap_or(u32::MAX), counts });
        let (strict, paper, predictions) = (tally.clone(), tally, Some(self.predictions.clone()));
        Ok(Report::Evaluated(v1::Evaluated { strict, paper, seconds: 0.001, predictions, ..Default::default() }))
    }
}

/// One client's calls: jobs all over the store, no two clients at the same place.
async fn get_jobs(
    client: Client,
    (number, clients): (u32, u32),
    stored: u64,
    time: Duration,
    pace: Pace,
) -> Result<Vec<Duration>, Failure> {
    let (mut jobs, mut calls) = (client.jobs(), Vec::new());
    let began = Instant::now();
    let gap = match pace {
        Pace::Unbound => None,
        Pace::PerSecond(rate) => Some(Duration::from_secs_f64(f64::from(clients) / rate)),
    };
    // Clients start one after the other within the first gap.
    let mut due = began + gap.unwrap_or_default() * number / clients;
    let mut place = u64::from(number);
    while began.elapsed() < time {
        let mut start = Instant::now();
        if gap.is_some() {
            if start < due {
                tokio::time::sleep_until(due.into()).await;
                start = Instant::now(); // the timer's own grain is not the coordinator's
            } else {
                start = due;
            }
        }
        // A prime far from any power of two walks over all jobs.
        place = (place * 48_271 + 11) % stored;
        let request = v1::GetJobRequest { job_id: format!("job-{}", place + 1), etag: String::new() };
        jobs.get(request).await.map_err(|status| client.failure(&status))?;
        calls.push(start.elapsed());
        due += gap.unwrap_or_default();
    }
    Ok(calls)
}

/// A scheduler that asks for its jobs once a second.
pub struct Poller {
    client: Client,
    known: Vec<v1::GetJobRequest>,
}

impl Poller {
    /// How many it asks for.
    pub fn jobs(&self) -> usize {
        self.known.len()
    }

    /// Asks for all of them, once a second.
    ///
    /// # Errors
    /// When a job has changed, which none of them should.
    pub async fn poll(&self, seconds: u64) -> Result<(), Failure> {
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        for _ in 0..seconds {
            beat.tick().await;
            let mut asking = JoinSet::new();
            for request in self.known.clone() {
                if asking.len() >= POLLED_AT_ONCE {
                    self.unchanged(asking.join_next().await)?;
                }
                let mut jobs = self.client.jobs();
                asking.spawn(async move { jobs.get(request).await });
            }
            while let Some(ended) = asking.join_next().await {
                self.unchanged(Some(ended))?;
            }
        }
        beat.tick().await;
        Ok(())
    }

    fn unchanged(&self, ended: Option<Result<Answered, tokio::task::JoinError>>) -> Result<(), Failure> {
        let Some(ended) = ended else { return Ok(()) };
        let answer = ended.map_err(|e| Failure::operation("poll", e))?;
        match answer.map_err(|status| self.client.failure(&status))?.into_inner().job {
            None => Ok(()),
            Some(job) => Err(Failure::Operation(format!("{} came back, though its etag holds", job.job_id))),
        }
    }
}

/// What a call is answered with.
type Answered = Result<tonic::Response<v1::GetJobResponse>, Status>;
