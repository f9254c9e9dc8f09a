//! Several workers train together over TCP: the same bits as one alone, whoever comes, goes or dies.
#![expect(clippy::unwrap_used, reason = "a test whose fixture fails stops there")]

#[path = "common/cable.rs"]
mod cable;
#[path = "common/tiny.rs"]
mod tiny;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use cable::Cables;
use insula_kernels::Cpu;
use insula_proto::{
    ids::Digest,
    job::{JobSpec, Objective, Parameters as What, Stage},
};
use insula_worker::{
    adapter::{Adapter, AdapterConfig, Target},
    engine::{Engine, Example},
    ledger::{self, Line},
    parameters::Parameters,
    plan::Sample,
    shell::{
        failure::Unfinished,
        link::{Halt, HaltFlag},
        sync::{Listener, ListenerConfig, Seating, Seats, Unreachable, form},
        updates::{self, Course, Desk},
    },
    sync::{Gang, Seat},
    train::{Advanced, Trained, Training},
};
use tiny::{Source, config, engine, example};

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
const UPDATES: u32 = 8;

/// What one worker alone makes of it.
fn reference(what: What) -> (Vec<u8>, Vec<f32>) {
    let (mut training, mut engine) = (training(what), engine(false, 1));
    while !training.finished() {
        training.advance(&mut engine).unwrap();
    }
    assert_eq!(training.progress().update, UPDATES);
    (training.encoded_state(), training.progress().losses.clone())
}

/// What the coordinator is told, by whom.
#[derive(Debug, Clone, PartialEq)]
enum Told {
    Epoch(usize, u32),
    Checkpoint(usize, u32, Vec<Line>),
    Trained(usize),
}

/// Whether a worker dies rather than tell it.
type Dies = fn(usize, &Told) -> bool;

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
    fn engine(&mut self) -> &mut Engine<Cpu> {
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
struct Outcome {
    result: Result<(), Unfinished>,
    update: u32,
    state: Vec<u8>,
    losses: Vec<f32>,
}

impl Outcome {
    fn released(&self) -> &str {
        match &self.result {
            Err(Unfinished::Released { reason, .. }) => reason,
            other => panic!("{other:?}, expected a lease that is given back"),
        }
    }

    fn assert_whole(&self, reference: &(Vec<u8>, Vec<f32>)) {
        assert_eq!(self.update, UPDATES);
        assert_eq!(self.losses, reference.1);
        assert!(self.state == reference.0, "other bits than one worker alone");
    }
}

/// Workers, and what a coordinator would do with them.
#[derive(Clone)]
struct Fleet {
    what: What,
    workers: Vec<Seats>,
    told: Arc<Mutex<Vec<Told>>>,
    logged: Arc<Mutex<Vec<String>>>,
    dies: Dies,
    /// Updates that a checkpoint brings to whoever starts.
    done: u32,
    _runtime: Arc<tokio::runtime::Runtime>,
}

impl Fleet {
    fn new(workers: usize, what: What) -> Self {
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

    fn gang(&self, generation: u32, members: &[usize], rank: usize, cables: Option<&Cables>) -> Gang {
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
    fn publish(&self, generation: u32, members: &[usize], cables: Option<&Cables>) {
        for (rank, &member) in members.iter().enumerate() {
            self.workers[member].seating.hear(self.gang(generation, members, rank, cables));
        }
    }

    fn start(&self, worker: usize, before: impl FnMut(u32) + Send + 'static) -> JoinHandle<Outcome> {
        self.start_pausing(worker, 0, before)
    }

    fn start_pausing(
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
    fn until_trained(&self, running: Vec<JoinHandle<Outcome>>, mut meanwhile: impl FnMut()) -> Vec<Outcome> {
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
    fn checked_told(&self) -> (Vec<Told>, ledger::Summary) {
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

fn nothing(_: u32) {}

#[test]
fn gangs_of_one_to_four_train_the_same_bits() {
    for what in [What::Lora, What::All] {
        let reference = reference(what);
        for world in 1..=4 {
            let fleet = Fleet::new(world, what);
            let members: Vec<usize> = (0..world).collect();
            let running: Vec<_> = members.iter().map(|&worker| fleet.start(worker, nothing)).collect();
            fleet.publish(1, &members, None);
            for (rank, outcome) in running.into_iter().enumerate() {
                let outcome = outcome.join().unwrap();
                match rank {
                    0 => assert!(outcome.result.is_ok(), "{:?}", outcome.result),
                    _ => assert_eq!(outcome.released(), "the training ended"),
                }
                outcome.assert_whole(&reference);
            }
            let (told, summary) = fleet.checked_told();
            assert_eq!((summary.updates, summary.passes, summary.samples), (UPDATES, 4, 52));
            assert_eq!(summary.workers.len(), world.min(4), "{:?}", summary.workers);
            let trained = told.iter().filter(|told| matches!(told, Told::Trained(0))).count();
            let checkpoints = told.iter().filter(|told| matches!(told, Told::Checkpoint(0, ..))).count();
            // Every third update, and the ends of four epochs: updates 2, 3, 4, 6, 8.
            assert_eq!((trained, checkpoints, told.len()), (1, 5, 10));
        }
    }
}

/// Runs three members of whom one is cut off after so many bytes; says how many bytes went over its cables.
fn with_a_victim(victim: usize, bytes: i64, reference: &(Vec<u8>, Vec<f32>)) -> u64 {
    let (fleet, cables) = (Fleet::new(3, What::Lora), Cables::cut_after(victim, bytes));
    let running: Vec<_> = (0..3).map(|worker| fleet.start(worker, nothing)).collect();
    fleet.publish(1, &[0, 1, 2], Some(&cables));
    let mut published = false;
    let outcomes = fleet.until_trained(running, || {
        if cables.is_cut() && !published {
            fleet.workers[victim].halt.raise(Halt::Abandon);
            // The coordinator takes a while to notice.
            thread::sleep(Duration::from_millis(20));
            let survivors: Vec<usize> = (0..3).filter(|worker| *worker != victim).collect();
            fleet.publish(2, &survivors, Some(&cables));
            published = true;
        }
    });
    assert_survivors_whole(&outcomes, reference);
    let apart = |line: &&String| line.contains("whose state came from another member");
    if let Some(line) = fleet.logged.lock().unwrap().iter().find(apart) {
        println!("cut off after {bytes} bytes, one survivor had finished the update and the other not: {line}");
    }
    let (_, summary) = fleet.checked_told();
    assert_eq!((summary.updates, summary.passes), (UPDATES, 4));
    cables.carried()
}

/// Whoever got to the end, and at least one did, holds the reference's bits.
fn assert_survivors_whole(outcomes: &[Outcome], reference: &(Vec<u8>, Vec<f32>)) {
    let mut finished = 0;
    for outcome in outcomes {
        match &outcome.result {
            Err(Unfinished::Abandoned) if outcome.update < UPDATES => {}
            Ok(()) | Err(Unfinished::Abandoned) => outcome.assert_whole(reference),
            Err(_) => assert_eq!(outcome.released(), "the training ended"),
        }
        finished += usize::from(outcome.update == UPDATES);
    }
    assert!(finished > 0);
}

#[test]
fn a_member_cut_off_at_any_byte_is_gone_on_without() {
    let reference = reference(What::Lora);
    for victim in 0..3 {
        let all = with_a_victim(victim, i64::MAX, &reference);
        // In steps that no update's bytes are a multiple of, so that every phase of an exchange is met.
        for step in 0..13 {
            with_a_victim(victim, (all * (2 * step + 1) / 27) as i64, &reference);
        }
    }
}

#[test]
fn a_bit_flipped_anywhere_is_noticed_and_changes_nothing() {
    let reference = reference(What::Lora);
    let trained_over = |cables: &Cables| {
        let fleet = Fleet::new(3, What::Lora);
        let running: Vec<_> = (0..3).map(|worker| fleet.start(worker, nothing)).collect();
        fleet.publish(1, &[0, 1, 2], Some(cables));
        let outcomes = fleet.until_trained(running, || {});
        assert_survivors_whole(&outcomes, &reference);
        fleet.checked_told();
        let logged = fleet.logged.lock().unwrap();
        logged.iter().any(|line| line.contains("is damaged or of another gang"))
    };
    let whole = Cables::flipping(i64::MAX);
    assert!(!trained_over(&whole));
    let mut damages = 0;
    for step in 0..12 {
        // Beyond the hellos: one that names another lease is called again after half a minute only.
        let cables = Cables::flipping(400 + (whole.carried() as i64 - 400) * (2 * step + 1) / 25);
        damages += usize::from(trained_over(&cables));
        assert!(cables.has_flipped());
    }
    assert!(damages > 0, "at least one fell into an update's exchange");
}

#[test]
fn a_worker_that_joins_on_the_way_gets_the_state_from_the_others() {
    let reference = reference(What::All);
    let fleet = Fleet::new(3, What::All);
    let joiner = Arc::new(Mutex::new(None));
    let (others, started) = (fleet.clone(), Arc::clone(&joiner));
    let first = fleet.start(0, move |update| {
        if update == 4 {
            *started.lock().unwrap() = Some(others.start(2, nothing));
            others.publish(2, &[0, 1, 2], None);
        }
    });
    let second = fleet.start(1, nothing);
    fleet.publish(1, &[0, 1], None);
    let outcomes = [first.join().unwrap(), second.join().unwrap()];
    let joined = joiner.lock().unwrap().take().unwrap().join().unwrap();
    outcomes.iter().chain([&joined]).for_each(|outcome| outcome.assert_whole(&reference));
    let logged = fleet.logged.lock().unwrap().join("\n");
    assert!(logged.contains("2: generation 2: rank 2 of 3, after update 4, whose state came from another"), "{logged}");
    let (_, summary) = fleet.checked_told();
    assert_eq!(summary.workers.keys().map(String::as_str).collect::<Vec<_>>(), ["w0", "w1", "w2"]);
}

#[test]
fn one_alone_becomes_two_and_one_again() {
    let reference = reference(What::Lora);
    let fleet = Fleet::new(2, What::Lora);
    let coordinator = fleet.clone();
    let second = fleet.start(1, |update| {
        // By its own count; the fifth of the training.
        if update == 3 {
            panic!("a worker that dies while it computes");
        }
    });
    let first = fleet.start(0, move |update| {
        if update == 2 {
            coordinator.publish(2, &[0, 1], None);
        }
    });
    fleet.publish(1, &[0], None);
    assert!(second.join().is_err());
    fleet.publish(3, &[0], None);
    let outcome = first.join().unwrap();
    assert!(outcome.result.is_ok());
    outcome.assert_whole(&reference);
    let (_, summary) = fleet.checked_told();
    assert_eq!((summary.updates, summary.workers.len(), summary.leases), (UPDATES, 2, 2));
}

/// The next worker's lease begins anew where a checkpoint would have it begin; here others carry the state on.
#[test]
fn whoever_leaves_is_gone_on_without_and_rank_0_leaves_a_checkpoint() {
    let reference = reference(What::Lora);
    for leaver in 0..2 {
        let fleet = Fleet::new(2, What::Lora);
        let running: Vec<_> = (0..2)
            .map(|worker| {
                let halt = fleet.workers[worker].halt.clone();
                fleet.start(worker, move |update| {
                    if worker == leaver && update == 5 {
                        halt.raise(Halt::Stop);
                    }
                })
            })
            .collect();
        fleet.publish(1, &[0, 1], None);
        let mut running: Vec<_> = running.into_iter().map(Some).collect();
        let left = running[leaver].take().unwrap().join().unwrap();
        assert_eq!((left.released(), left.update), ("the worker was asked to stop", 5));
        let checkpoint_of_5 = |told: &Told| matches!(told, Told::Checkpoint(0, 5, _));
        assert_eq!(fleet.told.lock().unwrap().iter().any(checkpoint_of_5), leaver == 0);
        let stays = 1 - leaver;
        fleet.publish(2, &[stays], None);
        let stayed = running[stays].take().unwrap().join().unwrap();
        assert!(stayed.result.is_ok());
        stayed.assert_whole(&reference);
        fleet.checked_told();
    }
}

#[test]
fn a_recalled_gang_leaves_with_a_checkpoint() {
    let fleet = Fleet::new(2, What::Lora);
    let running: Vec<_> = (0..2)
        .map(|worker| {
            let seating = fleet.workers[worker].seating.clone();
            fleet.start(worker, move |update| {
                if update == 5 {
                    seating.answered(true);
                }
            })
        })
        .collect();
    fleet.publish(1, &[0, 1], None);
    for outcome in running {
        let outcome = outcome.join().unwrap();
        assert_eq!((outcome.released(), outcome.update), ("the worker is needed elsewhere", 5));
    }
    let (told, summary) = fleet.checked_told();
    assert!(matches!(told.last(), Some(Told::Checkpoint(0, 5, _))), "{told:?}");
    assert_eq!(summary.updates, 5);
}

/// The coordinator may hold the checkpoint of an epoch's end without having heard of the epoch.
#[test]
fn an_epoch_that_its_checkpoint_outran_is_reported_again() {
    let fleet = Fleet { done: 2, ..Fleet::new(1, What::Lora) };
    let running = fleet.start(0, nothing);
    fleet.publish(1, &[0], None);
    let outcome = running.join().unwrap();
    assert!(outcome.result.is_ok());
    outcome.assert_whole(&reference(What::Lora));
    let told = fleet.told.lock().unwrap().clone();
    assert_eq!(told[0], Told::Epoch(0, 1));
    assert!(matches!(told[1], Told::Checkpoint(0, 3, _)), "the checkpoint of update 2 is there: {told:?}");
}

/// A lead that dies between an epoch's last update and its report, and a successor that is recalled before it is in a gang.
#[test]
fn whoever_becomes_the_lead_and_leaves_at_once_reports_the_epoch_before_its_checkpoint() {
    let dies: Dies = |worker, told| worker == 0 && matches!(told, Told::Epoch(_, 1));
    let fleet = Fleet { dies, ..Fleet::new(2, What::Lora) };
    let first = fleet.start(0, nothing);
    let coordinator = fleet.clone();
    let second = fleet.start(1, move |update| {
        if update == 3 {
            coordinator.publish(2, &[1], None);
            coordinator.workers[1].seating.answered(true);
        }
    });
    fleet.publish(1, &[0, 1], None);
    assert!(first.join().is_err());
    let outcome = second.join().unwrap();
    assert_eq!((outcome.released(), outcome.update), ("the worker is needed elsewhere", 2));
    let (told, _) = fleet.checked_told();
    assert!(matches!(told[..], [Told::Epoch(1, 1), Told::Checkpoint(1, 2, _)]), "{told:?}");
}

#[test]
fn a_training_pauses_after_an_epoch_with_a_checkpoint() {
    let fleet = Fleet::new(2, What::Lora);
    let running: Vec<_> = (0..2).map(|worker| fleet.start_pausing(worker, 2, nothing)).collect();
    fleet.publish(1, &[0, 1], None);
    for outcome in running {
        let outcome = outcome.join().unwrap();
        assert_eq!((outcome.released(), outcome.update), ("paused after epoch 2", 4));
    }
    let (told, _) = fleet.checked_told();
    assert!(matches!(told[told.len() - 2..], [Told::Epoch(0, 2), Told::Checkpoint(0, 4, _)]), "{told:?}");
}

/// Somebody moved the pause after one lease was granted and before the other was.
#[test]
fn a_lead_that_does_not_pause_goes_on_without_a_member_that_does() {
    let reference = reference(What::Lora);
    let fleet = Fleet::new(2, What::Lora);
    let (lead, pausing) = (fleet.start(0, nothing), fleet.start_pausing(1, 2, nothing));
    fleet.publish(1, &[0, 1], None);
    let left = pausing.join().unwrap();
    assert_eq!((left.released(), left.update), ("paused after epoch 2", 4));
    fleet.publish(2, &[0], None);
    let outcome = lead.join().unwrap();
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    outcome.assert_whole(&reference);
}

/// A process that is stopped keeps its connections: the coordinator alone notices.
#[test]
fn a_member_that_hangs_is_gone_on_without() {
    let reference = reference(What::Lora);
    let fleet = Fleet::new(3, What::Lora);
    let (wake, asleep) = std::sync::mpsc::channel::<()>();
    let coordinator = fleet.clone();
    let hanging = fleet.start(2, move |update| {
        if update == 3 {
            coordinator.publish(2, &[0, 1], None);
            let _ = asleep.recv();
        }
    });
    let running = [fleet.start(0, nothing), fleet.start(1, nothing)];
    fleet.publish(1, &[0, 1, 2], None);
    running.into_iter().for_each(|outcome| outcome.join().unwrap().assert_whole(&reference));
    let logged = fleet.logged.lock().unwrap().join("\n");
    assert!(logged.contains("generation 1 ends in update 3: generation 2 goes on without rank 2 (w2)"), "{logged}");
    fleet.workers[2].halt.raise(Halt::Abandon);
    drop(wake);
    assert!(matches!(hanging.join().unwrap().result, Err(Unfinished::Abandoned)));
}

#[test]
fn a_caller_of_a_generation_that_is_over_is_told_so() {
    let fleet = Fleet::new(2, What::Lora);
    let [first, second] = [0, 1].map(|worker| fleet.workers[worker].clone());
    let _expected = [first.listener.expect(first.lease), second.listener.expect(second.lease)];
    let new = [0, 1].map(|rank| fleet.gang(2, &[0, 1], rank, None));
    let listening = thread::spawn({
        let gang = new[0].clone();
        move || form(&gang, &first, &mut Unreachable::default()).map(drop)
    });
    let old = fleet.gang(1, &[0, 1], 1, None);
    let refused = form(&old, &second, &mut Unreachable::default()).unwrap_err().to_string();
    assert_eq!(refused, "rank 0 (w0) refuses the connection: generation 2 has taken the place of generation 1");
    assert!(form(&new[1], &second, &mut Unreachable::default()).is_ok());
    assert!(listening.join().unwrap().is_ok());
}

#[test]
fn members_of_different_trainings_do_not_mix() {
    let fleet = Fleet::new(2, What::Lora);
    let all = Fleet { what: What::All, ..fleet.clone() };
    let running = [fleet.start(0, nothing), all.start(1, nothing)];
    fleet.publish(1, &[0, 1], None);
    while !running.iter().any(JoinHandle::is_finished) {
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(Duration::from_millis(300));
    fleet.workers.iter().for_each(|worker| worker.halt.raise(Halt::Abandon));
    let failed = running.map(|outcome| match outcome.join().unwrap().result {
        Err(Unfinished::Failed { message, .. }) => message,
        // The other has noticed and ended the connection first; its lease would be lost next.
        other => format!("{other:?}"),
    });
    let named = failed.iter().any(|message| message.contains("its number of parameters is"));
    assert!(named, "{failed:?}");
}

#[test]
fn whoever_cannot_be_reached_is_named_by_the_rank_that_calls() {
    let fleet = Fleet::new(2, What::Lora);
    let mut gang = fleet.gang(1, &[0, 1], 1, None);
    // Nobody listens there: it is below the ports that are given out.
    gang.seats[0].address = "127.0.0.1:1".into();
    let running = fleet.start(1, nothing);
    fleet.workers[1].seating.hear(gang.clone());
    while !running.is_finished() {
        fleet.workers[1].seating.answered(false);
        thread::sleep(Duration::from_millis(100));
    }
    let outcome = running.join().unwrap();
    let named = format!("rank 0 (w0) at {} is not reached: rank 0 (w0): calling it: ", gang.seats[0].address);
    assert!(outcome.released().starts_with(&named), "{}", outcome.released());
}
