//! A coordinator on loopback with a small corpus, and a worker that computes nothing but answers everything.
#![allow(
    dead_code,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "test code, shared by files that use parts of it"
)]

use std::{fs, path::Path};

use insula_coordinator::shell::server::{CoordinatorConfig, Running, StartError, start};
use insula_proto::{
    VERSION,
    ids::Digest,
    job::{Arm, JobSpec},
    v1::{
        self, artifacts_client::ArtifactsClient, fleet_client::FleetClient, jobs_client::JobsClient, lease::Task,
        logs_client::LogsClient, report_request::Report,
    },
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

pub const LABELS: usize = 7;

/// Dialogues of two utterances in MELD's layout: so many in train, dev and test.
pub fn write_corpus(folder: &Path, sizes: [usize; 3]) {
    for (split, dialogues) in ["train", "dev", "test"].into_iter().zip(sizes) {
        let mut text = String::from("Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\n");
        for n in 0..dialogues {
            text += &format!("\"Hello, {split} {n}.\",Ross,joy,{n},0\nGo away {n}!,Rachel,anger,{n},1\n");
        }
        fs::write(folder.join(format!("{split}.csv")), text).unwrap();
    }
}

pub fn spec(corpus: &Path, epochs: u32) -> JobSpec {
    let mut spec = JobSpec { name: "a test".into(), ..JobSpec::default() };
    spec.corpus.path = corpus.to_string_lossy().into_owned();
    spec.train.epochs = epochs;
    spec.evaluate.arms = vec![Arm::ZeroShot, Arm::Trained];
    spec
}

pub async fn try_start_at(state_dir: &Path, listen: &str) -> Result<Running, StartError> {
    start(CoordinatorConfig::new(state_dir, listen.parse().unwrap()), CancellationToken::new()).await
}

pub async fn start_at(state_dir: &Path) -> Running {
    try_start_at(state_dir, "127.0.0.1:0").await.unwrap()
}

pub async fn channel(running: &Running) -> Channel {
    Channel::from_shared(format!("http://{}", running.addr)).unwrap().connect().await.unwrap()
}

pub struct Clients {
    pub jobs: JobsClient<Channel>,
    pub fleet: FleetClient<Channel>,
    pub artifacts: ArtifactsClient<Channel>,
    pub logs: LogsClient<Channel>,
}

impl Clients {
    pub async fn to(running: &Running) -> Self {
        let channel = channel(running).await;
        Self {
            jobs: JobsClient::new(channel.clone()),
            fleet: FleetClient::new(channel.clone()),
            artifacts: ArtifactsClient::new(channel.clone()),
            logs: LogsClient::new(channel),
        }
    }

    pub async fn submit(&mut self, request_id: &str, spec: &JobSpec) -> Result<v1::SubmitResponse, Status> {
        let request = v1::SubmitRequest { request_id: request_id.into(), spec: Some(spec.into()) };
        Ok(self.jobs.submit(request).await?.into_inner())
    }

    pub async fn job(&mut self, job_id: &str) -> v1::Job {
        let request = v1::GetJobRequest { job_id: job_id.into(), etag: String::new() };
        self.jobs.get(request).await.unwrap().into_inner().job.unwrap()
    }

    pub async fn put(&mut self, name: &str, bytes: &[u8]) -> v1::Artifact {
        let chunks: Vec<_> = bytes.chunks(1000).map(|c| v1::ArtifactChunk { data: c.to_vec() }).collect();
        let put = self.artifacts.put(futures::stream::iter(chunks)).await.unwrap().into_inner();
        assert_eq!(put.digest, Digest::of(bytes).to_string());
        v1::Artifact { name: name.into(), digest: put.digest, bytes: put.bytes }
    }

    pub async fn get(&mut self, digest: &str) -> Result<Vec<u8>, Status> {
        let mut chunks = self.artifacts.get(v1::GetArtifactRequest { digest: digest.into() }).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            bytes.extend(chunk.data);
        }
        Ok(bytes)
    }

    pub async fn register(&mut self, name: &str) -> u64 {
        let (name, version, device) = (name.into(), VERSION.into(), "cpu".into());
        let request = v1::RegisterRequest { name, version, device, threads: 1, sync_address: String::new() };
        self.fleet.register(request).await.unwrap().into_inner().worker_id
    }

    pub async fn lease(&mut self, worker_id: u64, wait_ms: u32) -> Option<v1::Lease> {
        let request = v1::LeaseRequest { worker_id, wait_ms, only_job: String::new(), heard_lease_id: u64::MAX };
        self.fleet.lease(request).await.unwrap().into_inner().lease
    }

    pub async fn report(&mut self, worker_id: u64, lease_id: u64, report: Report) -> Result<(), Status> {
        let base_digest = Digest::of(b"base").to_string();
        let request = v1::ReportRequest { worker_id, lease_id, base_digest, report: Some(report) };
        self.fleet.report(request).await.map(drop)
    }

    /// Everything a watcher is told from a token on, up to `most` events.
    pub async fn watch(&mut self, job_id: &str, resume_token: &str, most: usize) -> Vec<v1::JobEvent> {
        let request = v1::WatchRequest { job_id: job_id.into(), resume_token: resume_token.into() };
        let mut stream = self.jobs.watch(request).await.unwrap().into_inner();
        let mut events = Vec::new();
        while events.len() < most
            && let Some(event) = stream.message().await.unwrap()
        {
            events.push(event);
        }
        events
    }

    /// Answers a lease: dev of epoch 1 worse than of epoch 2, shards read from the store and counted.
    pub async fn work(&mut self, worker: u64, lease: v1::Lease) {
        match lease.task.clone().unwrap() {
            Task::Train(_) => self.train(worker, lease).await,
            Task::Evaluate(task) => self.evaluate(worker, lease.lease_id, task).await,
            Task::Embed(_) => panic!("these jobs retrieve nothing"),
        }
    }

    async fn train(&mut self, worker: u64, lease: v1::Lease) {
        for epoch in 1..=lease.spec.as_ref().unwrap().train.as_ref().unwrap().epochs {
            let adapter = vec![self.put("adapter_model.safetensors", format!("adapter {epoch}").as_bytes()).await];
            self.report(worker, lease.lease_id, Report::Epoch(v1::EpochTrained { epoch, adapter })).await.unwrap();
        }
        let losses = vec![2.5, 1.25];
        let trained = v1::Trained {
            updates: 2,
            samples: 40,
            tokens: 900,
            tree_tokens: 700,
            seconds: 2.0,
            peak_rss_bytes: 1 << 28,
            losses,
            dropped_utterances: 0,
        };
        self.report(worker, lease.lease_id, Report::Trained(trained)).await.unwrap();
    }

    pub async fn evaluate(&mut self, worker: u64, lease_id: u64, task: v1::EvaluateTask) {
        let report = self.evaluated(task).await;
        self.report(worker, lease_id, report).await.unwrap();
    }

    pub async fn evaluated(&mut self, task: v1::EvaluateTask) -> Report {
        let adapter = match task.adapter.first() {
            Some(artifact) => self.get(&artifact.digest).await.unwrap(),
            None => b"bare".to_vec(),
        };
        let mut counts = vec![0; LABELS * (LABELS + 1)];
        let mut predictions = String::new();
        for shard in &task.shards {
            let bytes = self.get(&shard.digest).await.unwrap();
            assert_eq!(Digest::of(&bytes).to_string(), shard.digest);
            for dialogue in insula_proto::shard::decode(&bytes).unwrap() {
                for utterance in &dialogue.utterances {
                    let gold = utterance.gold.index();
                    // The bare base reads as nothing, epoch 1 gets every second right, epoch 2 all.
                    let answer = match adapter.as_slice() {
                        b"bare" => LABELS,
                        b"adapter 1" if utterance.speaker == 1 => 0,
                        _ => gold,
                    };
                    counts[gold * (LABELS + 1) + answer] += 1;
                    predictions += &format!("{{\"id\":\"{}:{}\"}}\n", dialogue.id, utterance.id);
                }
            }
        }
        let name = format!("{} {}", task.arm, String::from_utf8_lossy(&adapter));
        let tally = Some(v1::Tally { labels: LABELS as u32, counts });
        let predictions = Some(self.put(&name, predictions.as_bytes()).await);
        let (strict, paper) = (tally.clone(), tally);
        Report::Evaluated(v1::Evaluated { strict, paper, seconds: 0.5, predictions, ..Default::default() })
    }
}
