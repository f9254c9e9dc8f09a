//! Several workers train together over TCP: the same bits as one alone, whoever comes, goes or dies.
#![expect(clippy::unwrap_used, reason = "a test whose fixture fails stops there")]

#[path = "common/cable.rs"]
mod cable;
#[path = "common/fleet.rs"]
mod fleet;
#[path = "common/tiny.rs"]
mod tiny;

use std::{
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use cable::Cables;
use fleet::{Dies, Fleet, Outcome, Told, UPDATES, reference};
use insula_proto::job::Parameters as What;
use insula_worker::shell::{
    failure::Unfinished,
    link::Halt,
    sync::{Unreachable, form},
};

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
