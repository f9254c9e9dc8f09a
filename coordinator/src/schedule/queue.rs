//! What can be handed out, by priority and user, so that who is next is found without looking at everything.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use insula_proto::ids::{JobId, TaskIndex};

use super::state::Job;
use super::task::TaskKind;

/// A task of a job.
pub type TaskId = (JobId, TaskIndex);

/// The ready tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    lines: BTreeMap<(Reverse<i32>, String), Line>,
}

/// The ready tasks of one user at one priority, oldest job first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    /// Trainings: they keep a worker for long.
    pub trainings: BTreeSet<TaskId>,
    /// Everything else: it ends soon.
    pub short: BTreeSet<TaskId>,
}

impl Line {
    fn of(&mut self, kind: TaskKind) -> &mut BTreeSet<TaskId> {
        if matches!(kind, TaskKind::Train { .. }) { &mut self.trainings } else { &mut self.short }
    }

    fn is_empty(&self) -> bool {
        self.trainings.is_empty() && self.short.is_empty()
    }

    /// The oldest ready task.
    pub fn first(&self) -> Option<TaskId> {
        self.trainings.first().into_iter().chain(self.short.first()).min().copied()
    }
}

fn key(job: &Job) -> (Reverse<i32>, String) {
    (Reverse(job.spec.schedule.priority), job.spec.schedule.user.clone())
}

impl Queue {
    pub(super) fn insert(&mut self, job: &Job, index: TaskIndex) {
        self.lines.entry(key(job)).or_default().of(job.task(index).kind).insert((job.id, index));
    }

    pub(super) fn remove(&mut self, job: &Job, index: TaskIndex) {
        let key = key(job);
        if let Some(line) = self.lines.get_mut(&key) {
            line.of(job.task(index).kind).remove(&(job.id, index));
            if line.is_empty() {
                self.lines.remove(&key);
            }
        }
    }

    /// Whether nothing is ready.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The lines with their priority and user, greatest priority first; users in the order of `held`, fewest first, and
    /// of equals whose job is oldest.
    pub fn lines(&self, held: impl Fn(&str) -> u32) -> Vec<(i32, &str, &Line)> {
        let mut lines: Vec<_> = self.lines.iter().map(|((p, user), line)| (p.0, user.as_str(), line)).collect();
        lines.sort_by_key(|(priority, user, line)| (Reverse(*priority), held(user), line.first()));
        lines
    }

    /// Everything that is ready.
    #[cfg(test)]
    pub(super) fn all(&self) -> BTreeSet<TaskId> {
        self.lines.values().flat_map(|line| line.trainings.iter().chain(&line.short)).copied().collect()
    }
}

/// The tasks of one job among these, or all of them.
pub(super) fn of_job(tasks: &BTreeSet<TaskId>, only: Option<JobId>) -> impl Iterator<Item = TaskId> {
    let (from, to) = only.map_or((JobId(0), JobId(u64::MAX)), |job| (job, job));
    tasks.range((from, TaskIndex(0))..=(to, TaskIndex(u32::MAX))).copied()
}
