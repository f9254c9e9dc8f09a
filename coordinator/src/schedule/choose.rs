//! Who gets what: the order of the queue, gangs all or nothing, backfill behind a reservation, lending and recalling.
//!
//! ```text
//! a worker asks --> greatest priority first; of equals, the user with the fewest workers; of one user, the oldest job
//!     a short task, or a training of which enough workers are free   --> granted, to all of them at once
//!     a training that needs more                                     --> reserved: behind it only short tasks, and none
//!                                                                        any more once it has waited for BACKFILL_MS
//!     nothing                                                        --> a seat in a training that takes more workers
//! time passes --> a task for which nobody is free calls back workers that were lent beyond what these need to gangs of no
//!                 greater priority, and the trainings of smaller
//! ```

use std::{cmp::Reverse, collections::BTreeMap};

use insula_proto::ids::{JobId, LeaseId, WorkerId};

use super::{
    Core,
    event::Event,
    gang::Lease,
    queue::{Line, TaskId, of_job},
    state::{State, Worker},
    task::TaskState,
};

/// A training that waits for its workers lets short tasks go first for so long; then its workers are kept for it.
pub(super) const BACKFILL_MS: u64 = 30_000;

/// Trainings of one user that are looked at for one that the workers suffice for.
const LOOKED_AT: usize = 64;

/// What a worker that asks is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// The task, and who gets it: the asker and, of a gang, others that wait.
    pub(super) grant: Option<(TaskId, Vec<WorkerId>)>,
    /// The training that workers are kept for.
    pub(super) reserved: Option<TaskId>,
}

/// How many workers each user holds.
pub(super) fn held(state: &State) -> BTreeMap<&str, u32> {
    let mut held = BTreeMap::new();
    for lease in state.leases.values() {
        *held.entry(state.jobs[&lease.job].spec.schedule.user.as_str()).or_default() += 1;
    }
    held
}

/// What this worker is given; `only` is the one job it works for.
pub(super) fn choose(core: &Core, now_ms: u64, worker: WorkerId, only: Option<JobId>) -> Choice {
    let Core { state, policy, .. } = core;
    let held = held(state);
    let held = |user: &str| held.get(user).copied().unwrap_or(0);
    let mut choice = Choice::default();
    for (_, user, line) in state.ready.lines(held) {
        let free_quota = policy.quota_of(user).saturating_sub(held(user)) as usize;
        if free_quota == 0 {
            continue;
        }
        let backfills = choice.reserved.is_some();
        if is_kept(core, now_ms, choice.reserved) {
            break;
        }
        choice.grant = of_line(core, now_ms, (worker, only), line, free_quota, backfills, &mut choice.reserved);
        if choice.grant.is_some() {
            return choice;
        }
    }
    if choice.reserved.is_none() {
        choice.grant = seat_for(core, worker, only, held).map(|task| (task, vec![worker]));
    }
    choice
}

/// The next task of a user that the workers suffice for.
fn of_line(
    core: &Core,
    now_ms: u64,
    (worker, only): (WorkerId, Option<JobId>),
    line: &Line,
    free_quota: usize,
    backfills: bool,
    reserved: &mut Option<TaskId>,
) -> Option<(TaskId, Vec<WorkerId>)> {
    let short = of_job(&line.short, only).next();
    let mut trainings = of_job(&line.trainings, only).take(LOOKED_AT);
    let mut next = (!backfills).then(|| trainings.next()).flatten();
    while let Some(task) = next {
        if short.is_some_and(|short| short < task) {
            break;
        }
        let needed = core.state.jobs[&task.0].spec.schedule.min_workers as usize;
        let mut takers = vec![worker];
        if needed > 1 {
            let others = core.pulse.idle(now_ms, task.0).filter(|idle| *idle != worker && alike(core, worker, *idle));
            takers.extend(others.take(needed - 1));
        }
        match takers.len() >= needed && needed <= free_quota {
            true => return Some((task, takers)),
            // Where the fleet is too small, waiting does not help, and nobody waits behind it.
            false if fleet(core, now_ms, task.0, Some(worker)) >= needed && needed <= free_quota => {
                *reserved = Some(task);
                break;
            }
            false => next = trainings.next(),
        }
    }
    let kept = is_kept(core, now_ms, *reserved);
    short.filter(|_| !kept).map(|task| (task, vec![worker]))
}

/// Whether two workers compute on devices of one kind.
fn alike(core: &Core, one: WorkerId, other: WorkerId) -> bool {
    let device = |worker| core.state.workers.get(&worker).map(|worker: &Worker| &worker.device);
    device(one) == device(other)
}

/// Whether workers are kept for the reserved training, even from short tasks.
fn is_kept(core: &Core, now_ms: u64, reserved: Option<TaskId>) -> bool {
    reserved.is_some_and(|task| core.pulse.reserved_for(task, now_ms) >= BACKFILL_MS)
}

/// The most workers of one kind that are alive and may compute for a job; with an asker, those like it.
pub(super) fn fleet(core: &Core, now_ms: u64, job: JobId, asker: Option<WorkerId>) -> usize {
    let here = |(id, worker): &(&WorkerId, &Worker)| {
        asker == Some(**id) || worker.lease.is_some() || core.pulse.is_here(**id, now_ms, job)
    };
    let mut by_kind: BTreeMap<&str, usize> = BTreeMap::new();
    for (id, worker) in core.state.workers.iter().filter(here) {
        if asker.is_none_or(|asker| alike(core, asker, *id)) {
            *by_kind.entry(&worker.device).or_default() += 1;
        }
    }
    by_kind.into_values().max().unwrap_or(0)
}

/// A training that takes one more worker: of the greatest priority, the one with the fewest.
fn seat_for(core: &Core, worker: WorkerId, only: Option<JobId>, held: impl Fn(&str) -> u32) -> Option<TaskId> {
    let Core { state, policy, .. } = core;
    let takes = |&(id, index): &TaskId| {
        let job = &state.jobs[&id];
        let TaskState::Leased(gang) = &job.task(index).state else { return None };
        let recalled = gang.holders.iter().any(|lease| state.leases[lease].recalled.is_some());
        let user = &job.spec.schedule.user;
        let full = gang.holders.len() >= job.spec.workers as usize || held(user) >= policy.quota_of(user);
        // A gang's members compute on devices of one kind: of one kind alone is every bit the same.
        let like_them = gang.holders.iter().all(|lease| alike(core, worker, state.leases[lease].worker));
        let unfit = job.task(index).unfit.contains(&worker);
        let joinable = !recalled && !full && !unfit && like_them && !job.pauses();
        joinable.then_some((Reverse(job.spec.schedule.priority), gang.holders.len(), (id, index)))
    };
    of_job(&state.training, only).filter_map(|task| takes(&task)).min().map(|(.., task)| task)
}

/// A worker that could be called back: its lease, the job it computes, whether the gang goes on without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Callable {
    lease: LeaseId,
    priority: i32,
    job: JobId,
    lent: bool,
}

/// The leases to call back so that what waits finds workers.
pub(super) fn recalls(core: &Core, now_ms: u64) -> Vec<Event> {
    let Core { state, policy, pulse } = core;
    if state.ready.is_empty() || state.training.is_empty() {
        return vec![];
    }
    let held = held(state);
    let held = |user: &str| held.get(user).copied().unwrap_or(0);
    let mut coming = state.leases.values().filter(|lease| lease.recalled.is_some()).count();
    let mut callable = callable(state);
    let mut events = Vec::new();
    for (priority, user, line) in state.ready.lines(held) {
        let Some(task) = line.first() else { continue };
        let job = &state.jobs[&task.0];
        let needed = job.min_workers(job.task(task.1).kind);
        if policy.quota_of(user).saturating_sub(held(user)) < u32::try_from(needed).unwrap_or(u32::MAX) {
            continue;
        }
        let free = pulse.idle(now_ms, task.0).count() + coming;
        let mut missing = needed.saturating_sub(free);
        if missing == 0 {
            coming = free - needed;
            continue;
        }
        let may = |c: &Callable| c.job != task.0 && if c.lent { c.priority <= priority } else { c.priority < priority };
        let short = state.leases.values().filter(|lease| !is_training(state, lease)).count();
        if callable.iter().filter(|c| may(c)).count() + short < missing {
            continue; // calling back would interrupt and still not suffice
        }
        while missing > 0
            && let Some(place) = callable.iter().position(may)
        {
            let Callable { lease, job, .. } = callable.remove(place);
            events.push(Event::LeaseRecalled { lease, job, wanted_by: task.0 });
            missing -= 1;
        }
        coming = 0;
    }
    events
}

fn is_training(state: &State, lease: &Lease) -> bool {
    state.training.contains(&(lease.job, lease.task))
}

/// Who could be called back, those first whose leaving costs least: lent ones, then whole trainings, smallest priority
/// and latest lease first.
fn callable(state: &State) -> Vec<Callable> {
    let mut callable = Vec::new();
    for &(id, index) in &state.training {
        let job = &state.jobs[&id];
        let TaskState::Leased(gang) = &job.task(index).state else { continue };
        let needed = job.min_workers(job.task(index).kind);
        // Who reports stays rather than who only helps: leaving, it would have to write a checkpoint first.
        let unseated = gang.holders.iter().filter(|lease| !gang.seats.contains(lease));
        for (place, &lease) in gang.seats.iter().chain(unseated).enumerate() {
            if state.leases[&lease].recalled.is_none() {
                callable.push(Callable { lease, priority: job.spec.schedule.priority, job: id, lent: place >= needed });
            }
        }
    }
    callable.sort_by_key(|c| (Reverse(c.lent), c.priority, Reverse(c.lease)));
    callable
}
