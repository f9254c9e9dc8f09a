//! A worker process of the simulated world: what it knows, what it asks, what it makes of the answers.

use std::collections::VecDeque;

use insula_proto::{
    VERSION,
    ids::{Digest, LeaseId, WorkerId},
};

use super::{
    super::{
        Answer, Grant, Refusal, Request, Seating,
        event::{Checkpoint, LedgerSegment, Report},
        fixture::*,
        task::TaskKind,
    },
    UPDATES,
};

/// A task in hand.
#[derive(Debug, Clone)]
pub(super) struct Hold {
    pub(super) lease: LeaseId,
    kind: TaskKind,
    pub(super) training: InHand,
}

/// A training as a member of its gang knows it.
#[derive(Debug, Clone, Default)]
pub(super) struct InHand {
    /// Finished updates.
    pub(super) update: u32,
    /// Whose lines of the ledger it does not have: updates up to this one.
    pub(super) history_from: u32,
    /// The gang it computes with, once it has met the others.
    pub(super) gang: Option<Seating>,
    /// The gang it was told of since.
    pub(super) next: Option<Seating>,
    /// Asked to leave.
    pub(super) recalled: bool,
    /// What it has to report before it goes on.
    pub(super) due: VecDeque<Report>,
    /// Where the stage pauses; 0: nowhere.
    pub(super) pause_epoch: u32,
    /// Updates of the stage.
    pub(super) updates: u32,
}

/// What a worker process knows.
#[derive(Debug, Clone)]
pub(super) struct Process {
    name: usize,
    id: Option<WorkerId>,
    pub(super) holds: Option<Hold>,
    heard: LeaseId,
    waits_until: u64,
    /// Grows with every message, so that an answer to an old one is known.
    asked: u64,
    /// The request that waits for its answer.
    pending: Option<Request>,
}

impl Process {
    pub(super) fn new(name: usize) -> Self {
        let (id, holds, heard, pending) = (None, None, LeaseId(0), None);
        Self { name, id, holds, heard, waits_until: 0, asked: 0, pending }
    }

    /// A new process under the old name.
    pub(super) fn die(&mut self) {
        *self = Self { asked: self.asked + 1000, ..Self::new(self.name) };
    }

    pub(super) fn waits(&self, now_ms: u64) -> bool {
        self.pending.is_some() && now_ms < self.waits_until
    }

    pub(super) fn pending(&self) -> Option<Request> {
        self.pending.clone()
    }

    /// Sends a request; its number.
    pub(super) fn asks(&mut self, request: Request, now_ms: u64) -> u64 {
        self.pending = Some(request);
        self.waits_until = now_ms + 1000;
        self.asked += 1;
        self.asked
    }

    pub(super) fn hear(&mut self, number: u64, answer: Result<Answer, Refusal>) {
        if self.asked != number || self.pending.is_none() {
            return;
        }
        let request = self.pending.take().expect("a pending request was just seen");
        match (answer, request) {
            (Err(Refusal::UnknownWorker(_)), _) => (self.id, self.holds) = (None, None),
            (Err(Refusal::StaleLease { .. }), _) | (Ok(Answer::Beat { stop: true, .. }), _) => self.holds = None,
            (Err(refusal), request) => panic!("{request:?} was refused: {refusal}"),
            (Ok(Answer::Beat { recalled, gang, .. }), _) => self.beaten(recalled, gang),
            (Ok(Answer::Registered(id)), _) => self.id = Some(id),
            (Ok(Answer::Leased(Some(grant))), _) => self.begin(&grant),
            (Ok(_), Request::Report { report, .. }) if report.closes() => self.holds = None,
            (Ok(_), Request::Report { report, .. }) => self.reported(&report),
            (Ok(_), _) => {}
        }
    }

    fn beaten(&mut self, recalled: bool, gang: Option<Seating>) {
        if let Some(hold) = &mut self.holds {
            hold.training.recalled |= recalled;
            // An old heartbeat's answer may come late.
            let known = [&hold.training.next, &hold.training.gang].into_iter().flatten().map(|g| g.generation).max();
            if let Some(gang) = gang.filter(|gang| known.is_none_or(|known| gang.generation > known)) {
                hold.training.next = Some(gang);
            }
        }
    }

    fn begin(&mut self, grant: &Grant) {
        let kind = grant.job.task(grant.task).kind;
        let mut training = InHand::default();
        if let TaskKind::Train { stage } = kind {
            training.update = grant.job.stages[stage].checkpoints.first().map_or(0, |c| c.update);
            training.history_from = training.update;
            training.pause_epoch = grant.job.pause_of(stage);
            training.updates = UPDATES * grant.job.stage_specs()[stage].train.epochs;
        }
        self.heard = grant.lease;
        self.holds = Some(Hold { lease: grant.lease, kind, training });
    }

    fn reported(&mut self, report: &Report) {
        let Some(hold) = &mut self.holds else { return };
        hold.training.due.pop_front();
        if let Report::Checkpoint(checkpoint) = report {
            hold.training.history_from = checkpoint.update;
        }
    }

    pub(super) fn next_request(&mut self, chance: u32) -> Request {
        let Some(worker) = self.id else {
            let (name, version, device) = (format!("w{}", self.name), VERSION.into(), "cpu".into());
            return Request::Register { name, version, device, threads: 1, address: String::new() };
        };
        let Some(hold) = &self.holds else { return asking(worker, self.heard) };
        let (lease, training) = (hold.lease, &hold.training);
        let trains = matches!(hold.kind, TaskKind::Train { .. });
        let known = training.next.as_ref().or(training.gang.as_ref()).map_or(0, |gang| gang.generation);
        let beat = Request::Heartbeat { worker, lease, progress: None, seated: trains, generation: known };
        if chance < 40 {
            return beat;
        }
        let report = match hold.kind {
            _ if chance < 43 => Report::Released { reason: "a whim".into() },
            TaskKind::Train { .. } => match training.report() {
                Some(report) => report,
                None => return beat,
            },
            TaskKind::Dev { epoch, shard } => Report::Evaluated(evaluated((epoch as u16 + shard as u16) % 5)),
            TaskKind::Embed { .. } => embedded(),
            TaskKind::ZeroShot { .. }
            | TaskKind::FewShot { .. }
            | TaskKind::Trained { .. }
            | TaskKind::Shuffled { .. } => Report::Evaluated(evaluated(3)),
        };
        Request::Report { worker, lease, base: Some(base()), report: Box::new(report) }
    }
}

impl InHand {
    /// Whether the stage has come to where it pauses.
    pub(super) fn paused(&self) -> bool {
        self.pause_epoch > 0 && self.update >= self.pause_epoch * UPDATES
    }

    /// What a member says now, if anything.
    fn report(&self) -> Option<Report> {
        let leads = self.gang.as_ref()?.rank == 0;
        let (paused, ended) = (self.paused(), self.update == self.updates);
        match self.due.front() {
            Some(due) => Some(due.clone()),
            None if self.recalled || paused => Some(Report::Released { reason: "asked to leave".into() }),
            None if ended && leads => Some(trained()),
            None if ended => Some(Report::Released { reason: "the training ended".into() }),
            None => None,
        }
    }

    /// What the lead has to report after an update: a checkpoint of every one, and at an epoch's end its adapter first.
    /// One that has just become the lead says it again: the lead before may have died with it.
    pub(super) fn owe(&mut self) {
        let leads = self.gang.as_ref().is_some_and(|gang| gang.rank == 0);
        if leads && self.update > self.history_from {
            if self.update.is_multiple_of(UPDATES) {
                self.due.push_back(epoch(self.update / UPDATES));
            }
            let lines = artifact(&format!("ledger {} to {}", self.history_from + 1, self.update));
            let ledger = Some(LedgerSegment { first: self.history_from + 1, last: self.update, lines });
            let manifest = Digest::of(format!("checkpoint {}", self.update).as_bytes());
            self.due.push_back(Report::Checkpoint(Checkpoint { update: self.update, manifest, state: None, ledger }));
        }
    }
}
