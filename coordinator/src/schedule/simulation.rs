//! A seeded world: workers that crash, a network that loses, doubles, delays and reorders, a coordinator that dies at
//! any write. Invariants are checked after every request; in the end every job has exactly one result per task.

use std::collections::BTreeMap;

use insula_proto::{
    VERSION,
    ids::{JobId, LeaseId, TaskIndex, WorkerId},
    job::Arm,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    Answer, Refusal, Request,
    event::{Event, PhaseName, Report},
    fixture::*,
    state::TaskKind,
};

/// What a worker process knows.
#[derive(Debug, Clone, Default)]
struct Process {
    id: Option<WorkerId>,
    holds: Option<(LeaseId, TaskKind, u32)>,
    /// How much of the training it has done; what a crash loses.
    update: u32,
    waits_until: u64,
    /// Grows with every message, so that an answer to an old one is known.
    asked: u64,
    /// The request that waits for its answer.
    pending: Option<Request>,
}

#[derive(Debug, Clone)]
enum Message {
    Ask { from: usize, number: u64, request: Request },
    Tell { to: usize, number: u64, answer: Result<Answer, Refusal> },
}

struct World {
    desk: Desk,
    random: ChaCha8Rng,
    processes: Vec<Process>,
    network: Vec<(u64, Message)>,
    epochs: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let workers = random.random_range(1..5);
        let epochs = random.random_range(1..4);
        let processes = vec![Process::default(); workers];
        Self { desk: Desk::new(), random, processes, network: Vec::new(), epochs }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    /// Hands a message to the network, which may lose, double and delay it.
    fn send(&mut self, message: Message) {
        let copies = match self.random.random_range(0..100) {
            0..5 => 0,
            5..15 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let slow = self.chance(5);
            let delay = self.random.random_range(0..if slow { 9000 } else { 200 });
            self.network.push((self.desk.now_ms + delay, message.clone()));
        }
    }

    fn deliver(&mut self) {
        let due: Vec<usize> = (0..self.network.len()).filter(|&n| self.network[n].0 <= self.desk.now_ms).collect();
        if due.is_empty() {
            return;
        }
        let (_, message) = self.network.swap_remove(due[self.random.random_range(0..due.len())]);
        match message {
            Message::Ask { from, number, request } => {
                let kept = self.desk.journal.len();
                let answer = self.desk.ask(request).map(|turn| turn.answer);
                if self.chance(1) {
                    self.coordinator_dies_with(kept);
                } else {
                    self.send(Message::Tell { to: from, number, answer });
                }
            }
            Message::Tell { to, number, answer } => self.hear(to, number, answer),
        }
    }

    /// The coordinator dies before or after its last write reached the disk, and comes back. The answer is lost.
    fn coordinator_dies_with(&mut self, kept: usize) {
        if self.chance(50) {
            // A turn's events are one transaction: all of them or none.
            self.desk.journal.truncate(kept);
        } else {
            assert_eq!(self.desk.replayed().state, self.desk.core.state, "the state is the fold of the journal");
        }
        self.desk.now_ms += self.random.random_range(0..8000);
        self.desk.core = self.desk.replayed();
        self.desk.core.state.check();
    }

    fn hear(&mut self, to: usize, number: u64, answer: Result<Answer, Refusal>) {
        let process = &mut self.processes[to];
        if process.asked != number || process.pending.is_none() {
            return;
        }
        let request = process.pending.take().expect("a pending request was just seen");
        match (answer, request) {
            (Err(Refusal::UnknownWorker(_)), _) => (process.id, process.holds) = (None, None),
            (Err(_), _) | (Ok(Answer::Beat { stop: true, .. }), _) => process.holds = None,
            (Ok(Answer::Registered(id)), _) => process.id = Some(id),
            (Ok(Answer::Leased(Some(grant))), _) => {
                let kept = match grant.job.task(grant.task).kind {
                    TaskKind::Train { stage } => grant.job.stages[stage].checkpoints.first().map_or(0, |c| c.update),
                    _ => 0,
                };
                process.update = kept;
                process.holds = Some((grant.lease, grant.job.task(grant.task).kind, 0));
            }
            (Ok(_), Request::Report { report, .. }) if report.closes() => process.holds = None,
            (Ok(_), Request::Report { .. }) => process.update += 1,
            (Ok(_), _) => {}
        }
    }

    /// A process that waits for nothing takes its next step; one that waited too long asks again, word for word.
    fn act(&mut self, n: usize) {
        if self.chance(1) {
            self.processes[n] = Process { asked: self.processes[n].asked + 1000, ..Process::default() };
            return;
        }
        let now_ms = self.desk.now_ms;
        let process = &self.processes[n];
        if process.pending.is_some() && now_ms < process.waits_until {
            return;
        }
        let request = process.pending.clone().unwrap_or_else(|| self.next_request(n));
        let process = &mut self.processes[n];
        process.pending = Some(request.clone());
        process.waits_until = now_ms + 1000;
        process.asked += 1;
        let number = process.asked;
        self.send(Message::Ask { from: n, number, request });
    }

    fn next_request(&mut self, n: usize) -> Request {
        let process = self.processes[n].clone();
        let Some(worker) = process.id else {
            let (name, version, device) = (format!("w{n}"), VERSION.into(), "cpu".into());
            return Request::Register { name, version, device, threads: 1, address: String::new() };
        };
        let Some((lease, kind, _)) = process.holds else { return asking(worker, LeaseId(u64::MAX)) };
        if self.chance(40) {
            return beating(worker, lease);
        }
        let report = match kind {
            _ if self.chance(3) => Report::Released { reason: "a whim".into() },
            TaskKind::Train { .. } => self.training_report(process.update),
            TaskKind::Dev { epoch, shard } => Report::Evaluated(evaluated((epoch as u16 + shard as u16) % 5)),
            TaskKind::Embed { .. } => embedded(),
            TaskKind::ZeroShot { .. }
            | TaskKind::FewShot { .. }
            | TaskKind::Trained { .. }
            | TaskKind::Shuffled { .. } => Report::Evaluated(evaluated(3)),
        };
        Request::Report { worker, lease, base: Some(base()), report: Box::new(report) }
    }

    /// Three updates an epoch: two checkpoints, then the epoch's adapter; `update` counts what was reported.
    fn training_report(&self, update: u32) -> Report {
        match (update / 3 + 1, update % 3) {
            (n, _) if n > self.epochs => trained(),
            (n, 2) => epoch(n),
            _ => checkpoint(update + 1),
        }
    }

    fn run(&mut self, jobs: &[JobId]) {
        for _ in 0..200_000 {
            if jobs.iter().all(|&job| self.desk.job(job).phase.name().is_final()) {
                return;
            }
            let n = self.random.random_range(0..self.processes.len());
            match self.random.random_range(0..10) {
                0..4 => self.deliver(),
                4..8 => self.act(n),
                _ => {
                    let ms = self.random.random_range(0..300);
                    self.desk.pass(ms);
                }
            }
        }
        panic!("the jobs did not end");
    }
}

/// Results in the journal by job and task.
fn committed(journal: &[(u64, Event)]) -> BTreeMap<(JobId, TaskIndex), usize> {
    let mut leased = BTreeMap::new();
    let mut results = BTreeMap::new();
    for (_, event) in journal {
        match event {
            Event::LeaseGranted { lease, job, task, .. } => drop(leased.insert(*lease, (*job, *task))),
            Event::Reported { lease, report, .. } if is_result(report) => {
                *results.entry(leased[lease]).or_default() += 1;
            }
            _ => {}
        }
    }
    results
}

fn is_result(report: &Report) -> bool {
    matches!(report, Report::Trained(_) | Report::Evaluated(_) | Report::Embedded(_))
}

#[test]
fn in_every_world_each_job_ends_with_exactly_one_result_per_task() {
    for seed in 0..300 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        let arms = [Arm::ZeroShot, Arm::Trained];
        let epochs = world.epochs;
        let [a, b] = [("a", &arms[..]), ("b", &arms[1..])].map(|(id, arms)| world.desk.submit(id, spec(arms, epochs)));
        let jobs = [a, b, world.desk.submit("c", staged(b, epochs))];
        world.run(&jobs);
        let results = committed(&world.desk.journal);
        for job in jobs {
            let job = world.desk.job(job);
            assert_eq!(job.phase.name(), PhaseName::Succeeded, "seed {seed}: {:?}", job.phase);
            for task in 0..job.tasks.len() as u32 {
                assert_eq!(results.get(&(job.id, TaskIndex(task))), Some(&1), "seed {seed}: task {task}");
            }
        }
        assert_eq!(world.desk.replayed().state, world.desk.core.state, "seed {seed}");
    }
}
