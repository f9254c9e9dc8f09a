//! Every written invariant, asserted.

use std::collections::{BTreeMap, BTreeSet};

#[cfg(test)]
use insula_proto::ids::JobId;
use insula_proto::ids::TaskIndex;

use super::{
    event::PhaseName,
    state::{Job, State, Training},
    task::{TaskKind, TaskState},
};

impl State {
    /// Asserts what must always hold. For tests and simulations, after every step.
    ///
    /// # Panics
    /// With a sentence, when something does not hold.
    pub fn check(&self) {
        self.check_leases();
        self.check_gangs();
        self.check_workers();
        self.tokens.check(|lease| self.leases.contains_key(&lease));
        let mut ready = BTreeSet::new();
        for (&id, job) in &self.jobs {
            assert_eq!(job.id, id, "a job stands under its own id");
            assert_eq!(self.requests.get(&job.request_id), Some(&id), "a job is found by its request id");
            assert!(self.corpora.contains_key(&job.corpus.digest), "a job's corpus is imported");
            self.check_tasks(job);
            check_training(job);
            let open = job.tasks.iter().zip(0..).filter(|(task, _)| task.state == TaskState::Ready);
            ready.extend(open.map(|(_, index)| (id, TaskIndex(index))));
        }
        #[cfg(test)]
        assert_eq!(self.ready.all(), ready, "what can be handed out is exactly the ready tasks");
        self.check_awaited();
        assert_eq!(self.requests.len(), self.jobs.len(), "every request id has one job");
    }

    fn check_awaited(&self) {
        let ended = |job: &Job| job.phase.name().is_final();
        for job in self.jobs.values().filter(|job| !ended(job)) {
            let awaits = job.spec.starts_from().filter(|from| !ended(&self.jobs[from]));
            let known = awaits.is_none_or(|from| self.awaited.get(&from).is_some_and(|jobs| jobs.contains(&job.id)));
            assert!(known, "a job that waits for another's end is among those that wait for it");
        }
        assert!(self.awaited.keys().all(|from| !ended(&self.jobs[from])), "nobody waits for a job that has ended");
    }

    fn check_leases(&self) {
        let mut workers = BTreeMap::new();
        for (&lease, held) in &self.leases {
            assert!(lease.0 <= self.last_lease, "lease ids only grow");
            assert_eq!(workers.insert(held.worker, lease), None, "a worker has at most one live lease");
            let TaskState::Leased(gang) = &self.jobs[&held.job].task(held.task).state else {
                panic!("a live lease's task is leased")
            };
            assert!(gang.holders.contains(&lease), "a live lease's task is leased under it");
            assert_eq!(self.workers[&held.worker].lease, Some(lease), "a live lease's worker holds it");
        }
    }

    fn check_gangs(&self) {
        let mut training = BTreeSet::new();
        for job in self.jobs.values() {
            for (task, index) in job.tasks.iter().zip(0..) {
                let TaskState::Leased(gang) = &task.state else { continue };
                let trains = matches!(task.kind, TaskKind::Train { .. });
                gang.check(trains, job.spec.workers as usize);
                let of_task = |lease| self.leases.get(lease).is_some_and(|l| (l.job, l.task.0) == (job.id, index));
                assert!(gang.holders.iter().all(of_task), "a holder's lease is live and for this task");
                let whole = gang.holders.len() >= job.min_workers(task.kind);
                let leaving = gang.holders.iter().all(|lease| self.leases[lease].recalled.is_some());
                assert!(whole || leaving, "a gang that lacks members is called back");
                if trains {
                    training.insert((job.id, TaskIndex(index)));
                }
            }
        }
        assert_eq!(self.training, training, "trainings that workers may join are those that are leased");
    }

    fn check_workers(&self) {
        let mut names = BTreeSet::new();
        for (worker, known) in &self.workers {
            assert!(worker.0 <= self.last_worker, "worker ids only grow");
            assert!(names.insert(&known.name), "a name has one registration");
            if let Some(lease) = known.lease {
                assert_eq!(self.leases.get(&lease).map(|l| l.worker), Some(*worker), "what a worker holds is live");
            }
        }
    }

    fn check_tasks(&self, job: &Job) {
        let phase = job.phase.name();
        for task in &job.tasks {
            let held = matches!(task.state, TaskState::Ready | TaskState::Leased(_));
            assert!(!(phase.is_final() && held), "an ended job holds nothing");
            let fits = match task.state {
                TaskState::Trained(_) => matches!(task.kind, TaskKind::Train { .. }),
                TaskState::Evaluated(_) => !matches!(task.kind, TaskKind::Train { .. } | TaskKind::Embed { .. }),
                TaskState::Embedded(_) => matches!(task.kind, TaskKind::Embed { .. }),
                _ => true,
            };
            assert!(fits, "a task's result is of the task's kind");
            let started = held || task.state.is_done();
            assert!(!started || job.has_inputs(task.kind), "inputs exist before a task is ready");
            let can_start = task.state != TaskState::Ready || job.can_start(task.kind);
            assert!(can_start, "what pauses is not handed out");
            for (class, failures) in &task.failures {
                let spent = *failures > class.retries();
                assert!(!spent || task.state == TaskState::Failed, "a spent budget fails the task");
            }
        }
        let all_done = job.tasks.iter().all(|task| task.state.is_done());
        let succeeded = phase == PhaseName::Succeeded;
        assert_eq!(succeeded, all_done, "a job succeeds exactly when all of its tasks are done");
        let one_failed = job.tasks.iter().any(|task| task.state == TaskState::Failed);
        let failed = phase == PhaseName::Failed;
        assert!(failed || !one_failed, "a job fails when one of its tasks does");
        let depends = job.spec.starts_from().is_some();
        assert!(
            !failed || one_failed || depends,
            "a job fails only with one of its tasks, or with the job it starts from"
        );
        let untouched = job.tasks.iter().all(|task| task.attempts == 0);
        assert!(untouched || phase != PhaseName::Queued, "a queued job was never handed out");
    }
}

fn check_training(job: &Job) {
    for (training, stage) in job.stages.iter().zip(job.stage_specs()) {
        check_stage(training, stage.train.epochs, job.spec.evaluates());
    }
    let earlier = &job.stages[..job.stages.len() - 1];
    assert!(earlier.iter().all(|stage| stage.dev.is_empty()), "only the last stage is evaluated");
}

fn check_stage(training: &Training, epochs: u32, evaluates: bool) {
    assert!(training.checkpoints.len() <= 2, "at most two checkpoints are kept");
    let newest_first = training.checkpoints.is_sorted_by(|a, b| a.update > b.update);
    assert!(newest_first, "checkpoints are kept newest first");
    assert!(training.epochs.keys().all(|epoch| (1..=epochs).contains(epoch)), "an epoch is one of the recipe's");
    assert!(training.dev.keys().all(|epoch| training.epochs.contains_key(epoch)), "a scored epoch was trained");
    if let Some(best) = training.best.filter(|_| evaluates) {
        assert_eq!(training.dev.len(), epochs as usize, "the best epoch is chosen when all are scored");
        let highest = training.dev.values().copied().fold(f64::MIN, f64::max);
        let first = training.dev.iter().find(|(_, score)| **score == highest).map(|(epoch, _)| *epoch);
        assert_eq!(Some(best), first, "the best epoch is the first of the highest score");
    }
}

/// How many tasks have a result; for tests.
#[cfg(test)]
pub(super) fn results(state: &State, job: JobId) -> usize {
    state.jobs[&job].tasks.iter().filter(|task| task.state.is_done()).count()
}
