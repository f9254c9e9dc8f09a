//! Workers that train together over TCP on one machine, and what a coordinator would do with them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use insula_kernels::Cpu;
use insula_proto::{
    ids::Digest,
    job::{JobSpec, Objective, Parameters as What, Stage},
};
use insula_worker::{
    adapter::{Adapter, AdapterConfig, Target},
    engine::{Compute, Engine, Example},
    ledger::{self, Line},
    parameters::Parameters,
    plan::Sample,
    shell::{
        failure::Unfinished,
        link::{Halt, HaltFlag},
        sync::{Listener, ListenerConfig, Seating, Seats},
        updates::{self, Course, Desk},
    },
    sync::{Gang, Seat},
    train::{Advanced, Trained, Training},
};

use super::{
    cable::Cables,
    tiny::{Source, config, engine, example},
};

const SEED: u64 = 3;

fn stage(what: What) -> Stage {
    let mut spec = JobSpec::default();
    spec.train.parameters = what;
    (spec.train.epochs, spec.train.batch, spec.train.slot_tokens) = (4, 7, 9);
    (spec.train.lr, spec.train.weight_decay, spec.train.checkpoint_updates) = (5e-3, 0.01, 3);
    spec.training_stages().remove(0)
}

fn samples() -> Vec<Sample> {
    (0..13).map(|dialogue| Sample { dialogue, turn: 0, objective: Objective::Main }).collect()
}

/// Thirteen samples in updates of seven and six, three or four slots each.
fn training(what: What) -> Training {
    let ids = |i: u32| [1 + i % 3, 5 + i % 2, 9, 2 + i, 7 + i % 5, 0];
    let examples: BTreeMap<Sample, Example> =
        samples().into_iter().map(|s| (s, example(&ids(s.dialogue), 4))).collect();
    let trained: Trained = match what {
        What::All => Parameters::read(&config(false), &Source::new(&config(false))).unwrap().into(),
        What::Lora => {
            let config_of = AdapterConfig { r: 3, alpha: 6.0, targets: [Target::Q, Target::Down].into() };
            Adapter::init(config_of, &config(false), 5).into()
        }
    };
    Training::new(stage(what), SEED, samples(), examples, trained)
}

/// Updates of the training.
pub const UPDATES: u32 = 8;

/// What one worker alone makes of it.
pub fn reference(what: What) -> (Vec<u8>, Vec<f32>) {
    let (mut training, mut engine) = (training(what), engine(false, 1));
    while !training.finished() {
        training.advance(&mut engine).unwrap();
    }
    assert_eq!(training.progress().update, UPDATES);
    (training.encoded_state(), training.progress().losses.clone())
}

/// What the coordinator is told, by whom.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    Epoch(usize, u32),
    Checkpoint(usize, u32, Vec<Line>),
    Trained(usize),
}

/// Whether a worker dies rather than tell it.
pub type Dies = fn(usize, &Told) -> bool;

/// What happens just before a worker computes its part of an update.
type Before = Box<dyn FnMut(u32) + Send>;

struct TestDesk {
    worker: usize,
    engine: Engine<Cpu>,
    told: Arc<Mutex<Vec<Told>>>,
    logged: Arc<Mutex<Vec<String>>>,
    computed: u32,
    before: Before,
    dies: Dies,
}

impl TestDesk {
    fn say(&self, told: Told) -> Result<(), Unfinished> {
        assert!(!(self.dies)(self.worker, &told), "a worker that dies before it tells {told:?}");
        self.told.lock().unwrap().push(told);
        Ok(())
    }
}

impl Desk for TestDesk {
    fn engine(&mut self) -> &mut dyn Compute {
        self.computed += 1;
        (self.before)(self.computed);
        &mut self.engine
    }

    fn tell(&mut self, _: &Training, advanced: &Advanced, _: f64) {
        assert!(advanced.loss.is_finite());
    }

    fn epoch(&mut self, _: &Training, epoch: u32) -> Result<(), Unfinished> {
        self.say(Told::Epoch(self.worker, epoch))
    }

    fn checkpoint(&mut self, training: &Training, lines: &[Line]) -> Result<(), Unfinished> {
        self.say(Told::Checkpoint(self.worker, training.progress().update, lines.to_vec()))
    }

    fn trained(&mut self, _: &Training) -> Result<(), Unfinished> {
        self.say(Told::Trained(self.worker))
    }

    fn log(&mut self, line: &str) {
        self.logged.lock().unwrap().push(format!("{}: {line}", self.worker));
    }
}

/// What came of a worker's lease.
pub struct Outcome {
    pub result: Result<(), Unfinished>,
    pub update: u32,
    pub state: Vec<u8>,
    pub losses: Vec<f32>,
}

impl Outcome {
    pub fn released(&self) -> &str {
        match &self.result {
            Err(Unfinished::Released { reason, .. }) => reason,
            other => panic!("{other:?}, expected a lease that is given back"),
        }
    }

    pub fn assert_whole(&self, reference: &(Vec<u8>, Vec<f32>)) {
        assert_eq!(self.update, UPDATES);
        assert_eq!(self.losses, reference.1);
        assert!(self.state == reference.0, "other bits than one worker alone");
    }
}

/// Workers, and what a coordinator would do with them.
#[derive(Clone)]
pub struct Fleet {
    pub what: What,
    pub workers: Vec<Seats>,
    pub told: Arc<Mutex<Vec<Told>>>,
    pub logged: Arc<Mutex<Vec<String>>>,
    pub dies: Dies,
    /// Updates that a checkpoint brings to whoever starts.
    pub done: u32,
    pub _runtime: Arc<tokio::runtime::Runtime>,
}

impl Fleet {
    pub fn new(workers: usize, what: What) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let config = ListenerConfig { coordinator_host: "127.0.0.1".into(), ..ListenerConfig::default() };
        let worker = |lease| Seats {
            lease,
            listener: Arc::new(runtime.block_on(Listener::open(&config)).unwrap()),
            seating: Seating::default(),
            halt: HaltFlag::default(),
        };
        let workers = (0..workers as u64).map(|i| worker(40 + i)).collect();
        let (told, logged) = (Arc::default(), Arc::default());
        Self { what, workers, told, logged, dies: |_, _| false, done: 0, _runtime: Arc::new(runtime) }
    }

    pub fn gang(&self, generation: u32, members: &[usize], rank: usize, cables: Option<&Cables>) -> Gang {
        let address = |member: usize| {
            let address = self.workers[member].listener.advertised().to_owned();
            match cables {
                Some(cables) if member < members[rank] => cables.lay(members[rank], member, &address).to_string(),
                _ => address,
            }
        };
        let seat = |&member: &usize| Seat {
            lease: self.workers[member].lease,
            worker: format!("w{member}"),
            address: address(member),
        };
        let (seats, lease) = (members.iter().map(seat).collect(), self.workers[members[rank]].lease);
        Gang::new(generation, rank as u32, seats, &[generation as u8; 32], lease).unwrap()
    }

    /// Tells members, by rank, of their gang.
    pub fn publish(&self, generation: u32, members: &[usize], cables: Option<&Cables>) {
        for (rank, &member) in members.iter().enumerate() {
            self.workers[member].seating.hear(self.gang(generation, members, rank, cables));
        }
    }

    pub fn start(&self, worker: usize, before: impl FnMut(u32) + Send + 'static) -> JoinHandle<Outcome> {
        self.start_pausing(worker, 0, before)
    }

    pub fn start_pausing(
        &self,
        worker: usize,
        pause_epoch: u32,
        before: impl FnMut(u32) + Send + 'static,
    ) -> JoinHandle<Outcome> {
        let (fleet, before) = (self.clone(), Box::new(before));
        thread::spawn(move || {
            let (mut training, mut engine, dies) = (training(fleet.what), engine(false, 1), fleet.dies);
            for _ in 0..fleet.done {
                training.advance(&mut engine).unwrap();
            }
            let (told, logged) = (Arc::clone(&fleet.told), Arc::clone(&fleet.logged));
            let mut desk = TestDesk { worker, engine, told, logged, computed: 0, before, dies };
            let (seats, origin) = (&fleet.workers[worker], Digest::of(b"this training"));
            let course = Course { training: &mut training, desk: &mut desk, seats, origin, pause_epoch };
            let result = updates::run(course);
            let progress = training.progress();
            let (update, losses, state) = (progress.update, progress.losses.clone(), training.encoded_state());
            Outcome { result, update, state, losses }
        })
    }

    /// Waits until the training is over for the coordinator, which then takes the leases of those who wait for somebody
    /// that is gone.
    pub fn until_trained(&self, running: Vec<JoinHandle<Outcome>>, mut meanwhile: impl FnMut()) -> Vec<Outcome> {
        let trained = || self.told.lock().unwrap().iter().any(|told| matches!(told, Told::Trained(_)));
        while !trained() {
            thread::sleep(Duration::from_millis(5));
            meanwhile();
        }
        thread::sleep(Duration::from_millis(300));
        self.workers.iter().for_each(|worker| worker.halt.raise(Halt::Abandon));
        running.into_iter().map(|running| running.join().unwrap()).collect()
    }

    /// What was told, with the ledger checked: every sample of every epoch once, whoever was lost.
    pub fn checked_told(&self) -> (Vec<Told>, ledger::Summary) {
        let told = self.told.lock().unwrap().clone();
        let mut stored: Vec<Line> = Vec::new();
        let mut epochs = Vec::new();
        for told in &told {
            match told {
                Told::Checkpoint(_, update, lines) => {
                    // A segment takes the place of what was there from its first update on.
                    stored.retain(|line| lines.first().is_none_or(|first| line.update < first.update));
                    stored.extend(lines.iter().cloned());
                    assert_eq!(stored.last().unwrap().update, *update);
                }
                Told::Epoch(_, epoch) => epochs.push(*epoch),
                Told::Trained(_) => {}
            }
        }
        epochs.dedup();
        assert_eq!(epochs, (1..=epochs.len() as u32).collect::<Vec<_>>(), "every epoch was reported, in order");
        let lines: Vec<String> = stored.iter().map(Line::encode).collect();
        let summary = ledger::verify(lines.iter().map(String::as_str), &samples(), &stage(self.what), SEED).unwrap();
        (told, summary)
    }
}
