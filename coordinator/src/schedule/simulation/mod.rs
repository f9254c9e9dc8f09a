//! A seeded world: workers that crash, a network that loses, doubles, delays and reorders, a coordinator that dies at
//! any write, gangs whose members come and go in the middle of an update. Invariants are checked after every request;
//! in the end every job has exactly one result per task, and every update of every training stands in the ledger once.
//!
//! `INSULA_WORLDS=10000 cargo nextest run --release in_every_world` looks at more worlds, from `INSULA_FIRST_WORLD` on;
//! a world that fails is named by its seed.

mod exchange;
mod process;

use std::collections::BTreeMap;

use insula_proto::{
    ids::{JobId, TaskIndex},
    job::{Arm, JobSpec},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use self::{exchange::Exchange, process::Process};
use super::{
    Answer, Refusal, Request,
    event::{Event, PhaseName, Report},
    fixture::*,
    state::Training,
};

/// Updates of an epoch in this world.
const UPDATES: u32 = 3;

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
    /// What members of gangs have sent each other.
    exchange: Exchange,
    epochs: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let workers = random.random_range(1..6);
        let epochs = random.random_range(1..4);
        let processes = (0..workers).map(Process::new).collect();
        let (desk, exchange) = (Desk::new(), Exchange::default());
        Self { desk, random, processes, network: Vec::new(), exchange, epochs }
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
            Message::Tell { to, number, answer } => self.processes[to].hear(number, answer),
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

    /// A process that waits for nothing takes its next step; one that waited too long asks again, word for word.
    fn act(&mut self, n: usize) {
        if self.chance(1) {
            let sent_arrives = self.chance(50);
            self.exchange.died(n, sent_arrives);
            self.processes[n].die();
            return;
        }
        let now_ms = self.desk.now_ms;
        if self.processes[n].waits(now_ms) {
            return;
        }
        let request = match self.processes[n].pending() {
            Some(again) => again,
            None => {
                let chance = self.random.random_range(0..100);
                self.exchange.compute(&mut self.processes, n, chance);
                self.processes[n].next_request(chance)
            }
        };
        let number = self.processes[n].asks(request.clone(), now_ms);
        self.send(Message::Ask { from: n, number, request });
    }

    fn run(&mut self, jobs: &[JobId]) {
        for _ in 0..400_000 {
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
                    self.a_person_looks(jobs);
                }
            }
        }
        let stands: Vec<_> =
            jobs.iter().map(|&job| super::explain::explain(&self.desk.core, self.desk.now_ms, job)).collect();
        panic!("the jobs did not end: {stands:#?}");
    }

    /// Somebody now and then lets a job go on that pauses.
    fn a_person_looks(&mut self, jobs: &[JobId]) {
        if self.chance(2) {
            let job = jobs[self.random.random_range(0..jobs.len())];
            if self.desk.job(job).pauses() {
                let next = self.desk.job(job).pause_epoch + 1;
                let pause_epoch = if next < self.desk.job(job).epochs() { next } else { 0 };
                self.desk.ask(Request::Resume { job, pause_epoch }).unwrap();
            }
        }
    }

    /// Jobs of every kind: with and without gangs, of two users, of three priorities, one that pauses.
    fn submit_jobs(&mut self) -> Vec<JobId> {
        let (epochs, fleet) = (self.epochs, self.processes.len() as u32);
        let arms = [Arm::ZeroShot, Arm::Trained];
        let a = self.desk.submit("a", spec(&arms, epochs));
        let mut gang = self.in_gangs(spec(&arms[1..], epochs), 1, fleet);
        gang.schedule.user = "ada".into();
        let b = self.desk.submit("b", gang);
        let staged = self.in_gangs(staged(b, epochs), 1, 2);
        let c = self.desk.submit("c", staged);
        let mut pausing = self.in_gangs(spec(&arms[1..], epochs), 1.max(fleet / 2), fleet);
        (pausing.schedule.priority, pausing.schedule.pause_epoch) = (1, 1);
        let d = self.desk.submit("d", pausing);
        let mut urgent = spec(&arms[1..], 1);
        urgent.schedule.priority = 2;
        vec![a, b, c, d, self.desk.submit("e", urgent)]
    }

    fn in_gangs(&mut self, spec: JobSpec, least: u32, most: u32) -> JobSpec {
        let mut spec = spec;
        spec.schedule.min_workers = self.random.random_range(1..=least);
        spec.workers = self.random.random_range(spec.schedule.min_workers..=most.max(spec.schedule.min_workers));
        spec
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

/// Every update up to the last checkpoint stands in the ledger once.
fn check_ledger(training: &Training, seed: u64) {
    let mut next = 1;
    for segment in &training.ledger {
        let ledger = &training.ledger;
        assert_eq!(segment.first, next, "seed {seed}: the ledger has neither gaps nor doubles: {ledger:?}");
        next = segment.last + 1;
    }
    let newest = training.checkpoints.first().map_or(0, |checkpoint| checkpoint.update);
    assert_eq!(next, newest + 1, "seed {seed}: the ledger goes on to the newest checkpoint");
}

#[expect(clippy::disallowed_methods, reason = "whoever runs the test says how many worlds to look at")]
fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().map_or(usual, |text| text.parse().expect("a number of worlds"))
}

#[test]
fn in_every_world_each_job_ends_with_exactly_one_result_per_task() {
    let first = number("INSULA_FIRST_WORLD", 0);
    for seed in first..first + number("INSULA_WORLDS", 300) {
        println!("seed {seed}");
        let mut world = World::new(seed);
        let jobs = world.submit_jobs();
        world.run(&jobs);
        let results = committed(&world.desk.journal);
        for job in jobs {
            let job = world.desk.job(job);
            assert_eq!(job.phase.name(), PhaseName::Succeeded, "seed {seed}: {:?}", job.phase);
            for task in 0..job.tasks.len() as u32 {
                assert_eq!(results.get(&(job.id, TaskIndex(task))), Some(&1), "seed {seed}: task {task}");
            }
            job.stages.iter().for_each(|stage| check_ledger(stage, seed));
        }
        assert_eq!(world.desk.replayed().state, world.desk.core.state, "seed {seed}");
    }
}
