//! Gangs, priorities, shares, pauses: one promise a test.

use insula_proto::{
    ids::{JobId, LeaseId, TaskIndex, WorkerId},
    job::{Arm, JobSpec},
};

use super::{
    Answer, Policy, Refusal, Request, Seating,
    choose::BACKFILL_MS,
    event::{Artifact, Checkpoint, FailureClass, LedgerSegment, PhaseName, Report},
    explain::explain,
    fixture::*,
    keep::kept,
    task::TaskKind,
};

fn training(epochs: u32, least: u32, most: u32) -> JobSpec {
    let mut spec = spec(&[Arm::Trained], epochs);
    (spec.schedule.min_workers, spec.workers) = (least, most);
    spec
}

/// Asks for work having heard of no lease beyond `heard`.
fn ask(desk: &mut Desk, worker: WorkerId, heard: u64) -> Option<(LeaseId, JobId, TaskKind)> {
    match desk.ask(asking(worker, LeaseId(heard))).unwrap().answer {
        Answer::Leased(grant) => grant.map(|g| (g.lease, g.job.id, g.job.task(g.task).kind)),
        other => panic!("a lease was answered with {other:?}"),
    }
}

fn seat(desk: &mut Desk, worker: WorkerId, lease: LeaseId) -> (bool, Option<Seating>) {
    let request = Request::Heartbeat { worker, lease, progress: None, seated: true, generation: 0 };
    match desk.ask(request).unwrap().answer {
        Answer::Beat { recalled, gang, .. } => (recalled, gang),
        other => panic!("a heartbeat was answered with {other:?}"),
    }
}

fn names(seating: &Seating) -> Vec<&str> {
    seating.seats.iter().map(|(_, name, _)| name.as_str()).collect()
}

fn workers(desk: &mut Desk, names: &[&str]) -> Vec<WorkerId> {
    names.iter().map(|name| desk.register(name)).collect()
}

fn released() -> Report {
    Report::Released { reason: "asked to leave".into() }
}

fn first_sentence(desk: &Desk, job: JobId) -> String {
    explain(&desk.core, desk.now_ms, job).remove(0)
}

#[test]
fn a_gang_is_granted_to_all_of_its_workers_at_once_or_to_none() {
    let mut desk = Desk::new();
    let fleet = workers(&mut desk, &["a", "b", "c"]);
    let job = desk.submit("x", training(1, 3, 3));
    assert_eq!(ask(&mut desk, fleet[0], 0), None);
    assert_eq!(ask(&mut desk, fleet[1], 0), None);
    let (lease, ..) = ask(&mut desk, fleet[2], 0).expect("the third makes it whole");
    // The others have not heard of their leases: what they are given is that.
    let others: Vec<_> = [0, 1].map(|n| ask(&mut desk, fleet[n], 0).unwrap().0).into();
    assert_eq!(desk.core.state.leases.len(), 3);
    assert_eq!(seat(&mut desk, fleet[2], lease).1, None, "one of three does not begin");
    seat(&mut desk, fleet[0], others[0]);
    let (_, gang) = seat(&mut desk, fleet[1], others[1]);
    let gang = gang.unwrap();
    assert_eq!((names(&gang), gang.generation, gang.rank), (vec!["c", "a", "b"], 3, 2));
    assert_eq!(gang.seats[0].2, "c:7000", "the others are told where it is");
    assert_eq!(first_sentence(&desk, job), "'train' runs on c, a, b, 3 of at most 3 workers.");
}

#[test]
fn only_the_lead_says_what_a_training_comes_to() {
    let mut desk = Desk::new();
    let fleet = workers(&mut desk, &["a", "b"]);
    let job = desk.submit("x", training(1, 1, 2));
    let (lead, ..) = ask(&mut desk, fleet[0], 0).unwrap();
    seat(&mut desk, fleet[0], lead);
    let (other, ..) = ask(&mut desk, fleet[1], 0).expect("there is a seat");
    seat(&mut desk, fleet[1], other);
    let refused = desk.report(fleet[1], other, epoch(1)).unwrap_err();
    assert_eq!(refused, Refusal::NotLead { lease: other, job });
    desk.report(fleet[0], lead, epoch(1)).unwrap();
    desk.report(fleet[0], lead, trained()).unwrap();
    assert_eq!(desk.beat(fleet[1], other), Ok(true), "the other is told to leave off");
}

#[test]
fn a_lost_member_ends_the_generation_and_the_others_go_on() {
    let mut desk = Desk::new();
    let fleet = workers(&mut desk, &["a", "b", "c"]);
    let job = desk.submit("x", training(1, 1, 3));
    let leases: Vec<_> = fleet
        .iter()
        .map(|&worker| {
            let (lease, ..) = ask(&mut desk, worker, 0).unwrap();
            seat(&mut desk, worker, lease);
            lease
        })
        .collect();
    desk.register("a");
    let (_, gang) = seat(&mut desk, fleet[1], leases[1]);
    let gang = gang.unwrap();
    assert_eq!((names(&gang), gang.generation), (vec!["b", "c"], 4), "whoever leads is whoever sat next");
    let task = &desk.job(job).tasks[0];
    assert!(task.failures.is_empty(), "a member's loss fails nothing");
    desk.report(fleet[1], leases[1], epoch(1)).unwrap();
}

#[test]
fn one_that_cannot_take_its_seat_is_gone_on_without_and_not_asked_again() {
    let mut desk = Desk::new();
    let fleet = workers(&mut desk, &["a", "b", "c"]);
    let job = desk.submit("x", training(1, 1, 2));
    let (lead, ..) = ask(&mut desk, fleet[0], 0).unwrap();
    seat(&mut desk, fleet[0], lead);
    let (other, ..) = ask(&mut desk, fleet[1], 0).expect("there is a seat");
    desk.report(fleet[1], other, failed(FailureClass::BadData)).unwrap();
    assert_eq!(desk.task_state(job, 0), "leased");
    assert!(desk.job(job).tasks[0].failures.is_empty(), "a base that one worker lacks fails nothing");
    assert_eq!(ask(&mut desk, fleet[1], other.0), None);
    assert!(ask(&mut desk, fleet[2], 0).is_some(), "another may have the seat");
    desk.report(fleet[0], lead, failed(FailureClass::BadData)).unwrap();
    assert_eq!(desk.job(job).phase.name(), PhaseName::Failed, "what whoever computes says is of the training");
}

#[test]
fn a_gang_that_lacks_members_is_called_back_and_waits_for_enough() {
    let mut desk = Desk::new();
    let fleet = workers(&mut desk, &["a", "b"]);
    let job = desk.submit("x", training(1, 2, 2));
    assert_eq!(ask(&mut desk, fleet[0], 0), None);
    let (b, ..) = ask(&mut desk, fleet[1], 0).unwrap();
    seat(&mut desk, fleet[1], b);
    desk.register("a");
    assert!(seat(&mut desk, fleet[1], b).0, "one of two is called back");
    desk.report(fleet[1], b, released()).unwrap();
    assert_eq!(desk.task_state(job, 0), "ready");
    assert_eq!(ask(&mut desk, fleet[1], b.0), None);
    let said = "'train' is ready: it needs 2 workers at once and 1 of 2 are free: meanwhile free workers take tasks that end soon.";
    assert_eq!(first_sentence(&desk, job), said);
    desk.now_ms += 60_000;
    assert_eq!(ask(&mut desk, fleet[1], b.0), None);
    let said = "'train' is ready: it needs 2 workers at once and 1 are here: it starts when 1 more come.";
    assert_eq!(first_sentence(&desk, job), said, "the other was not heard of for a minute");
}

#[test]
fn short_tasks_go_before_a_gang_that_waits_but_not_for_ever() {
    let mut desk = Desk::new();
    let fleet = workers(&mut desk, &["a", "b"]);
    let busy = desk.submit("busy", training(1, 1, 1));
    assert_eq!(ask(&mut desk, fleet[0], 0).map(|(_, job, _)| job), Some(busy));
    let big = desk.submit("big", training(1, 2, 2));
    let small = desk.submit("small", training(1, 1, 1));
    let short = desk.submit("short", spec(&[Arm::ZeroShot], 1));
    let (lease, job, _) = ask(&mut desk, fleet[1], 0).unwrap();
    assert_eq!(job, short, "a training behind the gang would keep the worker for long");
    desk.report(fleet[1], lease, Report::Evaluated(evaluated(1))).unwrap();
    desk.beat(fleet[0], LeaseId(1)).unwrap();
    for _ in 0..=BACKFILL_MS / 1000 {
        desk.now_ms += 1000;
        desk.beat(fleet[0], LeaseId(1)).unwrap();
    }
    assert_eq!(ask(&mut desk, fleet[1], lease.0), None, "now the worker is kept for the gang");
    let said =
        "'train' is ready: it needs 2 workers at once and 1 of 2 are free: workers that become free are kept for it.";
    assert_eq!(first_sentence(&desk, big), said);
    assert!(first_sentence(&desk, small).contains("job-2 was there before it"), "{}", first_sentence(&desk, small));
    desk.report(fleet[0], LeaseId(1), epoch(1)).unwrap();
    desk.report(fleet[0], LeaseId(1), trained()).unwrap();
    // The older job's evaluations come first still; then both workers are free.
    let mut heard = 1;
    let given = loop {
        let (lease, job, _) = ask(&mut desk, fleet[0], heard).expect("there is work");
        if job != busy {
            break job;
        }
        heard = lease.0;
        desk.report(fleet[0], lease, Report::Evaluated(evaluated(1))).unwrap();
    };
    assert_eq!(given, big);
}

#[test]
fn a_gang_has_waited_as_long_when_a_greater_priority_went_before_it() {
    let mut desk = Desk::new();
    let fleet = workers(&mut desk, &["a", "b"]);
    desk.submit("busy", training(1, 1, 1));
    assert!(ask(&mut desk, fleet[0], 0).is_some());
    desk.submit("big", training(1, 2, 2));
    assert_eq!(ask(&mut desk, fleet[1], 0), None);
    desk.now_ms += BACKFILL_MS;
    let mut urgent = spec(&[Arm::ZeroShot], 1);
    urgent.schedule.priority = 1;
    let urgent = desk.submit("urgent", urgent);
    desk.submit("short", spec(&[Arm::ZeroShot], 1));
    let mut heard = 0;
    for _ in 0..2 {
        let (lease, job, _) = ask(&mut desk, fleet[1], heard).unwrap();
        assert_eq!(job, urgent);
        desk.report(fleet[1], lease, Report::Evaluated(evaluated(1))).unwrap();
        heard = lease.0;
    }
    assert_eq!(ask(&mut desk, fleet[1], heard), None, "the worker is kept for the gang");
}

#[test]
fn a_gang_that_a_quota_has_too_little_room_for_is_told_so() {
    let mut desk = Desk::new();
    desk.core.policy = Policy { quota: 2, ..Policy::new(LEASE_MS) };
    let fleet = workers(&mut desk, &["a", "b"]);
    desk.submit("busy", training(1, 1, 1));
    assert!(ask(&mut desk, fleet[0], 0).is_some());
    let big = desk.submit("big", training(1, 2, 2));
    assert_eq!(ask(&mut desk, fleet[1], 0), None);
    let said = "'train' is ready: whoever names no user holds 1 of 2 workers allowed, and it needs 2.";
    assert_eq!(first_sentence(&desk, big), said);
}

#[test]
fn a_worker_lent_to_a_gang_is_called_back_for_a_task_that_waits() {
    let mut desk = Desk::new();
    let fleet = workers(&mut desk, &["a", "b"]);
    desk.submit("wide", training(1, 1, 2));
    let leases: Vec<_> = fleet.iter().map(|&worker| ask(&mut desk, worker, 0).unwrap().0).collect();
    let other = desk.submit("other", training(1, 1, 1));
    desk.pass(250);
    assert!(!seat(&mut desk, fleet[0], leases[0]).0);
    assert!(seat(&mut desk, fleet[1], leases[1]).0, "the one that came last leaves");
    desk.report(fleet[1], leases[1], released()).unwrap();
    assert_eq!(ask(&mut desk, fleet[1], leases[1].0).map(|(_, job, _)| job), Some(other));
    desk.pass(250);
    assert!(!seat(&mut desk, fleet[0], leases[0]).0, "what a gang needs stays");
}

#[test]
fn a_greater_priority_interrupts_a_training_at_its_next_update_and_an_equal_one_waits() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    let slow = desk.submit("slow", training(1, 1, 1));
    let (lease, ..) = ask(&mut desk, a, 0).unwrap();
    let equal = desk.submit("equal", training(1, 1, 1));
    desk.pass(250);
    assert!(!seat(&mut desk, a, lease).0);
    let mut urgent = training(1, 1, 1);
    urgent.schedule.priority = 5;
    let urgent = desk.submit("urgent", urgent);
    desk.pass(250);
    assert!(seat(&mut desk, a, lease).0);
    assert_eq!(first_sentence(&desk, slow), "'train' runs on a (leaves for job-3).");
    desk.report(a, lease, checkpoint(2)).unwrap();
    desk.report(a, lease, released()).unwrap();
    assert!(desk.job(slow).tasks[0].failures.is_empty(), "it costs no retry");
    assert!(first_sentence(&desk, equal).contains("job-3 of priority 5 goes first"));
    assert_eq!(ask(&mut desk, a, lease.0).map(|(_, job, _)| job), Some(urgent));
}

#[test]
fn of_one_priority_the_user_with_fewest_workers_goes_first_and_nobody_beyond_a_quota() {
    let mut desk = Desk::new();
    desk.core.policy = Policy { quotas: [("ada".into(), 2)].into(), ..Policy::new(LEASE_MS) };
    let fleet = workers(&mut desk, &["a", "b", "c", "d"]);
    let of = |user: &str| {
        let mut spec = training(1, 1, 1);
        spec.schedule.user = user.into();
        spec
    };
    let jobs: Vec<_> =
        [("1", "ada"), ("2", "ada"), ("3", "ada"), ("4", "bob")].map(|(id, user)| desk.submit(id, of(user))).into();
    let mut given = |worker: WorkerId| ask(&mut desk, worker, 0).map(|(_, job, _)| job);
    assert_eq!(given(fleet[0]), Some(jobs[0]));
    assert_eq!(given(fleet[1]), Some(jobs[3]), "bob has none yet");
    assert_eq!(given(fleet[2]), Some(jobs[1]));
    assert_eq!(given(fleet[3]), None, "two are all that ada may hold");
    let said = "'train' is ready: user ada holds 2 of 2 workers allowed, and it needs 1.";
    assert_eq!(first_sentence(&desk, jobs[2]), said);
}

#[test]
fn a_lease_that_was_never_heard_of_is_given_again_and_one_that_was_is_forfeited() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    desk.submit("x", training(1, 1, 1));
    let (lease, ..) = ask(&mut desk, a, 0).unwrap();
    assert_eq!(ask(&mut desk, a, 0).map(|(again, ..)| again), Some(lease), "the answer got lost");
    let (next, ..) = ask(&mut desk, a, lease.0).unwrap();
    assert!(next > lease, "the worker dropped it");
}

#[test]
fn a_training_pauses_keeps_its_checkpoint_and_goes_on_when_told() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    let mut pausing = training(3, 1, 1);
    pausing.schedule.pause_epoch = 1;
    let job = desk.submit("x", pausing);
    let (lease, ..) = ask(&mut desk, a, 0).unwrap();
    desk.report(a, lease, epoch(1)).unwrap();
    desk.report(a, lease, checkpoint(4)).unwrap();
    desk.report(a, lease, released()).unwrap();
    assert_eq!(desk.task_state(job, 0), "waiting");
    while let Some((lease, kind)) = desk.lease(a) {
        assert!(matches!(kind, TaskKind::Dev { epoch: 1, .. }), "what was trained is evaluated meanwhile");
        desk.report(a, lease, Report::Evaluated(evaluated(2))).unwrap();
    }
    assert!(desk.job(job).training().dev.contains_key(&1));
    let said = "The training pauses after epoch 1 of 3 until it is told to go on: insula resume job-1.";
    assert_eq!(first_sentence(&desk, job), said);
    let resume = |pause_epoch| Request::Resume { job, pause_epoch };
    assert_eq!(desk.ask(resume(3)).unwrap_err(), Refusal::NoSuchPause { job, pause_epoch: 3, epochs: 3 });
    desk.ask(resume(2)).unwrap();
    assert_eq!(desk.ask(resume(1)).unwrap().events, [], "it never goes back");
    let (_, kind) = desk.lease(a).unwrap();
    assert_eq!((kind, desk.job(job).training().checkpoints[0].update), (TaskKind::Train { stage: 0 }, 4));
    assert_eq!(desk.job(job).pause_of(0), 2);
}

#[test]
fn nothing_that_something_refers_to_is_let_go_of() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    let job = desk.submit("x", training(2, 1, 1));
    let (lease, ..) = ask(&mut desk, a, 0).unwrap();
    let whole = |update: u32| {
        let Report::Checkpoint(plain) = checkpoint(update) else { unreachable!("it is one") };
        let (state, lines) = (Some(artifact(&format!("state {update}"))), artifact(&format!("ledger {update}")));
        let ledger = Some(LedgerSegment { first: update - 1, last: update, lines });
        Report::Checkpoint(Checkpoint { state, ledger, ..plain })
    };
    for report in [whole(2), epoch(1), whole(4), epoch(2)] {
        desk.report(a, lease, report).unwrap();
    }
    let has = |desk: &Desk, name: &str| {
        let Artifact { digest, .. } = artifact(name);
        kept(&desk.core.state).digests.contains(&digest)
    };
    let of_a_running_job = ["state 2", "state 4", "ledger 2", "ledger 4", "adapter 1", "adapter 2"];
    assert!(of_a_running_job.iter().all(|name| has(&desk, name)));
    desk.report(a, lease, trained()).unwrap();
    while let Some((lease, kind)) = desk.lease(a) {
        let right = if matches!(kind, TaskKind::Dev { epoch: 1, .. }) { 3 } else { 1 };
        desk.report(a, lease, Report::Evaluated(evaluated(right))).unwrap();
    }
    assert_eq!(desk.job(job).phase.name(), PhaseName::Succeeded);
    let of_an_ended_one = ["adapter 1", "state 4", "ledger 2", "ledger 4", "predictions of 1"];
    assert!(of_an_ended_one.iter().all(|name| has(&desk, name)), "best, latest, ledger, predictions");
    assert!(!has(&desk, "adapter 2") && !has(&desk, "state 2"));
    desk.ask(Request::Pin { job, pinned: true }).unwrap();
    assert!(has(&desk, "adapter 2") && has(&desk, "state 2"), "pinned");
    let from = desk.submit("y", staged(job, 1));
    desk.ask(Request::Pin { job, pinned: false }).unwrap();
    assert!(has(&desk, "adapter 1"), "{from} starts from it");
    assert_eq!(desk.job(job).task(TaskIndex(0)).attempts, 1);
}
