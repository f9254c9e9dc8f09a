//! A small corpus, jobs and workers for tests of the schedule.

use insula_proto::{
    VERSION,
    corpus::{CorpusManifest, Label, LabelSet, Shard, Split, SplitManifest},
    ids::{Digest, JobId, LeaseId, TaskIndex, WorkerId},
    job::{Arm, JobSpec, Objective, StageSpec},
    tally::Tally,
};

use super::{
    Answer, Core, Policy, Refusal, Request, Turn,
    event::{Artifact, Checkpoint, Embedded, Evaluated, Event, FailureClass, Report, Trained},
    state::{Job, State},
    step,
    task::TaskKind,
};

pub(super) const LEASE_MS: u64 = 5000;

/// Two labels; one train shard, two dev shards of 4 utterances, two test shards.
pub(super) fn corpus() -> CorpusManifest {
    let shard =
        |name: &str| Shard { digest: Digest::of(name.as_bytes()), bytes: 9, dialogues: 1, utterances: 4, part: 0 };
    let split = |names: &[&str]| SplitManifest { shards: names.iter().map(|name| shard(name)).collect() };
    CorpusManifest {
        name: "sample".into(),
        digest: Digest::of(b"corpus"),
        labels: LabelSet::new(vec!["good".into(), "bad".into()]).unwrap(),
        splits: [
            (Split::Train, split(&["train"])),
            (Split::Dev, split(&["dev 1", "dev 2"])),
            (Split::Test, split(&["test 1", "test 2"])),
        ]
        .into(),
        parts: vec![],
    }
}

pub(super) fn spec(arms: &[Arm], epochs: u32) -> JobSpec {
    let mut spec = JobSpec::default();
    spec.corpus.path = "sample".into();
    spec.train.epochs = epochs;
    spec.evaluate.arms = arms.to_vec();
    spec
}

pub(super) fn base() -> Digest {
    Digest::of(b"base")
}

pub(super) fn artifact(name: &str) -> Artifact {
    Artifact { name: name.into(), digest: Digest::of(name.as_bytes()), bytes: 1 }
}

/// An evaluation of 4 utterances of which so many are right.
pub(super) fn evaluated(right: u16) -> Evaluated {
    let mut tally = Tally::new(2);
    for n in 0..4 {
        let gold = n % 2;
        tally.count(Label(gold), Some(Label(if n < right { gold } else { 1 - gold })));
    }
    Evaluated {
        strict: tally.clone(),
        paper: tally,
        close_margins: 1,
        dropped_utterances: 0,
        tree_tokens: 40,
        seconds: 0.5,
        peak_rss_bytes: 1000,
        predictions: artifact(&format!("predictions of {right}")),
        copied: 0,
        external: None,
    }
}

/// The embeddings of a shard of 4 utterances.
pub(super) fn embedded() -> Report {
    let (encoder, embeddings) = (Digest::of(b"encoder"), artifact("embeddings"));
    Report::Embedded(Embedded { encoder, rows: 4, width: 3, embeddings, cached: false, seconds: 0.1 })
}

/// A job of everything: two stages, demonstrations, what they are worth, and the adapter of `from` to begin with.
pub(super) fn staged(from: JobId, epochs: u32) -> JobSpec {
    let mut spec = spec(&[Arm::Trained, Arm::ShuffledDemonstrations], epochs);
    let stage = |objectives: &[Objective]| StageSpec {
        objectives: objectives.to_vec(),
        impact_weight: None,
        epochs: None,
        updates: None,
        batch: None,
        lr: None,
        warmup: None,
    };
    spec.stages = vec![stage(&[Objective::Speaker]), stage(&[Objective::Main, Objective::Impact])];
    spec.retrieval.k = 1;
    spec.adapter.from = from.to_string();
    spec
}

pub(super) fn trained() -> Report {
    Report::Trained(Trained {
        updates: 4,
        samples: 8,
        tokens: 90,
        tree_tokens: 70,
        seconds: 2.0,
        peak_rss_bytes: 2000,
        losses: vec![Some(2.5), Some(1.25), None, Some(0.5)],
        dropped_utterances: 0,
    })
}

pub(super) fn checkpoint(update: u32) -> Report {
    let manifest = Digest::of(format!("checkpoint {update}").as_bytes());
    Report::Checkpoint(Checkpoint { update, manifest, state: None, ledger: None })
}

pub(super) fn epoch(epoch: u32) -> Report {
    Report::EpochTrained { epoch, adapter: vec![artifact(&format!("adapter {epoch}"))] }
}

pub(super) fn failed(class: FailureClass) -> Report {
    Report::Failed { class, message: "it broke".into() }
}

/// A worker that asks for any work, having heard of leases up to this one.
pub(super) fn asking(worker: WorkerId, heard: LeaseId) -> Request {
    Request::Lease { worker, only_job: None, heard, waits_ms: 10_000 }
}

/// A heartbeat without news.
pub(super) fn beating(worker: WorkerId, lease: LeaseId) -> Request {
    Request::Heartbeat { worker, lease, progress: None, seated: false, generation: 0 }
}

/// A coordinator's core with its journal, checked after every request.
pub(super) struct Desk {
    pub(super) core: Core,
    pub(super) journal: Vec<(u64, Event)>,
    pub(super) now_ms: u64,
}

impl Desk {
    pub(super) fn new() -> Self {
        Self { core: Core::restored(State::default(), 0, Policy::new(LEASE_MS)), journal: Vec::new(), now_ms: 1000 }
    }

    /// The core a restart would have.
    pub(super) fn replayed(&self) -> Core {
        let mut state = State::default();
        for (at_ms, event) in &self.journal {
            let text = serde_json::to_string(event).expect("an event serialises");
            let event: Event = serde_json::from_str(&text).expect("an event reads back");
            step(&mut state, *at_ms, &event);
        }
        Core::restored(state, self.now_ms, self.core.policy.clone())
    }

    pub(super) fn ask(&mut self, request: Request) -> Result<Turn, Refusal> {
        let before = self.core.state.clone();
        let turn = self.core.handle(self.now_ms, &request);
        self.core.state.check();
        match &turn {
            Ok(turn) => self.journal.extend(turn.events.iter().map(|event| (self.now_ms, event.clone()))),
            Err(_) => assert!(self.core.state == before, "a refusal changes nothing"),
        }
        turn
    }

    pub(super) fn submit(&mut self, request_id: &str, spec: JobSpec) -> JobId {
        let request = Request::Submit { request_id: request_id.into(), spec: Box::new(spec), corpus: corpus() };
        match self.ask(request).unwrap().answer {
            Answer::Submitted { job, .. } => job,
            other => panic!("a submit was answered with {other:?}"),
        }
    }

    pub(super) fn register(&mut self, name: &str) -> WorkerId {
        let (version, device, address) = (VERSION.into(), "cpu".into(), format!("{name}:7000"));
        let request = Request::Register { name: name.into(), version, device, threads: 1, address };
        match self.ask(request).unwrap().answer {
            Answer::Registered(worker) => worker,
            other => panic!("a registration was answered with {other:?}"),
        }
    }

    /// What the worker is given.
    pub(super) fn lease(&mut self, worker: WorkerId) -> Option<(LeaseId, TaskKind)> {
        match self.ask(asking(worker, LeaseId(u64::MAX))).unwrap().answer {
            Answer::Leased(grant) => grant.map(|g| (g.lease, g.job.task(g.task).kind)),
            other => panic!("a lease was answered with {other:?}"),
        }
    }

    pub(super) fn report(&mut self, worker: WorkerId, lease: LeaseId, report: Report) -> Result<Turn, Refusal> {
        self.ask(Request::Report { worker, lease, base: Some(base()), report: Box::new(report) })
    }

    pub(super) fn beat(&mut self, worker: WorkerId, lease: LeaseId) -> Result<bool, Refusal> {
        match self.ask(beating(worker, lease))?.answer {
            Answer::Beat { stop, .. } => Ok(stop),
            other => panic!("a heartbeat was answered with {other:?}"),
        }
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.ask(Request::Tick).unwrap();
    }

    pub(super) fn job(&self, job: JobId) -> &Job {
        &self.core.state.jobs[&job]
    }

    pub(super) fn task_state(&self, job: JobId, task: u32) -> &'static str {
        self.job(job).task(TaskIndex(task)).state.as_str()
    }
}
