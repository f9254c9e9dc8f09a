//! The one task that owns the state: takes requests one at a time, writes what came of them, then answers.
//!
//! Requests that wait while a write is under way are taken in together and share the next write's sync; each is still
//! judged alone, in order, against the state the ones before it left. An answer goes out only after its events are on
//! disk. If a write fails, the state is ahead of the disk, so the owner ends and the process with it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use insula_proto::ids::JobId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    board::Board,
    clock::Clock,
    store::{Entry, Store, StoreError},
};
use crate::schedule::{Answer, Core, Effect, Refusal, Request, Turn};

/// Requests that may wait. More workers than this in one second do not exist; beyond it callers wait in their own call.
const QUEUE: usize = 1024;

/// Requests written together at most: bounds how long the first of them waits for the rest.
const BATCH: usize = 256;

/// How often leases are looked through; a loss is noticed this much after its deadline at most.
const TICK: Duration = Duration::from_millis(250);

/// How often jobs are looked for whose stories can be compacted.
const COMPACT: Duration = Duration::from_secs(3600);

/// Jobs compacted between two batches of requests: some ten milliseconds.
const COMPACTED_AT_ONCE: usize = 50;

/// How long a caller waits for its answer: far above a write's time, so that it means a stuck disk.
const ANSWER: Duration = Duration::from_secs(30);

struct Ask {
    request: Request,
    reply: Reply,
}

/// Where an answer goes.
type Reply = oneshot::Sender<Result<Answer, Refusal>>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The request was refused and changed nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The owner has ended, or its disk is stuck.
    #[error("the coordinator is stopping or its disk does not answer: try again")]
    Gone,
}

/// Speaks to the owner; cheap to clone.
#[derive(Debug, Clone)]
pub struct OwnerHandle {
    asks: mpsc::Sender<Ask>,
    board: Arc<Board>,
    committed: watch::Receiver<u64>,
    ready: watch::Receiver<u64>,
}

impl OwnerHandle {
    /// Asks and waits for the answer, which is on disk when it comes.
    ///
    /// # Errors
    /// A refusal, or that there is nobody to answer.
    pub async fn ask(&self, request: Request) -> Result<Answer, AskError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.asks.send(Ask { request, reply }).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(ANSWER, asked).await {
            Ok(Some(answer)) => Ok(answer?),
            Ok(None) | Err(_) => Err(AskError::Gone),
        }
    }

    /// What was last committed.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Changes with every commit.
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.committed.clone()
    }

    /// Changes whenever a task becomes ready.
    pub fn ready(&self) -> watch::Receiver<u64> {
        self.ready.clone()
    }
}

/// The owner before it runs.
pub struct Owner {
    core: Core,
    store: Store,
    clock: Clock,
    asks: mpsc::Receiver<Ask>,
    board: Arc<Board>,
    committed: watch::Sender<u64>,
    ready: watch::Sender<u64>,
    ticked_ms: u64,
    compaction: Compaction,
}

/// What is to be compacted, and when that is looked for again.
struct Compaction {
    /// Stories are kept whole for so long after a job's end.
    kept_ms: u64,
    done: BTreeSet<JobId>,
    due: Vec<JobId>,
    looked_ms: Option<u64>,
}

impl Compaction {
    /// Looks for jobs that are due, once an hour; and the first of them.
    fn next(&mut self, core: &Core, now_ms: u64) -> Vec<JobId> {
        if self.looked_ms.is_none_or(|looked| now_ms >= looked + COMPACT.as_millis() as u64) {
            self.looked_ms = Some(now_ms);
            let long_ago = |ended: u64| ended.saturating_add(self.kept_ms) <= now_ms;
            let jobs = core.state.jobs.values().filter(|job| job.phase.finished_ms().is_some_and(long_ago));
            self.due = jobs.map(|job| job.id).filter(|job| !self.done.contains(job)).collect();
        }
        let some = self.due.split_off(self.due.len().saturating_sub(COMPACTED_AT_ONCE));
        self.done.extend(&some);
        some
    }
}

/// What a batch came to, to be told once it is on disk.
#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    answers: Vec<(Reply, Result<Answer, Refusal>)>,
    work_is_ready: bool,
}

/// An owner of this state, and the handle to it. Stories of jobs that ended more than `kept_ms` ago are compacted; those
/// of the jobs in `compacted` were.
pub fn owner(core: Core, store: Store, clock: Clock, kept_ms: u64, compacted: BTreeSet<JobId>) -> (Owner, OwnerHandle) {
    let (asks_in, asks) = mpsc::channel(QUEUE);
    let (committed, committed_out) = watch::channel(0);
    let (ready, ready_out) = watch::channel(0);
    let board = Arc::new(Board::of(&core));
    let handle = OwnerHandle { asks: asks_in, board: board.clone(), committed: committed_out, ready: ready_out };
    let compaction = Compaction { kept_ms, done: compacted, due: vec![], looked_ms: None };
    (Owner { core, store, clock, asks, board, committed, ready, ticked_ms: 0, compaction }, handle)
}

impl Owner {
    /// Runs until `stop`, then answers what still waits.
    ///
    /// # Errors
    /// When the journal cannot be written any more.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StoreError> {
        loop {
            let first = tokio::select! {
                biased;
                () = stop.cancelled(), if !self.asks.is_closed() => {
                    self.asks.close();
                    continue;
                }
                first = tokio::time::timeout(TICK, self.asks.recv()) => first,
            };
            match first {
                Ok(None) => return Ok(()),
                Ok(Some(ask)) => self.turn(Some(ask)).await?,
                Err(_) => self.turn(None).await?,
            }
        }
    }

    /// Takes in what waits, writes it, answers.
    async fn turn(&mut self, first: Option<Ask>) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        let mut next = first;
        while let Some(ask) = next {
            let answer = self.take_in(&ask.request, &mut batch);
            batch.answers.push((ask.reply, answer));
            next = if batch.answers.len() < BATCH { self.asks.try_recv().ok() } else { None };
        }
        let now_ms = self.clock.now_ms();
        let ticks = now_ms >= self.ticked_ms + TICK.as_millis() as u64;
        if ticks {
            self.ticked_ms = now_ms;
            self.take_in(&Request::Tick, &mut batch).expect("the passing of time cannot be refused");
        }
        self.settle(batch).await?;
        let due = if ticks { self.compaction.next(&self.core, now_ms) } else { vec![] };
        if !due.is_empty() {
            self.store.compact(&due).await?;
        }
        Ok(())
    }

    fn take_in(&mut self, request: &Request, batch: &mut Batch) -> Result<Answer, Refusal> {
        let at_ms = self.clock.now_ms();
        let Turn { events, effects, answer } = self.core.handle(at_ms, request)?;
        let start = batch.entries.len();
        batch.entries.extend(events.into_iter().map(|event| Entry { at_ms, event, stories: Vec::new() }));
        for (place, effect) in effects {
            match effect {
                Effect::Tell(job, story) => batch.entries[start + place].stories.push((job, story)),
                Effect::WorkIsReady => batch.work_is_ready = true,
            }
        }
        Ok(answer)
    }

    async fn settle(&mut self, batch: Batch) -> Result<(), StoreError> {
        if !batch.entries.is_empty() {
            self.store.append(&batch.entries).await?;
        }
        // A job that waited for another changes with that one's event: it is known by what is told about it.
        let told =
            |entry: &Entry| entry.stories.iter().map(|(job, _)| *job).chain(entry.event.job()).collect::<Vec<_>>();
        let changed: BTreeSet<_> = batch.entries.iter().flat_map(told).collect();
        self.board.post(&self.core, changed.into_iter());
        if !batch.entries.is_empty() {
            self.committed.send_modify(|commits| *commits += 1);
        }
        if batch.work_is_ready {
            self.ready.send_modify(|times| *times += 1);
        }
        for (reply, answer) in batch.answers {
            // A caller that gave up waiting has no use for its answer.
            let _ = reply.send(answer);
        }
        Ok(())
    }
}
