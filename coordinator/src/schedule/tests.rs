//! What the schedule promises, one promise a test.

use insula_proto::{
    corpus::Split,
    ids::{Digest, JobId, LeaseId, TaskIndex, WorkerId},
    job::Arm,
};

use super::{
    Answer, Refusal, Request,
    check::results,
    event::{Embedded, FailureClass, PhaseName, Progress, Report},
    fixture::*,
    state::Phase,
    task::TaskKind,
};

const BOTH: [Arm; 2] = [Arm::ZeroShot, Arm::Trained];

/// One worker does everything a job asks for; dev scores by epoch as given. Returns what it was given, in order.
fn work_off(desk: &mut Desk, worker: WorkerId, right_on_dev: &[u16]) -> Vec<TaskKind> {
    let mut given = Vec::new();
    while let Some((lease, kind)) = desk.lease(worker) {
        given.push(kind);
        match kind {
            TaskKind::Train { .. } => {
                for n in 1..=right_on_dev.len() {
                    desk.report(worker, lease, epoch(n as u32)).unwrap();
                }
                desk.report(worker, lease, trained()).unwrap();
            }
            TaskKind::Dev { epoch, .. } => {
                let right = right_on_dev[epoch as usize - 1];
                desk.report(worker, lease, Report::Evaluated(evaluated(right))).unwrap();
            }
            TaskKind::Embed { .. } => drop(desk.report(worker, lease, embedded()).unwrap()),
            _ => drop(desk.report(worker, lease, Report::Evaluated(evaluated(3))).unwrap()),
        }
    }
    given
}

#[test]
fn a_job_goes_from_zero_shot_over_training_and_dev_to_the_best_epoch_on_test() {
    let mut desk = Desk::new();
    let worker = desk.register("one");
    let job = desk.submit("a", spec(&BOTH, 3));
    let given = work_off(&mut desk, worker, &[2, 3, 3]);
    let mut expected =
        vec![TaskKind::ZeroShot { shard: 0 }, TaskKind::ZeroShot { shard: 1 }, TaskKind::Train { stage: 0 }];
    for epoch in 1..=3 {
        expected.extend([0, 1].map(|shard| TaskKind::Dev { epoch, shard }));
    }
    expected.extend([0, 1].map(|shard| TaskKind::Trained { shard }));
    assert_eq!(given, expected);
    assert_eq!(desk.job(job).phase.name(), PhaseName::Succeeded);
    assert_eq!(desk.job(job).training().best, Some(2), "of equal epochs the earlier one is chosen");
    assert_eq!(desk.replayed().state, desk.core.state);
}

#[test]
fn a_job_with_only_the_zero_shot_arm_trains_nothing() {
    let mut desk = Desk::new();
    let worker = desk.register("one");
    let job = desk.submit("a", spec(&[Arm::ZeroShot], 3));
    assert_eq!(work_off(&mut desk, worker, &[]).len(), 2);
    assert_eq!(desk.job(job).phase.name(), PhaseName::Succeeded);
}

#[test]
fn the_oldest_job_is_handed_out_first_and_one_task_to_one_worker() {
    let mut desk = Desk::new();
    let (first, second) = (desk.submit("a", spec(&BOTH, 1)), desk.submit("b", spec(&[Arm::ZeroShot], 1)));
    let workers: Vec<_> = (0..5).map(|n| desk.register(&format!("w{n}"))).collect();
    let given: Vec<_> = workers.iter().map(|&w| desk.lease(w).unwrap()).collect();
    let jobs: Vec<_> = given.iter().map(|(lease, _)| desk.core.state.leases[lease].job).collect();
    assert_eq!(jobs, [first, first, first, second, second]);
    assert!(given.is_sorted_by(|a, b| a.0 < b.0), "lease ids grow");
}

#[test]
fn a_worker_that_serves_one_job_gets_no_other_jobs_tasks() {
    let mut desk = Desk::new();
    let worker = desk.register("one");
    desk.submit("a", spec(&[Arm::ZeroShot], 1));
    let second = desk.submit("b", spec(&[Arm::ZeroShot], 1));
    let turn =
        desk.ask(Request::Lease { worker, only_job: Some(second), heard: LeaseId(u64::MAX), waits_ms: 0 }).unwrap();
    assert!(matches!(turn.answer, Answer::Leased(Some(grant)) if grant.job.id == second));
}

#[test]
fn a_lease_without_a_heartbeat_expires_and_its_task_goes_to_another() {
    let mut desk = Desk::new();
    let (a, b) = (desk.register("a"), desk.register("b"));
    desk.submit("x", spec(&[Arm::Trained], 1));
    let (lease, _) = desk.lease(a).unwrap();
    desk.pass(4000);
    assert_eq!(desk.beat(a, lease), Ok(false));
    desk.pass(4999);
    assert_eq!(desk.lease(b), None, "the heartbeat renewed the lease");
    desk.pass(1);
    assert_eq!(desk.beat(a, lease), Err(Refusal::StaleLease { lease, worker: a }));
    let (next, kind) = desk.lease(b).unwrap();
    assert_eq!((next > lease, kind), (true, TaskKind::Train { stage: 0 }));
}

#[test]
fn a_late_report_is_refused_and_changes_nothing() {
    let mut desk = Desk::new();
    let (a, b) = (desk.register("a"), desk.register("b"));
    let job = desk.submit("x", spec(&[Arm::ZeroShot], 1));
    let (late, _) = desk.lease(a).unwrap();
    desk.pass(LEASE_MS);
    let (lease, _) = desk.lease(b).unwrap();
    let result = Report::Evaluated(evaluated(4));
    let refused = desk.report(a, late, result.clone()).unwrap_err();
    assert_eq!(refused.to_string(), "lease-1 is not held by worker-1 any more: ask for work again");
    assert!(desk.report(a, lease, result).is_err(), "another's lease is no use either");
    assert_eq!(results(&desk.core.state, job), 0);
}

#[test]
fn a_report_that_comes_twice_counts_once() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    let job = desk.submit("x", spec(&[Arm::ZeroShot], 1));
    let (lease, _) = desk.lease(a).unwrap();
    desk.report(a, lease, Report::Evaluated(evaluated(4))).unwrap();
    let again = desk.report(a, lease, Report::Evaluated(evaluated(4))).unwrap();
    assert_eq!((again.events.len(), results(&desk.core.state, job)), (0, 1));
    assert!(desk.report(a, lease, Report::Evaluated(evaluated(3))).is_err(), "other content is another report");
}

#[test]
fn registering_a_name_again_forfeits_what_the_old_registration_held() {
    let mut desk = Desk::new();
    let old = desk.register("a");
    let job = desk.submit("x", spec(&[Arm::ZeroShot], 1));
    let (lease, _) = desk.lease(old).unwrap();
    let new = desk.register("a");
    assert_eq!(desk.task_state(job, 0), "ready");
    assert_eq!(desk.beat(old, lease), Err(Refusal::UnknownWorker(old)));
    assert_eq!(desk.beat(new, lease), Err(Refusal::StaleLease { lease, worker: new }));
}

#[test]
fn asking_for_work_forfeits_what_the_worker_held() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    desk.submit("x", spec(&[Arm::ZeroShot], 1));
    let (first, kind) = desk.lease(a).unwrap();
    let (second, again) = desk.lease(a).unwrap();
    assert_eq!((again, second), (kind, LeaseId(first.0 + 1)));
    assert!(desk.beat(a, first).is_err());
}

#[test]
fn the_two_newest_checkpoints_are_kept_newest_first() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    let job = desk.submit("x", spec(&[Arm::Trained], 1));
    let (lease, _) = desk.lease(a).unwrap();
    for update in [10, 20, 30] {
        desk.report(a, lease, checkpoint(update)).unwrap();
        desk.report(a, lease, checkpoint(update)).unwrap();
    }
    let kept = |desk: &Desk| desk.job(job).training().checkpoints.iter().map(|c| c.update).collect::<Vec<_>>();
    assert_eq!(kept(&desk), [30, 20]);
    let (lease, _) = desk.lease(a).unwrap();
    desk.report(a, lease, checkpoint(25)).unwrap();
    assert_eq!(kept(&desk), [30, 25], "30 was damaged: the training went on from 20, and is now safe at 25");
}

#[test]
fn an_epoch_reported_again_after_a_resume_keeps_the_first_adapter() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    let job = desk.submit("x", spec(&[Arm::Trained], 2));
    let (lease, _) = desk.lease(a).unwrap();
    desk.report(a, lease, epoch(1)).unwrap();
    let (lease, _) = desk.lease(a).unwrap();
    assert_eq!(desk.report(a, lease, epoch(1)).unwrap().events, []);
    let differs = Report::EpochTrained { epoch: 1, adapter: vec![artifact("another")] };
    let turn = desk.report(a, lease, differs).unwrap();
    assert!(format!("{:?}", turn.effects).contains("its adapter differs; the first one is kept"));
    assert_eq!(desk.job(job).training().epochs[&1], [artifact("adapter 1")]);
}

#[test]
fn lost_workers_in_a_row_use_up_their_budget_and_progress_gives_it_back() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    let job = desk.submit("x", spec(&[Arm::Trained], 1));
    for _ in 0..20 {
        desk.lease(a).unwrap();
        desk.pass(LEASE_MS);
    }
    let (lease, _) = desk.lease(a).unwrap();
    desk.report(a, lease, checkpoint(1)).unwrap();
    desk.pass(LEASE_MS);
    for _ in 0..20 {
        assert_eq!(desk.job(job).phase.name(), PhaseName::Running);
        desk.lease(a).unwrap();
        desk.pass(LEASE_MS);
    }
    let expected = "train: lost worker (21 times): worker a was not heard of in time";
    assert!(format!("{:?}", desk.job(job).phase).contains(expected), "{:?}", desk.job(job).phase);
}

#[test]
fn each_failure_class_has_its_own_budget() {
    for (class, leases) in [(FailureClass::BadData, 1), (FailureClass::Bug, 2), (FailureClass::OutOfMemory, 2)] {
        let mut desk = Desk::new();
        let a = desk.register("a");
        let job = desk.submit("x", spec(&[Arm::ZeroShot], 1));
        for n in 0..leases {
            assert!(!desk.job(job).phase.name().is_final(), "{class:?} {n}");
            let (lease, _) = desk.lease(a).unwrap();
            desk.report(a, lease, failed(class)).unwrap();
        }
        assert_eq!(desk.job(job).phase.name(), PhaseName::Failed, "{class:?}");
        assert_eq!(desk.lease(a), None);
    }
}

#[test]
fn a_task_given_back_politely_costs_no_retry() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    let job = desk.submit("x", spec(&[Arm::ZeroShot], 1));
    for _ in 0..50 {
        let (lease, _) = desk.lease(a).unwrap();
        desk.report(a, lease, Report::Released { reason: "stopping".into() }).unwrap();
    }
    assert_eq!(desk.job(job).phase.name(), PhaseName::Running);
    assert!(desk.job(job).task(TaskIndex(0)).failures.is_empty());
}

#[test]
fn the_first_report_fixes_the_base_and_another_is_refused() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    let job = desk.submit("x", spec(&[Arm::Trained], 1));
    let (lease, _) = desk.lease(a).unwrap();
    desk.report(a, lease, checkpoint(1)).unwrap();
    let (expected, found) = (base(), Digest::of(b"other"));
    let report = |base| Request::Report { worker: a, lease, base, report: Box::new(checkpoint(2)) };
    assert_eq!(desk.ask(report(Some(found.clone()))).unwrap_err(), Refusal::OtherBase { job, expected, found });
    assert_eq!(desk.ask(report(None)).unwrap_err(), Refusal::NoBase { job });
}

#[test]
fn a_cancelled_job_is_taken_from_its_workers_who_are_told_to_stop() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    let job = desk.submit("x", spec(&BOTH, 1));
    let (lease, _) = desk.lease(a).unwrap();
    desk.ask(Request::Cancel { job }).unwrap();
    assert_eq!(desk.beat(a, lease), Ok(true));
    assert!(desk.report(a, lease, Report::Evaluated(evaluated(4))).is_err());
    assert!(desk.report(a, lease, Report::Released { reason: "told to".into() }).is_ok());
    assert_eq!(desk.lease(a), None);
    assert_eq!(desk.ask(Request::Cancel { job }).unwrap().events, [], "cancelling twice is cancelling once");
}

#[test]
fn the_same_request_id_is_the_same_job_and_other_settings_under_it_are_refused() {
    let mut desk = Desk::new();
    let job = desk.submit("x", spec(&BOTH, 1));
    assert_eq!(desk.submit("x", spec(&BOTH, 1)), job);
    let other = Request::Submit { request_id: "x".into(), spec: Box::new(spec(&BOTH, 2)), corpus: corpus() };
    assert_eq!(desk.ask(other).unwrap_err(), Refusal::RequestIdTaken { request_id: "x".into(), job });
    assert_eq!(desk.core.state.jobs.len(), 1);
}

#[test]
fn a_worker_of_another_version_is_refused_by_name() {
    let mut desk = Desk::new();
    let (name, device) = ("a".to_owned(), "cpu".to_owned());
    let request = Request::Register { name, version: "0.0.9".into(), device, threads: 1, address: String::new() };
    let refusal = desk.ask(request).unwrap_err().to_string();
    assert!(refusal.starts_with("worker 'a' is insula 0.0.9, the coordinator is insula "), "{refusal}");
}

#[test]
fn reports_that_do_not_fit_their_task_are_refused() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    desk.submit("x", spec(&BOTH, 2));
    let (lease, _) = desk.lease(a).unwrap();
    let mut short = evaluated(4);
    short.paper = insula_proto::tally::Tally::new(2);
    let refused = |desk: &mut Desk, report| desk.report(a, lease, report).unwrap_err().to_string();
    assert_eq!(
        refused(&mut desk, Report::Evaluated(short)),
        "job-1: 'evaluate zero-shot test 1/2' has 4 utterances of 2 labels, the paper tally counts 0 of 2"
    );
    let wrong = "job-1: 'evaluate zero-shot test 1/2' cannot be answered with a training";
    assert_eq!(refused(&mut desk, trained()), wrong);
    for _ in 0..2 {
        let (lease, _) = desk.lease(a).unwrap();
        let _ = desk.report(a, lease, Report::Evaluated(evaluated(4)));
    }
    let (lease, kind) = desk.lease(a).unwrap();
    assert_eq!(kind, TaskKind::Train { stage: 0 });
    let mut refused = |report| desk.report(a, lease, report).unwrap_err().to_string();
    assert_eq!(refused(epoch(3)), "job-1: epoch 3 is out of range: expected 1 to 2");
    assert_eq!(refused(trained()), "job-1: the training is said to have ended, but epoch 1 was not reported");
}

#[test]
fn progress_is_journalled_about_once_a_second_and_a_bare_heartbeat_never() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    desk.submit("x", spec(&[Arm::ZeroShot], 1));
    let (lease, _) = desk.lease(a).unwrap();
    let before = desk.journal.len();
    for done in 0..20 {
        let (what, loss) = ("evaluate".into(), None);
        let progress =
            Progress { update: 0, updates: 0, epoch: 0, loss, lr: 0.0, samples_per_s: 1.0, done, total: 20, what };
        desk.ask(Request::Heartbeat { worker: a, lease, progress: Some(progress), seated: false, generation: 0 })
            .unwrap();
        desk.beat(a, lease).unwrap();
        desk.pass(100);
    }
    assert_eq!(desk.journal.len() - before, 3, "20 beats over 1.9 s: at 0, 0.9 and 1.8 s");
}

#[test]
fn after_a_restart_every_live_lease_has_its_full_time() {
    let mut desk = Desk::new();
    let a = desk.register("a");
    desk.submit("x", spec(&[Arm::ZeroShot], 1));
    let (lease, _) = desk.lease(a).unwrap();
    desk.now_ms += 60_000;
    desk.core = desk.replayed();
    desk.pass(LEASE_MS - 1);
    assert_eq!(desk.beat(a, lease), Ok(false));
}

#[test]
fn a_job_of_stages_embeds_first_and_goes_on_from_what_each_stage_left() {
    let mut desk = Desk::new();
    let worker = desk.register("one");
    let first = desk.submit("a", spec(&[Arm::Trained], 2));
    let second = desk.submit("b", staged(first, 2));
    let ready = |desk: &Desk, kind| desk.job(second).has_inputs(kind);
    assert!(!ready(&desk, TaskKind::Train { stage: 0 }), "the job it starts from has not ended");
    let given = work_off(&mut desk, worker, &[2, 3]);
    assert_eq!(desk.job(first).phase.name(), PhaseName::Succeeded);
    let embeds = given.iter().filter(|kind| matches!(kind, TaskKind::Embed { .. })).count();
    assert_eq!(embeds, 5, "every shard of every split");
    let job = desk.job(second);
    assert_eq!(job.phase.name(), PhaseName::Succeeded, "{:?}", job.phase);
    assert_eq!(job.start, desk.job(first).adapter_of(TaskKind::Trained { shard: 0 }).unwrap().clone());
    assert_eq!(job.base, desk.job(first).base);
    assert_eq!(job.what(TaskIndex(5)), "train speaker");
    assert_eq!(job.what(TaskIndex(6)), "train main+impact");
    assert_eq!(desk.replayed().state, desk.core.state);
}

#[test]
fn a_job_fails_with_the_one_it_starts_from_and_cannot_start_from_what_leaves_no_adapter() {
    let mut desk = Desk::new();
    let first = desk.submit("a", spec(&[Arm::Trained], 1));
    let second = desk.submit("b", staged(first, 1));
    desk.ask(Request::Cancel { job: first }).unwrap();
    let job = desk.job(second);
    assert_eq!(job.phase.name(), PhaseName::Failed);
    assert!(matches!(&job.phase, Phase::Failed { message, .. } if message.contains("job-1")), "{:?}", job.phase);
    let refused = |desk: &mut Desk, id: &str, from| {
        let request = Request::Submit { request_id: id.into(), spec: Box::new(staged(from, 1)), corpus: corpus() };
        desk.ask(request).unwrap_err().to_string()
    };
    assert!(refused(&mut desk, "c", first).contains("job-1 has failed or was cancelled"));
    assert!(refused(&mut desk, "d", JobId(9)).contains("job-9 does not exist"));
    let zero_shot = desk.submit("e", spec(&[Arm::ZeroShot], 1));
    assert!(refused(&mut desk, "f", zero_shot).contains("trains nothing"));
}

#[test]
fn embeddings_of_another_encoder_or_another_number_of_rows_are_refused() {
    let mut desk = Desk::new();
    let worker = desk.register("one");
    let mut spec = staged(JobId(1), 1);
    spec.adapter.from.clear();
    desk.submit("a", spec);
    let (lease, kind) = desk.lease(worker).unwrap();
    assert_eq!(kind, TaskKind::Embed { split: Split::Train, shard: 0 });
    let Report::Embedded(whole) = embedded() else { unreachable!("it is made as one") };
    let short = Report::Embedded(Embedded { rows: 3, ..whole.clone() });
    let refused = desk.report(worker, lease, short).unwrap_err();
    assert!(matches!(refused, Refusal::WrongRows { expected: 4, found: 3, .. }), "{refused}");
    desk.report(worker, lease, Report::Embedded(whole.clone())).unwrap();
    let (lease, _) = desk.lease(worker).unwrap();
    let other = Report::Embedded(Embedded { encoder: Digest::of(b"another"), ..whole });
    let refused = desk.report(worker, lease, other).unwrap_err();
    assert!(matches!(refused, Refusal::OtherEncoder { .. }), "{refused}");
}

#[test]
fn a_job_that_learns_nothing_to_be_evaluated_leaves_its_last_epoch_to_others() {
    let mut desk = Desk::new();
    let worker = desk.register("one");
    let mut beginning = staged(JobId(1), 2);
    beginning.stages.truncate(1);
    beginning.evaluate.arms.clear();
    beginning.adapter.from.clear();
    assert_eq!(beginning.violations(), []);
    let first = desk.submit("a", beginning);
    let second = desk.submit("b", staged(first, 2));
    let given = work_off(&mut desk, worker, &[2, 3]);
    assert_eq!(given[0], TaskKind::Train { stage: 0 }, "nothing is embedded and nothing evaluated");
    let (begun, ended) = (desk.job(first), desk.job(second));
    assert_eq!((begun.phase.name(), begun.tasks.len()), (PhaseName::Succeeded, 1));
    assert_eq!(ended.start, begun.stages[0].epochs[&2], "of two epochs the last");
    assert_eq!(ended.phase.name(), PhaseName::Succeeded);
    assert_eq!(desk.replayed().state, desk.core.state);
}
