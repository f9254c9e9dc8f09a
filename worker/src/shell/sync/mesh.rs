//! Every member connected with every other, and an update's exchange between them.
//!
//! ```text
//! here ->   <- here        both have computed their slots; what each announces
//! part ->   <- part        losses, and the other's piece of every subtree
//!    (finish the sum of one's own piece)
//! finished -> <- finished  that piece, to everybody
//! ```
//!
//! Nothing long is sent before the other is here: it takes in whatever comes from then on, so no connection stands with
//! bytes that nobody takes, which the system would end. A thread for each connection and direction, so that two members
//! that send to each other do not wait for each other.

use std::{
    io::ErrorKind,
    net::TcpStream,
    ops::Range,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use insula_kernels::{KernelError, cuda::nccl::Communicator};

use super::{
    Seats, gpus,
    peer::{Connection, Direction, cut},
    socket::has_ended,
};
use crate::{
    reduce::{Node, TreeSum, subtrees},
    sync::{Announcement, Exchange, Gang, Part, Peer, SlotFacts, SyncError, Whole, frame::Kind, piece},
};

/// How often a wait looks whether to go on.
const LOOK: Duration = Duration::from_millis(100);
/// An exchange is given up after so long. Members that are gone or cut off are noticed within seconds by others; this is
/// for what nobody thought of. Guessed.
const DEADLINE: Duration = Duration::from_secs(4 * 3600);
/// After NCCL has failed, a lost member shows within so long. Guessed.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes of a member's announcement.
pub(super) const HERE_BYTES: usize = 36;
/// Bytes of a slot's facts.
pub(super) const FACTS_BYTES: usize = 16;

/// The members' connections; dropped with the gang.
#[derive(Debug)]
pub struct Mesh {
    pub(super) gang: Gang,
    seats: Seats,
    /// By rank; none with oneself.
    pub(super) connections: Vec<Option<Connection>>,
    /// What is long goes by these, where all members have one.
    pub(super) gpus: Option<Communicator>,
}

impl Mesh {
    pub(super) fn new(gang: Gang, seats: Seats, connections: Vec<Option<Connection>>) -> Self {
        Self { gang, seats, connections, gpus: None }
    }

    /// Rank 0 says that everything is reported; the others wait until it has.
    ///
    /// # Errors
    /// When rank 0 is lost before.
    pub fn done(&mut self, update: u32) -> Result<(), SyncError> {
        let leads = self.gang.rank == 0;
        self.guarded("the training's end", Seats::still_together, |_, connections| {
            if leads {
                connections.iter_mut().flatten().try_for_each(|c| c.outgoing.send(Kind::Done, update, &[]))
            } else {
                let first = connections[0].as_mut().expect("a connection with every other rank");
                first.incoming.receive(Kind::Done, update, 0).map(|_| ())
            }
        })
    }

    /// Does something that waits for other members, and ends their connections where it should be waited no longer.
    pub(super) fn guarded<T>(
        &mut self,
        doing: &'static str,
        look: impl Fn(&Seats, &Gang) -> Result<(), SyncError> + Sync,
        work: impl FnOnce(&Gang, &mut [Option<Connection>]) -> Result<T, SyncError>,
    ) -> Result<T, SyncError> {
        let Self { gang, seats, connections, .. } = self;
        let streams = streams(connections);
        watched(
            doing,
            || look(seats, gang),
            || streams.iter().for_each(|stream| cut(stream)),
            || work(gang, connections),
        )
    }

    /// As [`Mesh::guarded`], for work of the GPUs, which notice nobody's end themselves.
    pub(super) fn guarded_gpus<T>(
        &mut self,
        doing: &'static str,
        look: impl Fn(&Seats, &Gang) -> Result<(), SyncError> + Sync,
        work: impl FnOnce(&Gang, &mut [Option<Connection>], &Communicator) -> Result<T, SyncError>,
    ) -> Result<T, SyncError> {
        let Self { gang, seats, connections, gpus } = self;
        let gpus = gpus.as_ref().expect("asked for only where the GPUs are joined");
        let by_rank: Vec<_> = connections.iter().map(|held| held.as_ref().map(Connection::stream)).collect();
        let together = || {
            look(seats, gang)?;
            let ended = |held: &Option<Arc<TcpStream>>| held.as_ref().is_some_and(|stream| has_ended(stream));
            let lost =
                |rank| SyncError::Broken { peer: gang.peer(rank), doing, problem: ErrorKind::UnexpectedEof.into() };
            by_rank.iter().position(ended).map_or(Ok(()), |rank| Err(lost(rank)))
        };
        let end = || {
            gpus.abort();
            by_rank.iter().flatten().for_each(|stream| cut(stream));
        };
        let done = watched(doing, together, end, || work(gang, connections, gpus));
        match done {
            // NCCL may notice a peer's end before the connection with it shows it.
            Err(error @ SyncError::Gpu { .. }) => Err(soon(together).unwrap_or(error)),
            // GPUs that wait for each other for ever will do so again.
            Err(SyncError::Deadline { doing, seconds }) => {
                let reason = format!("no end for {seconds} s");
                Err(SyncError::Gpu { problem: KernelError::Device { operation: doing, reason } })
            }
            other => other,
        }
    }
}

/// Why not to go on, where that shows within [`GRACE`].
fn soon(look: impl Fn() -> Result<(), SyncError>) -> Option<SyncError> {
    let looks = GRACE.as_millis() / LOOK.as_millis();
    (0..looks).find_map(|_| {
        let verdict = look().err();
        if verdict.is_none() {
            thread::sleep(LOOK);
        }
        verdict
    })
}

/// Does work while another thread looks whether to go on; where not, that one ends it, and its verdict is why.
fn watched<T>(
    doing: &'static str,
    look: impl Fn() -> Result<(), SyncError> + Send,
    end: impl Fn() + Send,
    work: impl FnOnce() -> Result<T, SyncError>,
) -> Result<T, SyncError> {
    let (over, is_over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let watching = scope.spawn(move || watch(doing, &is_over, look, end));
        let result = work();
        drop(over);
        let verdict = watching.join().expect("nothing in the watch panics");
        match (result, verdict) {
            (Ok(done), _) => Ok(done),
            (Err(_), Some(verdict)) => Err(verdict),
            (Err(error), None) => Err(error),
        }
    })
}

fn streams(connections: &[Option<Connection>]) -> Vec<Arc<TcpStream>> {
    connections.iter().flatten().map(Connection::stream).collect()
}

/// Looks whether to go on until the work has ended; says why not.
#[expect(clippy::disallowed_methods, reason = "the shell asks the clock how long it has waited")]
fn watch(
    doing: &'static str,
    is_over: &mpsc::Receiver<()>,
    look: impl Fn() -> Result<(), SyncError>,
    end: impl Fn(),
) -> Option<SyncError> {
    let began = Instant::now();
    loop {
        if !matches!(is_over.recv_timeout(LOOK), Err(mpsc::RecvTimeoutError::Timeout)) {
            return None;
        }
        let late = began.elapsed() > DEADLINE;
        let verdict = if late { Err(SyncError::Deadline { doing, seconds: DEADLINE.as_secs() }) } else { look() };
        if let Err(verdict) = verdict {
            end();
            return Some(verdict);
        }
    }
}

impl Exchange for Mesh {
    fn rank(&self) -> usize {
        self.gang.rank
    }

    fn world(&self) -> usize {
        self.gang.world()
    }

    fn exchange(&mut self, part: Part) -> Result<Whole, SyncError> {
        let doing = "an update's exchange";
        if self.gpus.is_some() {
            return self.guarded_gpus(doing, Seats::still_together, |gang, connections, gpus| {
                gpus::together(gang, connections, gpus, &part)
            });
        }
        self.guarded(doing, Seats::still_together, |gang, connections| {
            together(gang.rank, gang.world(), connections, &part)
        })
    }
}

/// A member's part of an update, as far as this member's piece of the sum needs it.
type Arrived = (Announcement, Vec<SlotFacts>, Vec<Node>);

/// What a thread tells the one that finishes the sum.
enum Event {
    /// A member's losses and its subtrees' values in this member's piece.
    Part { rank: usize, announced: Announcement, facts: Vec<SlotFacts>, nodes: Vec<Node> },
    /// A member's piece of the whole.
    Finished { rank: usize, values: Vec<f32> },
    /// Everything was sent to a member.
    Sent,
    /// A member was lost.
    Lost(SyncError),
}

fn together(
    rank: usize,
    world: usize,
    connections: &mut [Option<Connection>],
    part: &Part,
) -> Result<Whole, SyncError> {
    let streams = streams(connections);
    let own = piece(part.len, rank, world);
    let (events, happened) = mpsc::channel();
    thread::scope(|scope| {
        let mut finished = Vec::new();
        for (other, connection) in connections.iter_mut().enumerate() {
            let Some(Connection { outgoing, incoming, .. }) = connection else { continue };
            let (here, is_here) = mpsc::channel();
            let (finish, to_finish) = mpsc::channel();
            finished.push(finish);
            let (sent, received, own) = (events.clone(), events.clone(), own.clone());
            let theirs = piece(part.len, other, world);
            // A receiver that is gone has seen the error already.
            scope.spawn(move || {
                let result = send(outgoing, part, rank, theirs, &is_here, &to_finish);
                let _ = sent.send(result.map_or_else(Event::Lost, |()| Event::Sent));
            });
            scope.spawn(move || {
                if let Err(error) = receive(incoming, part, other, world, own, &here, &received) {
                    let _ = received.send(Event::Lost(error));
                }
            });
        }
        drop(events);
        let whole = gather(rank, world, part, &happened, finished);
        if whole.is_err() {
            streams.iter().for_each(|stream| cut(stream));
        }
        whole
    })
}

/// Sends a member everything it needs of an update. Where this exchange has failed elsewhere it ends early.
fn send(
    outgoing: &mut Direction,
    part: &Part,
    rank: usize,
    theirs: Range<usize>,
    is_here: &mpsc::Receiver<()>,
    to_finish: &mpsc::Receiver<Arc<Vec<f32>>>,
) -> Result<(), SyncError> {
    let update = part.update;
    outgoing.send(Kind::Here, update, &encode_here(&part.announced, &part.runs[rank], part.len))?;
    let Ok(()) = is_here.recv() else { return Ok(()) };
    outgoing.send_bytes(Kind::Part, update, &encode_facts(&part.facts))?;
    for node in &part.nodes {
        outgoing.send_floats(Kind::Part, update, &node.values[theirs.clone()])?;
    }
    let Ok(values) = to_finish.recv() else { return Ok(()) };
    outgoing.send_floats(Kind::Finished, update, &values)
}

/// Receives everything of an update from the member `other`.
fn receive(
    incoming: &mut Direction,
    part: &Part,
    other: usize,
    world: usize,
    own: Range<usize>,
    here: &mpsc::Sender<()>,
    events: &mpsc::Sender<Event>,
) -> Result<(), SyncError> {
    let (update, run) = (part.update, &part.runs[other]);
    let peer = incoming.peer().clone();
    let announced = decode_here(peer, incoming.receive(Kind::Here, update, HERE_BYTES)?, run, part.len)?;
    // Nobody listens any more where the exchange has failed elsewhere; the connection is about to end.
    let _ = here.send(());
    let mut bytes = vec![0; run.len() * FACTS_BYTES];
    incoming.receive_bytes(Kind::Part, update, &mut bytes)?;
    let facts = bytes.as_chunks::<FACTS_BYTES>().0.iter().map(decode_fact).collect();
    let mut nodes = Vec::new();
    for (start, size) in subtrees(run.start as u64..run.end as u64) {
        let mut values = vec![0.0; own.len()];
        incoming.receive_floats(Kind::Part, update, &mut values)?;
        nodes.push(Node { start, size, values });
    }
    let _ = events.send(Event::Part { rank: other, announced, facts, nodes });
    let mut values = vec![0.0; piece(part.len, other, world).len()];
    incoming.receive_floats(Kind::Finished, update, &mut values)?;
    let _ = events.send(Event::Finished { rank: other, values });
    Ok(())
}

/// Finishes this member's piece of the sum once all parts are there, and puts the pieces together.
fn gather(
    rank: usize,
    world: usize,
    part: &Part,
    happened: &mpsc::Receiver<Event>,
    finished: Vec<mpsc::Sender<Arc<Vec<f32>>>>,
) -> Result<Whole, SyncError> {
    let own = piece(part.len, rank, world);
    let cut_out = |node: &Node| Node { values: node.values[own.clone()].to_vec(), ..*node };
    let mut parts: Vec<Option<Arrived>> = (0..world).map(|_| None).collect();
    parts[rank] = Some((part.announced, part.facts.clone(), part.nodes.iter().map(cut_out).collect()));
    let mut gradient = vec![0.0; part.len];
    let (mut announced, mut facts) = (Vec::new(), Vec::new());
    let (mut awaited, mut unsent) = (world - 1, world - 1);
    while awaited > 0 || unsent > 0 {
        match happened.recv().expect("every thread ends with an event") {
            Event::Part { rank, announced, facts, nodes } => parts[rank] = Some((announced, facts, nodes)),
            Event::Finished { rank, values } => {
                gradient[piece(part.len, rank, world)].copy_from_slice(&values);
                awaited -= 1;
            }
            Event::Sent => unsent -= 1,
            Event::Lost(error) => return Err(error),
        }
        if announced.is_empty() && parts.iter().all(Option::is_some) {
            let mut sum = TreeSum::default();
            for (told, of_slots, nodes) in parts.iter_mut().filter_map(Option::take) {
                announced.push(told);
                facts.extend(of_slots);
                nodes.into_iter().for_each(|node| sum.push_node(node));
            }
            let values = Arc::new(sum.finish().expect("an update has at least one slot"));
            gradient[own.clone()].copy_from_slice(&values);
            // A thread that is gone has told why.
            finished.iter().for_each(|finish| drop(finish.send(Arc::clone(&values))));
        }
    }
    Ok(Whole { gradient, facts, announced })
}

pub(super) fn encode_here(announced: &Announcement, run: &Range<usize>, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HERE_BYTES);
    bytes.extend(announced.generation.to_le_bytes());
    bytes.extend(u32::from(announced.leaving).to_le_bytes());
    bytes.extend(announced.checkpointed.to_le_bytes());
    [run.start, run.end, len].iter().for_each(|number| bytes.extend((*number as u64).to_le_bytes()));
    bytes
}

/// What a member announces, once it says that it computed the run it was to.
pub(super) fn decode_here(peer: Peer, bytes: &[u8], run: &Range<usize>, len: usize) -> Result<Announcement, SyncError> {
    let disagrees =
        |what, got: String, expected: String| SyncError::Disagrees { peer: peer.clone(), what, got, expected };
    let Ok(bytes) = <&[u8; HERE_BYTES]>::try_from(bytes) else {
        return Err(disagrees("its announcement's length", bytes.len().to_string(), HERE_BYTES.to_string()));
    };
    let small = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (got, expected) = (number(12)..number(20), run.start as u64..run.end as u64);
    if got != expected {
        return Err(disagrees("its run of slots", format!("{got:?}"), format!("{expected:?}")));
    }
    if number(28) != len as u64 {
        return Err(disagrees("its number of parameters", number(28).to_string(), len.to_string()));
    }
    Ok(Announcement { generation: small(0), leaving: small(4) != 0, checkpointed: small(8) })
}

pub(super) fn encode_facts(facts: &[SlotFacts]) -> Vec<u8> {
    let fact = |slot: &SlotFacts| [slot.loss_sum.to_bits().to_le_bytes(), slot.tree_tokens.to_le_bytes()].concat();
    facts.iter().flat_map(fact).collect()
}

pub(super) fn decode_fact(bytes: &[u8; FACTS_BYTES]) -> SlotFacts {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    SlotFacts { loss_sum: f64::from_bits(number(0)), tree_tokens: number(8) }
}
