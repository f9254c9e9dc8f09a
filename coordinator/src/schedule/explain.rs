//! Why a job stands where it stands, in sentences: what runs, what waits, and what would let it go on.

use insula_proto::ids::{JobId, TaskIndex};

use super::{
    Core,
    choose::{self, BACKFILL_MS},
    event::PhaseName,
    gang::{Gang, Recall},
    state::{Job, Phase, State},
    task::{Task, TaskKind, TaskState},
};

/// The sentences for a job; none where there is no such job.
pub fn explain(core: &Core, now_ms: u64, id: JobId) -> Vec<String> {
    let Some(job) = core.state.jobs.get(&id) else { return vec![] };
    match &job.phase {
        Phase::Succeeded { .. } => return vec![format!("{id} has succeeded.")],
        Phase::Failed { message, .. } => return vec![format!("{id} has failed: {message}.")],
        Phase::Cancelled { .. } => return vec![format!("{id} was cancelled.")],
        Phase::Queued | Phase::Running => {}
    }
    let mut said = Vec::new();
    said.extend(waits_for_another(&core.state, job));
    for (task, index) in job.tasks.iter().zip(0..) {
        if let TaskState::Leased(gang) = &task.state {
            said.push(runs(&core.state, job, TaskIndex(index), gang));
        }
    }
    if job.pauses() && !trains(job) {
        said.push(format!(
            "The training pauses after epoch {} of {} until it is told to go on: insula resume {id}.",
            job.pause_epoch,
            job.epochs()
        ));
    }
    said.extend(ready(core, now_ms, job));
    said.extend(waiting(job));
    said
}

fn trains(job: &Job) -> bool {
    let leased = |task: &Task| matches!(task.state, TaskState::Leased(_));
    job.tasks.iter().any(|task| matches!(task.kind, TaskKind::Train { .. }) && leased(task))
}

fn waits_for_another(state: &State, job: &Job) -> Option<String> {
    let from = job.spec.starts_from().filter(|_| job.start.is_empty())?;
    let stands = match state.jobs.get(&from)?.phase.name() {
        PhaseName::Queued => "is queued",
        PhaseName::Running => "is running",
        PhaseName::Succeeded | PhaseName::Failed | PhaseName::Cancelled => return None,
    };
    Some(format!(
        "The training starts from the adapter of {from}, which {stands}: it goes on once {from} has succeeded."
    ))
}

fn runs(state: &State, job: &Job, index: TaskIndex, gang: &Gang) -> String {
    let what = job.what(index);
    let names: Vec<_> = gang
        .holders
        .iter()
        .map(|lease| {
            let held = &state.leases[lease];
            let name = &state.workers[&held.worker].name;
            match held.recalled {
                Some(Recall::For(wanted_by)) => format!("{name} (leaves for {wanted_by})"),
                Some(Recall::TooFew) => {
                    format!("{name} (leaves: fewer than {} are left)", job.spec.schedule.min_workers)
                }
                None if !gang.seats.is_empty() && !gang.seats.contains(lease) => format!("{name} (still loading)"),
                None => name.clone(),
            }
        })
        .collect();
    let most = job.spec.workers;
    let room = match matches!(job.task(index).kind, TaskKind::Train { .. }) && most > 1 {
        true => format!(", {} of at most {most} workers", gang.holders.len()),
        false => String::new(),
    };
    format!("'{what}' runs on {}{room}.", names.join(", "))
}

/// Why what could be handed out is not.
fn ready(core: &Core, now_ms: u64, job: &Job) -> Vec<String> {
    let ready: Vec<_> = job.tasks.iter().zip(0..).filter(|(task, _)| task.state == TaskState::Ready).collect();
    let Some(&(first, index)) = ready.first() else { return vec![] };
    let what = match ready.len() {
        1 => format!("'{}' is ready", job.what(TaskIndex(index))),
        count => format!("'{}' and {} more tasks are ready", job.what(TaskIndex(index)), count - 1),
    };
    vec![format!("{what}: {}.", obstacle(core, now_ms, job, (first, TaskIndex(index))))]
}

fn obstacle(core: &Core, now_ms: u64, job: &Job, (task, index): (&Task, TaskIndex)) -> String {
    let Core { state, policy, pulse } = core;
    let user = &job.spec.schedule.user;
    let needed = job.min_workers(task.kind);
    let held = choose::held(state).get(user.as_str()).copied().unwrap_or(0);
    let quota = policy.quota_of(user);
    if quota.saturating_sub(held) < u32::try_from(needed).unwrap_or(u32::MAX) {
        let name = if user.is_empty() { "whoever names no user".into() } else { format!("user {user}") };
        return format!("{name} holds {held} of {quota} workers allowed, and it needs {needed}");
    }
    let fleet = choose::fleet(core, now_ms, job.id, None);
    let idle = pulse.idle(now_ms, job.id).count();
    if fleet == 0 {
        return "no worker is here: it starts when one comes (insula worker)".into();
    }
    if fleet < needed {
        return format!(
            "it needs {needed} workers at once and {fleet} are here: it starts when {} more come",
            needed - fleet
        );
    }
    if let Some(first) = ahead(core, job) {
        return format!("{first}, and {idle} of {fleet} workers are free");
    }
    if needed > 1 {
        let kept = match pulse.reserved_for((job.id, index), now_ms) {
            waited if waited >= BACKFILL_MS => "workers that become free are kept for it",
            _ => "meanwhile free workers take tasks that end soon",
        };
        return format!("it needs {needed} workers at once and {idle} of {fleet} are free: {kept}");
    }
    match idle {
        0 => format!("all {fleet} workers are busy: it is the next for one that becomes free"),
        _ => "it is about to be handed out".into(),
    }
}

/// What goes before a job's first ready task.
fn ahead(core: &Core, job: &Job) -> Option<String> {
    let Core { state, policy, .. } = core;
    let held = choose::held(state);
    let held = |user: &str| held.get(user).copied().unwrap_or(0);
    for (priority, user, line) in state.ready.lines(held) {
        let own = (priority, user) == (job.spec.schedule.priority, job.spec.schedule.user.as_str());
        let (first, _) = line.first()?;
        if own {
            return (first < job.id).then(|| format!("{first} was there before it"));
        }
        if policy.quota_of(user) <= held(user) {
            continue;
        }
        return Some(match priority > job.spec.schedule.priority {
            true => format!("{first} of priority {priority} goes first"),
            false => format!("{first} goes first, whose user holds fewer workers"),
        });
    }
    None
}

/// What waits within the job.
fn waiting(job: &Job) -> Option<String> {
    let waits = job
        .tasks
        .iter()
        .filter(|task| task.state == TaskState::Waiting && !matches!(task.kind, TaskKind::Train { .. }));
    let (mut epochs, mut best, mut embeddings) = (0, 0, 0);
    for task in waits {
        match task.kind {
            TaskKind::Dev { .. } => epochs += 1,
            TaskKind::Trained { .. } | TaskKind::Shuffled { .. } => best += 1,
            TaskKind::Embed { .. } | TaskKind::ZeroShot { .. } | TaskKind::FewShot { .. } => embeddings += 1,
            TaskKind::Train { .. } => {}
        }
    }
    let parts: Vec<_> =
        [(epochs, "for their epoch to be trained"), (best, "for the best epoch"), (embeddings, "for embeddings")]
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, why)| format!("{count} {why}"))
            .collect();
    (!parts.is_empty()).then(|| format!("Evaluations that wait: {}.", parts.join(", ")))
}
