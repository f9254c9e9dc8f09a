//! The updates of a training, in whatever gang the coordinator says.
//!
//! ```text
//! seated -> gang -> all at one update -> update, update, ... -> over
//!             ^                             |
//!             '---- a newer generation, or a member lost ----'
//! ```
//!
//! Every member computes its slots and steps alike; rank 0 alone reports. What is not yet reported when rank 0 is lost,
//! the next one reports: every member knows up to which update everything was ([`Standing::settled`]).

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use insula_kernels::Cuda;
use insula_proto::ids::Digest;

use super::{
    failure::Unfinished,
    link::Halt,
    sync::{Mesh, Seats, Standing, Unreachable, form},
};
use crate::{
    engine::Compute,
    ledger::{self, Line, Slot},
    sync::{Announcement, Exchange, Gang, Part, Solo, SyncError, frame::FrameError, share_out},
    train::{Advanced, Training, Update},
};

/// A member without a gang looks so often whether there is one.
const LOOK: Duration = Duration::from_millis(200);
/// A worker that gave its lease back because it does not reach another asks for no new one for so long: the gang is to
/// go on without it first.
const APART: Duration = Duration::from_secs(10);

/// Where a training is computed, and where it is reported to.
pub trait Desk {
    /// What computes.
    fn engine(&mut self) -> &mut dyn Compute;

    /// The GPU it computes on, if it is one.
    fn gpu(&self) -> Option<&Cuda> {
        None
    }

    /// An update was computed; `shared` is the part of its time that the exchange took, with the wait for slower members:
    /// a fraction.
    fn tell(&mut self, training: &Training, advanced: &Advanced, shared: f64);

    /// Reports what an epoch left.
    ///
    /// # Errors
    /// When it could not be, or the lease is gone.
    fn epoch(&mut self, training: &Training, epoch: u32) -> Result<(), Unfinished>;

    /// Reports a checkpoint, with the updates since the one before.
    ///
    /// # Errors
    /// As [`Desk::epoch`].
    fn checkpoint(&mut self, training: &Training, lines: &[Line]) -> Result<(), Unfinished>;

    /// Reports the end.
    ///
    /// # Errors
    /// As [`Desk::epoch`].
    fn trained(&mut self, training: &Training) -> Result<(), Unfinished>;

    /// Says something to whoever reads the job's log.
    fn log(&mut self, line: &str);
}

/// A training on its way.
pub struct Course<'a, D> {
    /// The training, before its first update or where a reported checkpoint left it.
    pub training: &'a mut Training,
    /// Where it is computed and reported.
    pub desk: &'a mut D,
    /// What makes this worker a member.
    pub seats: &'a Seats,
    /// Digest of settings, corpus and base: members of a gang must agree on it.
    pub origin: Digest,
    /// The epoch after which it pauses; 0: none.
    pub pause_epoch: u32,
}

/// Computes updates until the training is over or this worker is to leave.
///
/// # Errors
/// What ends the lease without the training's end being reported by this worker.
pub fn run<D: Desk>(course: Course<'_, D>) -> Result<(), Unfinished> {
    let _expected = course.seats.listener.expect(course.seats.lease);
    let update = course.training.progress().update;
    // There may be a checkpoint at an epoch's end whose adapter was never reported: it is said again, which costs little.
    let settled = if course.training.finished_epoch().is_some() { update - 1 } else { update };
    let standing = Standing { settled, checkpointed: update, lines: Vec::new() };
    let mut member = Member { course, standing, unreachable: Unreachable::default(), gpus_failed: false };
    member.course.seats.seating.sit();
    let mut least = 1;
    loop {
        let gang = member.await_gang(least)?;
        least = match member.train_in(&gang) {
            Ok(End::Over) => return Ok(()),
            Ok(End::Left(reason)) => return Err(Unfinished::released(reason)),
            Ok(End::Newer(least)) => least,
            Err(Interrupted::Unfinished(unfinished)) => return Err(unfinished),
            Err(Interrupted::Sync(error)) => member.after(error, &gang)?,
        };
    }
}

/// How a generation ends.
enum End {
    /// Everything is reported.
    Over,
    /// This worker leaves; why.
    Left(String),
    /// A generation from this one on takes its place.
    Newer(u32),
}

/// Why a generation ends early.
enum Interrupted {
    Unfinished(Unfinished),
    Sync(SyncError),
}

impl<E: Into<Unfinished>> From<E> for Interrupted {
    fn from(error: E) -> Self {
        Self::Unfinished(error.into())
    }
}

impl From<SyncError> for Interrupted {
    fn from(error: SyncError) -> Self {
        Self::Sync(error)
    }
}

/// The others, if any.
enum Others {
    None(Solo),
    Some(Box<Mesh>),
}

impl Others {
    fn exchange(&mut self) -> &mut dyn Exchange {
        match self {
            Self::None(solo) => solo,
            Self::Some(mesh) => mesh.as_mut(),
        }
    }
}

struct Member<'a, D> {
    course: Course<'a, D>,
    standing: Standing,
    unreachable: Unreachable,
    /// Whether an exchange between the GPUs has failed: from then on the network does.
    gpus_failed: bool,
}

impl<D: Desk> Member<'_, D> {
    /// The newest gang, of generation `least` at least; waits for it.
    fn await_gang(&mut self, least: u32) -> Result<Gang, Unfinished> {
        loop {
            let seats = self.course.seats;
            if seats.halt.get() == Some(Halt::Abandon) {
                return Err(Unfinished::Abandoned);
            }
            let gang = seats.seating.heard();
            if let Some(reason) = seats.leaving() {
                return Err(self.leave(gang.as_ref(), reason));
            }
            if let Some(gang) = gang.filter(|gang| gang.generation >= least) {
                return Ok(gang);
            }
            seats.seating.ask();
            std::thread::sleep(LOOK);
        }
    }

    /// Leaves between two gangs: with a checkpoint where it is this worker that reports.
    fn leave(&mut self, gang: Option<&Gang>, reason: &str) -> Unfinished {
        // What an epoch left comes before the checkpoint that says it is over.
        if gang.is_some_and(|gang| gang.rank == 0)
            && let Err(unfinished) = self.settle().and_then(|()| self.checkpoint())
        {
            return unfinished;
        }
        Unfinished::released(reason)
    }

    /// What comes after a gang that broke: the least generation to go on with.
    fn after(&mut self, error: SyncError, gang: &Gang) -> Result<u32, Unfinished> {
        let seats = self.course.seats;
        match error {
            SyncError::Abandoned => return Err(Unfinished::Abandoned),
            SyncError::Leaving => return Ok(gang.generation), // whoever awaits a gang is asked first
            SyncError::Disagrees { .. } => return Err(Unfinished::bug(error)),
            SyncError::Superseded { newer } => return Ok(newer),
            SyncError::Gone { newer, .. } => {
                self.course.desk.log(&error.to_string());
                return Ok(newer);
            }
            SyncError::Gpu { .. } => {
                self.course.desk.log(&format!("{error}: from here on, what is long goes over the network too"));
                self.gpus_failed = true;
            }
            SyncError::Broken { .. }
            | SyncError::Frame { .. }
            | SyncError::Refused { .. }
            | SyncError::Deadline { .. } => tracing::debug!("generation {}: {error}", gang.generation),
        }
        if let Some(peer) = self.unreachable.for_good(gang, seats) {
            let reason = format!("{peer} at {} is not reached: {error}", gang.seats[peer.rank].address);
            return Err(Unfinished::Released { reason, pause: APART });
        }
        // The coordinator may know more; the others may be on their way to the same generation once more.
        seats.seating.ask();
        std::thread::sleep(LOOK);
        Ok(gang.generation)
    }

    /// Updates in one generation, from the forming of its gang to its end.
    fn train_in(&mut self, gang: &Gang) -> Result<End, Interrupted> {
        let mut others = self.join(gang)?;
        loop {
            if self.course.seats.halt.get() == Some(Halt::Abandon) {
                return Err(Unfinished::Abandoned.into());
            }
            if gang.rank == 0 {
                self.settle()?;
            }
            if self.course.training.finished() || self.paused() {
                return self.end(&mut others, gang);
            }
            if let Others::None(_) = others
                && let Some(end) = self.alone(gang)?
            {
                return Ok(end);
            }
            let announced = self.update(&mut others, gang)?;
            if let Some(end) = self.heed(gang, &announced)? {
                return Ok(end);
            }
        }
    }

    /// Connects with the others and comes to their update.
    fn join(&mut self, gang: &Gang) -> Result<Others, Interrupted> {
        if gang.world() == 1 {
            return Ok(Others::None(Solo));
        }
        let Course { training, desk, seats, origin, .. } = &mut self.course;
        let mut mesh = form(gang, seats, &mut self.unreachable)?;
        let was_behind = mesh.level(training, &mut self.standing, origin)?;
        let by_gpus = mesh.join_gpus(desk.gpu().filter(|_| !self.gpus_failed))?;
        let (rank, world, update) = (gang.rank, gang.world(), training.progress().update);
        let got = if was_behind { ", whose state came from another member" } else { "" };
        let generation = gang.generation;
        let by = if by_gpus { ", by NCCL" } else { "" };
        desk.log(&format!("generation {generation}: rank {rank} of {world}{by}, after update {update}{got}"));
        Ok(Others::Some(Box::new(mesh)))
    }

    /// Reports what the last update calls for, once.
    fn settle(&mut self) -> Result<(), Unfinished> {
        let Course { training, desk, .. } = &mut self.course;
        let update = training.progress().update;
        if self.standing.settled >= update {
            return Ok(());
        }
        if let Some(epoch) = training.finished_epoch() {
            desk.epoch(training, epoch)?;
        }
        if training.checkpoint_due() {
            self.checkpoint()?;
        }
        self.standing.settled = update;
        Ok(())
    }

    /// A checkpoint, unless there is one of this update.
    fn checkpoint(&mut self) -> Result<(), Unfinished> {
        let Course { training, desk, .. } = &mut self.course;
        let update = training.progress().update;
        if self.standing.checkpointed < update {
            desk.checkpoint(training, &self.standing.lines)?;
            self.standing.checkpointed(update);
        }
        Ok(())
    }

    fn paused(&self) -> bool {
        self.course.pause_epoch > 0 && self.course.training.finished_epoch() == Some(self.course.pause_epoch)
    }

    /// A gang of one need not announce anything.
    fn alone(&mut self, gang: &Gang) -> Result<Option<End>, Unfinished> {
        if let Some(reason) = self.course.seats.leaving() {
            self.checkpoint()?;
            return Ok(Some(End::Left(reason.into())));
        }
        let newer = self.course.seats.seating.generation();
        Ok((newer > gang.generation).then_some(End::Newer(newer)))
    }

    /// Computes this rank's slots, exchanges, steps. What each rank announced comes back.
    #[expect(clippy::disallowed_methods, reason = "the shell measures how long an update takes")]
    fn update(&mut self, others: &mut Others, gang: &Gang) -> Result<Vec<Announcement>, Interrupted> {
        let Course { training, desk, seats, .. } = &mut self.course;
        let began = Instant::now();
        let update = training.plan_update();
        let runs = match gang.world() {
            1 => std::iter::once(0..update.slots.len()).collect(),
            world => share_out(&update.costs(), world),
        };
        let (nodes, facts) = training.compute(desk.engine(), &update, runs[gang.rank].clone())?;
        let announced = Announcement {
            generation: seats.seating.generation(),
            leaving: seats.leaving().is_some(),
            checkpointed: self.standing.checkpointed,
        };
        let len = training.trained().params().len();
        let fast = !training.sums_exactly();
        let part = Part { update: update.number, len, runs: runs.clone(), nodes, facts, announced, fast };
        let computed = began.elapsed();
        let exchanged = others.exchange().exchange(part);
        let exchange = began.elapsed() - computed;
        if let Err(error) = &exchanged {
            desk.log(&format!("generation {} ends in update {}: {error}", gang.generation, update.number));
        }
        let whole = exchanged?;
        let advanced = training.step(&update, &whole.gradient, &whole.facts)?;
        let seconds = began.elapsed().as_secs_f64();
        training.spent(seconds);
        self.standing.lines.push(line(&update, &runs, gang));
        // Rank 0 settles an update before it computes the next.
        self.standing.settled = self.standing.settled.max(update.number - 1);
        self.standing.checkpointed(whole.announced[0].checkpointed);
        if gang.rank == 0 {
            desk.tell(training, &advanced, exchange.as_secs_f64() / seconds.max(f64::MIN_POSITIVE));
        }
        Ok(whole.announced)
    }

    /// What follows from what the members announced.
    fn heed(&mut self, gang: &Gang, announced: &[Announcement]) -> Result<Option<End>, Unfinished> {
        let newest = announced.iter().map(|told| told.generation).max().unwrap_or(0);
        let somebody_leaves = announced.iter().any(|told| told.leaving);
        if gang.world() > 1 && announced[gang.rank].leaving {
            if gang.rank == 0 {
                self.settle()?;
                self.checkpoint()?;
            }
            let reason = self.course.seats.leaving().unwrap_or("the worker was to leave");
            return Ok(Some(End::Left(reason.into())));
        }
        if gang.world() > 1 && somebody_leaves {
            if gang.rank == 0 && newest <= gang.generation {
                self.settle()?;
            }
            return Ok(Some(End::Newer(newest.max(gang.generation + 1))));
        }
        Ok((newest > gang.generation).then_some(End::Newer(newest)))
    }

    /// The end of the training, or of its part before a pause.
    fn end(&mut self, others: &mut Others, gang: &Gang) -> Result<End, Interrupted> {
        let Course { training, desk, pause_epoch, .. } = &mut self.course;
        let finished = training.finished();
        let paused = || format!("paused after epoch {pause_epoch}");
        let update = training.progress().update;
        if gang.rank > 0 {
            if let Others::Some(mesh) = others
                && let Err(error) = mesh.done(update)
                && (finished || !is_something_else(&error))
            {
                return Err(error.into());
            }
            return Ok(End::Left(if finished { "the training ended".into() } else { paused() }));
        }
        if finished {
            desk.trained(training)?;
        }
        if let Others::Some(mesh) = others
            && let Err(error) = mesh.done(update)
        {
            tracing::debug!("not everybody knows of the end: {error}");
        }
        Ok(if finished { End::Over } else { End::Left(paused()) })
    }
}

/// Whether rank 0 sent something else than that all is reported. At a pause it has gone on: its lease is of after the pause
/// was moved. Who comes back for more at the same update meets it there for ever.
fn is_something_else(error: &SyncError) -> bool {
    matches!(error, SyncError::Frame { problem: FrameError::Unexpected { .. }, .. })
}

/// The ledger's line of an update that a gang computed.
fn line(update: &Update, runs: &[Range<usize>], gang: &Gang) -> Line {
    let mut slots = Vec::with_capacity(update.slots.len());
    for (run, seat) in runs.iter().zip(&gang.seats) {
        slots.extend(update.slots[run.clone()].iter().map(|slot| Slot {
            samples: [update.first + slot.start as u64, update.first + slot.end as u64],
            digest: ledger::digest(&update.samples[slot.clone()]),
            lease: seat.lease,
            worker: seat.worker.clone(),
        }));
    }
    Line { update: update.number, pass: update.pass, slots }
}
