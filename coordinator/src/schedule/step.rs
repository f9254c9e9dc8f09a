//! Takes facts in: the fold of the journal. Cannot refuse; what could be refused was, before it became a fact.

mod training;

use std::sync::Arc;

use insula_proto::{
    corpus::CorpusManifest,
    ids::{Digest, JobId, LeaseId, TaskIndex, WorkerId},
    job::JobSpec,
};

use super::{
    event::{Event, FailureClass, Loss, PhaseName, Report, Story},
    gang::{Gang, Lease, Recall},
    state::{Job, Phase, State, Training, Worker},
    task::{Accepted, TaskKind, TaskState, tasks_of},
};

/// Jobs before a new one that may have parts equal to its own: a sweep's trials follow each other, and few sweeps at once.
const ALIKE: usize = 4;

/// What is to be done about a fact, once it is on disk.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Tell whoever watches a job.
    Tell(JobId, Story),
    /// Wake the workers that wait: something can be handed out.
    WorkIsReady,
}

/// Takes one event in and says what is to be done about it. The same events at the same times give the same state.
///
/// # Panics
/// When the event does not fit the state: the journal was written by something else.
pub fn step(state: &mut State, at_ms: u64, event: &Event) -> Vec<Effect> {
    let mut fold = Fold { state, at_ms, effects: Vec::new() };
    match event {
        Event::CorpusImported { corpus } => fold.corpus_imported(corpus),
        Event::JobSubmitted { job, request_id, spec, corpus, corpus_name } => {
            fold.job_submitted(*job, request_id, spec, corpus, corpus_name);
        }
        Event::JobCancelled { job } => fold.end(*job, Phase::Cancelled { at_ms }),
        Event::WorkerRegistered { worker, name, device, threads, address } => {
            let (name, device, address) = (name.clone(), device.clone(), address.clone());
            let known = Worker { name, device, threads: *threads, address, lease: None, last: None, revoked: None };
            fold.worker_registered(*worker, known);
        }
        Event::LeaseGranted { lease, worker, job, task } => {
            fold.lease_granted(*lease, Lease { worker: *worker, job: *job, task: *task, recalled: None });
        }
        Event::Seated { lease, .. } => fold.seated(*lease),
        Event::LeaseRecalled { lease, wanted_by, .. } => fold.lease_recalled(*lease, *wanted_by),
        Event::JobResumed { job, pause_epoch } => fold.job_resumed(*job, *pause_epoch),
        Event::JobPinned { job, pinned } => fold.job(*job).pinned = *pinned,
        Event::LeaseLost { lease, how, .. } => fold.lease_lost(*lease, *how),
        Event::Reported { lease, base, report, .. } => fold.reported(*lease, base.as_ref(), report),
        Event::ProgressMade { job, progress, .. } => {
            fold.job(*job).progress = Some(Box::new(progress.clone()));
            fold.tell(*job, Story::Progress { progress: progress.clone() });
        }
        Event::TokensClaimed { lease, key } => fold.state.tokens.claimed(key, *lease),
        Event::TokensCached { key, artifact, .. } => fold.state.tokens.fulfilled(key, artifact),
    }
    if let Some(job) = event.job() {
        fold.job(job).revision += 1;
    }
    fold.effects
}

/// The state while one event is taken in.
struct Fold<'a> {
    state: &'a mut State,
    at_ms: u64,
    effects: Vec<Effect>,
}

impl Fold<'_> {
    fn job(&mut self, job: JobId) -> &mut Job {
        Arc::make_mut(self.state.jobs.get_mut(&job).expect("an event's job was submitted before it"))
    }

    fn tell(&mut self, job: JobId, story: Story) {
        self.effects.push(Effect::Tell(job, story));
    }

    fn note(&mut self, job: JobId, text: String) {
        self.tell(job, Story::Note { text });
    }

    fn corpus_imported(&mut self, corpus: &CorpusManifest) {
        self.state.corpora.entry(corpus.digest.clone()).or_insert_with(|| Arc::new(corpus.clone()));
    }

    fn job_submitted(&mut self, id: JobId, request_id: &str, spec: &JobSpec, corpus: &Digest, corpus_name: &str) {
        let imported = self.state.corpora.get(corpus).expect("a job's corpus was imported before it");
        let same_name = imported.name == corpus_name;
        let renamed = || Arc::new(CorpusManifest { name: corpus_name.into(), ..CorpusManifest::clone(imported) });
        let corpus = if same_name { imported.clone() } else { renamed() };
        let request_id: Arc<str> = request_id.into();
        let (mut spec, pause_epoch) = (spec.clone(), spec.schedule.pause_epoch);
        self.state.jobs.values().rev().take(ALIKE).for_each(|job| spec.share(&job.spec));
        let from = spec.starts_from();
        let job = Job {
            id,
            request_id: request_id.clone(),
            tasks: tasks_of(&spec, &corpus),
            stages: vec![Training::default(); spec.training_stages().len()],
            spec: Arc::new(spec),
            corpus,
            submitted_ms: self.at_ms,
            phase: Phase::Queued,
            revision: 0,
            base: None,
            start: vec![],
            progress: None,
            pause_epoch,
            pinned: false,
        };
        self.state.requests.insert(request_id, id);
        self.state.jobs.insert(id, Arc::new(job));
        self.tell(id, Story::State { state: Phase::Queued.name() });
        self.take_start(id);
        if let Some(from) = from
            && self.state.jobs.get(&from).is_some_and(|from| !from.phase.name().is_final())
        {
            self.state.awaited.entry(from).or_default().insert(id);
        }
        self.open_tasks(id);
        self.finish_if_done(id);
    }

    fn worker_registered(&mut self, worker: WorkerId, registered: Worker) {
        self.state.workers.retain(|_, known| known.name != registered.name);
        self.state.workers.insert(worker, registered);
        self.state.last_worker = worker.0;
    }

    fn job_resumed(&mut self, id: JobId, pause_epoch: u32) {
        self.job(id).pause_epoch = pause_epoch;
        self.note(
            id,
            match pause_epoch {
                0 => "goes on to its end".into(),
                epoch => format!("goes on to epoch {epoch}"),
            },
        );
        self.open_tasks(id);
    }

    fn lease_granted(&mut self, lease: LeaseId, granted: Lease) {
        let Lease { worker, job, task, .. } = granted;
        self.state.last_lease = lease.0;
        self.state.leases.insert(lease, granted);
        let holder = self.state.workers.get_mut(&worker).expect("a lease goes to a registered worker");
        (holder.lease, holder.last, holder.revoked) = (Some(lease), Some((lease, job, task)), None);
        if self.job(job).phase == Phase::Queued {
            self.job(job).phase = Phase::Running;
            self.tell(job, Story::State { state: Phase::Running.name() });
        }
        let leased = &mut self.job(job).tasks[task.0 as usize];
        leased.attempts += 1;
        let gang = match &leased.state {
            TaskState::Leased(gang) => {
                Gang { holders: gang.holders.iter().copied().chain([lease]).collect(), ..gang.clone() }
            }
            _ => {
                leased.accepted = Accepted::default();
                leased.unfit.clear();
                Gang::of(lease)
            }
        };
        self.move_task(job, task, TaskState::Leased(gang));
        // Others may join, and of an all-or-nothing gang the others do not know yet.
        if self.job(job).spec.workers > 1 {
            self.effects.push(Effect::WorkIsReady);
        }
    }

    fn seated(&mut self, lease: LeaseId) {
        let Lease { job, task, .. } = self.state.leases[&lease];
        let seated = &mut self.job(job).tasks[task.0 as usize];
        let TaskState::Leased(gang) = &mut seated.state else { unreachable!("a live lease's task is leased") };
        gang.seats.push(lease);
        seated.generation += 1;
        let (seats, generation) = (gang.seats.len(), seated.generation);
        self.tell_seats(job, task, seats, generation);
    }

    fn tell_seats(&mut self, job: JobId, task: TaskIndex, seats: usize, generation: u32) {
        if self.job(job).spec.workers > 1 {
            let what = self.job(job).what(task);
            self.note(job, format!("{what}: a gang of {seats}, generation {generation}"));
        }
    }

    fn lease_recalled(&mut self, lease: LeaseId, wanted_by: JobId) {
        let worker = self.holder_of(lease);
        let recalled = self.state.leases.get_mut(&lease).expect("only a live lease is recalled");
        recalled.recalled = Some(Recall::For(wanted_by));
        let Lease { job, task, .. } = *recalled;
        let what = self.job(job).what(task);
        self.note(job, format!("{what}: worker {worker} is wanted by {wanted_by} and leaves after this update"));
    }

    fn lease_lost(&mut self, lease: LeaseId, how: Loss) {
        let worker = self.holder_of(lease);
        let (Lease { job, task, .. }, others) = self.drop_lease(lease);
        let message = match how {
            Loss::Expired => format!("worker {worker} was not heard of in time"),
            Loss::NameTaken => format!("worker {worker} started anew"),
            Loss::AskedForWork => format!("worker {worker} dropped it and asked for other work"),
        };
        if others {
            let what = self.job(job).what(task);
            return self.note(job, format!("{what}: {message}; the others go on"));
        }
        self.fail_task(job, task, FailureClass::LostWorker, &message);
    }

    fn reported(&mut self, lease: LeaseId, base: Option<&Digest>, report: &Report) {
        let Lease { job, task, worker: from, .. } = self.state.leases[&lease];
        let worker = self.holder_of(lease);
        let others = match report {
            Report::Released { .. } => self.drop_lease(lease).1,
            Report::Failed { .. } if self.goes_on_without(lease) => self.drop_lease(lease).1,
            report if report.closes() => {
                self.dismiss(job, task);
                false
            }
            _ => false,
        };
        if self.job(job).base.is_none() {
            self.job(job).base = base.cloned();
        }
        let accepted = &mut self.job(job).tasks[task.0 as usize].accepted;
        accepted.insert(lease, &report.digest(), report.closes());
        match report {
            Report::Checkpoint(checkpoint) => self.checkpoint_kept(job, task, checkpoint),
            Report::EpochTrained { epoch, adapter } => self.epoch_trained(job, task, *epoch, adapter),
            Report::Trained(trained) => self.task_done(job, task, TaskState::Trained(Arc::new(trained.clone()))),
            Report::Evaluated(evaluated) => {
                let mut evaluated = evaluated.clone();
                evaluated.paper.share(&evaluated.strict);
                self.task_done(job, task, TaskState::Evaluated(Arc::new(evaluated)));
            }
            Report::Embedded(embedded) => {
                self.task_done(job, task, TaskState::Embedded(Arc::new(embedded.clone())));
            }
            Report::Failed { class, message } if others => {
                self.job(job).tasks[task.0 as usize].unfit.insert(from);
                let (what, why) = (self.job(job).what(task), class.as_str());
                self.note(job, format!("{what}: {why}: worker {worker}: {message}; the others go on"));
            }
            Report::Failed { class, message } => {
                self.fail_task(job, task, *class, &format!("worker {worker}: {message}"))
            }
            Report::Released { reason } => {
                let what = self.job(job).what(task);
                self.note(job, format!("{what}: worker {worker} gave it back: {reason}"));
                if !others {
                    self.put_back(job, task);
                }
            }
        }
    }

    /// Whether others train without this holder, and are enough: it has not got the base into memory, or whatever else it
    /// needs before it has a seat, which says nothing of what those compute who have one.
    fn goes_on_without(&self, lease: LeaseId) -> bool {
        let Lease { job, task, .. } = self.state.leases[&lease];
        let job = &self.state.jobs[&job];
        let task = job.task(task);
        let TaskState::Leased(gang) = &task.state else { return false };
        let seated = gang.seats.contains(&lease);
        !seated && !gang.seats.is_empty() && gang.holders.len() > job.min_workers(task.kind)
    }

    fn task_done(&mut self, job: JobId, task: TaskIndex, result: TaskState) {
        self.move_task(job, task, result);
        self.score_epochs(job);
        self.open_tasks(job);
        self.finish_if_done(job);
    }

    /// Makes ready every waiting task whose inputs exist.
    fn open_tasks(&mut self, id: JobId) {
        let job = self.job(id);
        let waiting = job.tasks.iter().zip(0..).filter(|(task, _)| task.state == TaskState::Waiting);
        let open: Vec<_> = waiting.filter(|(task, _)| job.can_start(task.kind)).map(|(_, index)| index).collect();
        for index in open {
            self.move_task(id, TaskIndex(index), TaskState::Ready);
        }
    }

    /// Gives a job the adapter of the one it starts from, where that has succeeded.
    fn take_start(&mut self, id: JobId) {
        let Some(from) = self.job(id).spec.starts_from() else { return };
        let Some(from) = self.state.jobs.get(&from).cloned() else { return };
        if from.phase.name() == PhaseName::Succeeded {
            let adapter = from.adapter_of(TaskKind::Trained { shard: 0 }).cloned().unwrap_or_default();
            let job = self.job(id);
            (job.start, job.base) = (adapter, from.base.clone());
        }
    }

    /// Tells the jobs that wait for one that has ended: they go on with its adapter, or fail with it.
    fn tell_dependants(&mut self, ended: JobId) {
        let succeeded = self.job(ended).phase.name() == PhaseName::Succeeded;
        for id in self.state.awaited.remove(&ended).unwrap_or_default() {
            if self.job(id).phase.name().is_final() {
                continue;
            }
            if succeeded {
                self.take_start(id);
                self.open_tasks(id);
            } else {
                let message = format!("{ended}, whose adapter it starts from, did not succeed");
                self.end(id, Phase::Failed { at_ms: self.at_ms, message });
            }
            self.job(id).revision += 1;
        }
    }

    fn finish_if_done(&mut self, job: JobId) {
        if self.job(job).tasks.iter().all(|task| task.state.is_done()) {
            self.end(job, Phase::Succeeded { at_ms: self.at_ms });
        }
    }

    /// Puts the task back, or fails the job where its budget for this class is used up.
    fn fail_task(&mut self, job: JobId, task: TaskIndex, class: FailureClass, message: &str) {
        let what = self.job(job).what(task);
        let failures = self.job(job).tasks[task.0 as usize].failures.entry(class).or_default();
        *failures += 1;
        let (failures, retries) = (*failures, class.retries());
        let why = class.as_str();
        if failures > retries {
            self.move_task(job, task, TaskState::Failed);
            let tried = if failures > 1 { format!(" ({failures} times)") } else { String::new() };
            self.end(job, Phase::Failed { at_ms: self.at_ms, message: format!("{what}: {why}{tried}: {message}") });
        } else {
            self.note(job, format!("{what}: {why}: {message}; trying again ({failures} of {retries})"));
            self.put_back(job, task);
        }
    }

    /// A task that nobody computes any more and that has no result: it is ready again, unless it pauses.
    fn put_back(&mut self, job: JobId, task: TaskIndex) {
        let found = self.job(job);
        if found.can_start(found.task(task).kind) {
            self.move_task(job, task, TaskState::Ready);
        } else {
            let epoch = found.pause_epoch;
            self.move_task(job, task, TaskState::Waiting);
            self.note(job, format!("pauses after epoch {epoch}"));
        }
    }

    /// Takes a task's leases back: whoever still computes it is told to leave off. Its state is then the caller's to set.
    fn dismiss(&mut self, job: JobId, task: TaskIndex) {
        let TaskState::Leased(gang) = &mut self.job(job).tasks[task.0 as usize].state else { return };
        for lease in std::mem::take(gang).holders {
            let (Lease { worker, .. }, _) = self.drop_lease(lease);
            self.state.workers.get_mut(&worker).expect("a lease's holder is registered").revoked = Some(lease);
        }
    }

    /// Ends a job: its leases are taken back and its workers told to leave off; the last story is the job's state.
    fn end(&mut self, id: JobId, phase: Phase) {
        for index in 0..u32::try_from(self.job(id).tasks.len()).expect("a job has fewer than 2^32 tasks") {
            self.dismiss(id, TaskIndex(index));
            if matches!(self.job(id).task(TaskIndex(index)).state, TaskState::Ready | TaskState::Leased(_)) {
                self.move_task(id, TaskIndex(index), TaskState::Waiting);
            }
        }
        self.job(id).phase = phase;
        let state = self.job(id).phase.name();
        self.tell(id, Story::State { state });
        self.tell_dependants(id);
    }

    fn holder_of(&self, lease: LeaseId) -> String {
        self.state.workers[&self.state.leases[&lease].worker].name.clone()
    }

    /// Ends a lease; whether others hold its task still.
    fn drop_lease(&mut self, lease: LeaseId) -> (Lease, bool) {
        let dropped = self.state.leases.remove(&lease).expect("only a live lease ends");
        let holder = self.state.workers.get_mut(&dropped.worker).expect("a lease's holder is registered");
        holder.lease = None;
        self.state.tokens.lease_ended(lease);
        let others = self.leave_gang(lease, dropped);
        (dropped, others)
    }

    /// Takes a holder out of its task's gang; whether others are left. Where they are too few, they are to leave as well.
    fn leave_gang(&mut self, lease: LeaseId, Lease { job, task, .. }: Lease) -> bool {
        let left = &mut self.job(job).tasks[task.0 as usize];
        let kind = left.kind;
        let TaskState::Leased(gang) = &mut left.state else { unreachable!("a live lease's task is leased") };
        let seated = gang.leave(lease);
        let (others, seats) = (gang.holders.clone(), gang.seats.len());
        if seated {
            left.generation += 1;
        }
        let generation = left.generation;
        if others.is_empty() {
            return false;
        }
        if seated {
            self.tell_seats(job, task, seats, generation);
        }
        if others.len() < self.job(job).min_workers(kind) {
            for lease in others {
                let lease = self.state.leases.get_mut(&lease).expect("a holder's lease is live");
                lease.recalled = lease.recalled.or(Some(Recall::TooFew));
            }
        }
        true
    }

    /// The only place that changes a task's state, so that the ready list is always the ready tasks.
    fn move_task(&mut self, job: JobId, index: TaskIndex, state: TaskState) {
        let worker = match &state {
            TaskState::Leased(gang) => {
                gang.holders.iter().map(|&lease| self.holder_of(lease)).collect::<Vec<_>>().join(", ")
            }
            _ => String::new(),
        };
        let of = &self.state.jobs[&job];
        match state {
            TaskState::Ready => {
                self.state.ready.insert(of, index);
                self.effects.push(Effect::WorkIsReady);
            }
            _ => self.state.ready.remove(of, index),
        }
        let trains = matches!(of.task(index).kind, TaskKind::Train { .. });
        match state {
            TaskState::Leased(_) if trains => drop(self.state.training.insert((job, index))),
            _ => drop(self.state.training.remove(&(job, index))),
        }
        let what = self.job(job).what(index);
        self.tell(job, Story::Task { index, what, state: state.as_str().into(), worker });
        self.job(job).tasks[index.0 as usize].state = state;
    }
}
