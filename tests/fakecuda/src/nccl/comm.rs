//! A communicator and what it does on a stream.
//!
//! ```text
//! Joining -> Ready                 the other ranks are there
//!         -> Failed                they cannot be reached
//! ```
//! A collective meets at rank 0: every rank says what it is about to do; if all say the same, the contributions go to
//! rank 0 and the results come back. A rank that is gone, or does something else, is told by `ncclCommGetAsyncError`,
//! and the stream hangs until `ncclCommAbort`, as it does when a kernel of NCCL waits for data that never comes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::mesh::{Abort, Link, Lost, Mesh};
use super::reduce::{Op, Type, reduce};
use crate::codes::{Code, NcclCode};
use crate::device::Device;
use crate::health::Failure;

/// A rank's seat among the others.
pub struct Comm {
    /// This rank.
    pub rank: usize,
    /// How many ranks there are.
    pub ranks: usize,
    /// The device whose memory the collectives read and write.
    pub device: &'static Arc<Device>,
    abort: Abort,
    state: Mutex<State>,
    changed: Condvar,
    async_error: AtomicI32,
    /// How many collectives have been done; locked while one is under way.
    turn: Mutex<u64>,
}

enum State {
    Joining,
    Ready(Arc<Mesh>),
    Failed(NcclCode),
}

/// What a collective does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are NCCL's")]
pub enum Kind {
    AllReduce,
    AllGather,
    Broadcast,
    ReduceScatter,
    Reduce,
}

/// A run of elements in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Its first address.
    pub address: u64,
    /// Number of elements.
    pub count: usize,
    /// Their type.
    pub kind: Type,
}

/// One collective of one rank.
#[derive(Clone, Copy, Debug)]
pub struct Collective {
    /// What it does.
    pub kind: Kind,
    /// Elements of one rank's share (NCCL's `count`, `sendcount` or `recvcount`).
    pub count: usize,
    /// Their type.
    pub element: Type,
    /// How they are combined; `Sum` where nothing is.
    pub op: Op,
    /// The rank that sends or receives alone; 0 where none does.
    pub root: usize,
    /// Device address of what this rank gives.
    pub send: u64,
    /// Device address of what it gets.
    pub receive: u64,
}

/// One step of a stream's work with a communicator.
#[derive(Clone, Copy, Debug)]
pub enum Item {
    /// A collective.
    Collective(Collective),
    /// Elements for a peer.
    Send(usize, Span),
    /// Elements from a peer.
    Receive(usize, Span),
    /// An injected fault: nothing ever comes.
    Hang,
}

/// Why an item did not come to its end.
enum Stop {
    Lost(Lost),
    Mismatch(String),
    Failed(Failure),
}

impl From<Lost> for Stop {
    fn from(lost: Lost) -> Stop {
        Stop::Lost(lost)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

impl Comm {
    /// Begins to join the ranks that meet at `meeting`, on a thread of its own.
    pub fn start(
        meeting: SocketAddr,
        rank: usize,
        ranks: usize,
        device: &'static Arc<Device>,
        host: String,
    ) -> std::io::Result<Arc<Comm>> {
        let comm = Arc::new(Comm {
            rank,
            ranks,
            device,
            abort: Abort::default(),
            state: Mutex::new(State::Joining),
            changed: Condvar::new(),
            async_error: AtomicI32::new(0),
            turn: Mutex::new(0),
        });
        let joining = comm.clone();
        let join = move || {
            let joined = Mesh::join(meeting, rank, ranks, &host, &joining.abort);
            *joining.state() = match joined {
                Ok(mesh) => State::Ready(Arc::new(mesh)),
                Err(_) => State::Failed(NcclCode::REMOTE_ERROR),
            };
            joining.changed.notify_all();
        };
        std::thread::Builder::new().name(format!("fakecuda nccl {rank}")).spawn(join)?;
        Ok(comm)
    }

    /// Waits until the communicator is ready or has failed.
    pub fn settle(&self) -> Result<(), NcclCode> {
        let mut state = self.state();
        loop {
            match &*state {
                State::Joining => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                State::Ready(_) => return Ok(()),
                State::Failed(code) => return Err(*code),
            }
        }
    }

    /// The asynchronous error: in progress while the ranks join, then success until something is lost.
    pub fn async_error(&self) -> Result<(), NcclCode> {
        match &*self.state() {
            State::Joining => return Err(NcclCode::IN_PROGRESS),
            State::Failed(code) => return Err(*code),
            State::Ready(_) => {}
        }
        match self.async_error.load(SeqCst) {
            0 => Ok(()),
            number => Err(NcclCode(number)),
        }
    }

    /// Refuses work that NCCL refuses: before the ranks have joined, and after an error.
    pub fn check(&self) -> Result<(), NcclCode> {
        self.async_error().map_err(|code| if code == NcclCode::IN_PROGRESS { NcclCode::INVALID_ARGUMENT } else { code })
    }

    /// Ends all that hangs; nothing more will come of this communicator.
    pub fn abort(&self) {
        self.abort.set();
    }

    /// Does the items of one group: collectives in their order, then everything that is sent and received at once.
    pub fn run(&self, items: &[Item]) -> Result<(), Failure> {
        let mesh = match &*self.state() {
            State::Ready(mesh) => mesh.clone(),
            State::Joining | State::Failed(_) => return Ok(()),
        };
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        match self.run_on(&mesh, items, &mut turn) {
            Ok(()) => Ok(()),
            Err(Stop::Failed(failure)) => Err(failure),
            Err(Stop::Lost(Lost::Aborted)) => Ok(()),
            Err(Stop::Lost(Lost::Gone)) => self.hang(NcclCode::REMOTE_ERROR, "a peer is gone"),
            Err(Stop::Mismatch(story)) => self.hang(NcclCode::INVALID_USAGE, &story),
        }
    }

    fn run_on(&self, mesh: &Mesh, items: &[Item], turn: &mut u64) -> Result<(), Stop> {
        for item in items {
            match item {
                Item::Collective(collective) => {
                    *turn += 1;
                    self.collective(mesh, collective, *turn)?;
                }
                Item::Hang => self.abort.wait(),
                Item::Send(..) | Item::Receive(..) => {}
            }
        }
        self.exchange(mesh, items)
    }

    fn hang(&self, code: NcclCode, story: &str) -> Result<(), Failure> {
        eprintln!("fakecuda: nccl rank {} of {}: {story}; the stream hangs until an abort", self.rank, self.ranks);
        self.async_error.store(code.0, SeqCst);
        self.abort.wait();
        Ok(())
    }

    fn collective(&self, mesh: &Mesh, collective: &Collective, turn: u64) -> Result<(), Stop> {
        let what = collective.describe(turn);
        let given = collective.gives(self).map(|span| self.load(&span)).transpose()?;
        let result = if self.rank == 0 {
            self.lead(mesh, collective, &what, given)?
        } else {
            self.follow(mesh, collective, &what, given)?
        };
        if let Some(span) = collective.gets(self) {
            self.store(&span, &result)?;
        }
        Ok(())
    }

    /// Rank 0's side of a collective: returns its own result.
    fn lead(&self, mesh: &Mesh, own: &Collective, what: &str, given: Option<Vec<u8>>) -> Result<Vec<u8>, Stop> {
        let mut said = vec![what.to_owned()];
        for rank in 1..self.ranks {
            said.push(read_text(mesh.from(rank)?)?);
        }
        let differs = said.iter().position(|text| text != what);
        for rank in 1..self.ranks {
            mesh.to(rank)?.write(&[differs.is_some() as u8])?;
        }
        if let Some(rank) = differs {
            return Err(Stop::Mismatch(format!("rank 0 calls {what}, rank {rank} calls {}", said[rank])));
        }
        let mut contributions = Vec::from_iter(given);
        for rank in (1..self.ranks).filter(|rank| own.contributes(*rank)) {
            let mut bytes = vec![0; own.given_elements(self.ranks) * own.element.bytes()];
            mesh.from(rank)?.read(&mut bytes)?;
            contributions.push(bytes);
        }
        let total = own.combine(&contributions);
        for rank in (1..self.ranks).filter(|rank| own.receives(*rank)) {
            mesh.to(rank)?.write(own.part(&total, rank))?;
        }
        Ok(own.part(&total, 0).to_vec())
    }

    /// Another rank's side.
    fn follow(&self, mesh: &Mesh, own: &Collective, what: &str, given: Option<Vec<u8>>) -> Result<Vec<u8>, Stop> {
        write_text(mesh.to(0)?, what)?;
        let mut differs = [0];
        mesh.from(0)?.read(&mut differs)?;
        if differs != [0] {
            return Err(Stop::Mismatch(format!("the ranks call different collectives; this one {what}")));
        }
        if let Some(bytes) = given {
            mesh.to(0)?.write(&bytes)?;
        }
        let Some(span) = own.gets(self) else { return Ok(Vec::new()) };
        let mut result = vec![0; span.bytes()];
        mesh.from(0)?.read(&mut result)?;
        Ok(result)
    }

    /// Everything that the items send and receive, at the same time.
    fn exchange(&self, mesh: &Mesh, items: &[Item]) -> Result<(), Stop> {
        let mut own = Vec::new();
        let mut parcels: Vec<Vec<(String, Vec<u8>)>> = vec![Vec::new(); self.ranks];
        for item in items {
            if let Item::Send(peer, span) = item {
                let parcel = (span.describe(), self.load(span)?);
                if *peer == self.rank { own.push(parcel) } else { parcels[*peer].push(parcel) }
            }
        }
        let mut own = own.into_iter();
        std::thread::scope(|scope| {
            let sending = |(peer, parcels): (usize, Vec<_>)| scope.spawn(move || send_all(mesh.to(peer)?, &parcels));
            let used = parcels.into_iter().enumerate().filter(|(_, parcels)| !parcels.is_empty());
            let senders: Vec<_> = used.map(sending).collect();
            let mut received = Ok(());
            for item in items {
                if let (Item::Receive(peer, span), Ok(())) = (item, &received) {
                    received =
                        if *peer == self.rank { self.keep(span, own.next()) } else { self.receive(mesh, *peer, span) };
                }
            }
            // After a failed receive the senders may hang until the abort: the error is told before they are waited for.
            if received.is_err() {
                self.async_error.store(NcclCode::REMOTE_ERROR.0, SeqCst);
            }
            let sent = senders.into_iter().map(|sender| sender.join().unwrap_or(Err(Lost::Gone)));
            let sent: Result<(), Lost> = if received.is_ok() { sent.collect() } else { Ok(()) };
            received.and(sent.map_err(Stop::from))
        })
    }

    fn receive(&self, mesh: &Mesh, peer: usize, span: &Span) -> Result<(), Stop> {
        let link = mesh.from(peer)?;
        let (sent, expected) = (read_text(link)?, span.describe());
        if sent != expected {
            return Err(Stop::Mismatch(format!("rank {peer} sends {sent}, this one expects {expected}")));
        }
        let mut bytes = vec![0; span.bytes()];
        link.read(&mut bytes)?;
        link.write(&[1])?;
        Ok(self.store(span, &bytes)?)
    }

    fn keep(&self, span: &Span, parcel: Option<(String, Vec<u8>)>) -> Result<(), Stop> {
        match parcel {
            Some((sent, bytes)) if sent == span.describe() => Ok(self.store(span, &bytes)?),
            _ => Err(Stop::Mismatch(format!("this rank expects {} from itself and does not send it", span.describe()))),
        }
    }

    fn load(&self, span: &Span) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; span.bytes()];
        self.device.book.read(span.address, &mut bytes).map_err(|bad| self.fault("reads", &bad.to_string()))?;
        Ok(bytes)
    }

    fn store(&self, span: &Span, bytes: &[u8]) -> Result<(), Failure> {
        self.device.book.write(span.address, bytes).map_err(|bad| self.fault("writes", &bad.to_string()))
    }

    fn fault(&self, verb: &str, bad: &str) -> Failure {
        Failure::new(Code::ILLEGAL_ADDRESS, format!("nccl rank {} {verb}: {bad}", self.rank))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Span {
    fn bytes(&self) -> usize {
        self.count * self.kind.bytes()
    }

    fn describe(&self) -> String {
        format!("{} {:?}", self.count, self.kind)
    }
}

impl Collective {
    fn describe(&self, turn: u64) -> String {
        let Collective { kind, count, element, op, root, .. } = self;
        format!("{kind:?} of {count} {element:?} by {op:?} at root {root} as number {turn}")
    }

    fn contributes(&self, rank: usize) -> bool {
        self.kind != Kind::Broadcast || rank == self.root
    }

    fn receives(&self, rank: usize) -> bool {
        self.kind != Kind::Reduce || rank == self.root
    }

    fn given_elements(&self, ranks: usize) -> usize {
        if self.kind == Kind::ReduceScatter { self.count * ranks } else { self.count }
    }

    fn gives(&self, comm: &Comm) -> Option<Span> {
        let span = Span { address: self.send, count: self.given_elements(comm.ranks), kind: self.element };
        self.contributes(comm.rank).then_some(span)
    }

    fn gets(&self, comm: &Comm) -> Option<Span> {
        let count = if self.kind == Kind::AllGather { self.count * comm.ranks } else { self.count };
        self.receives(comm.rank).then_some(Span { address: self.receive, count, kind: self.element })
    }

    fn combine(&self, contributions: &[Vec<u8>]) -> Vec<u8> {
        match self.kind {
            Kind::AllReduce | Kind::Reduce | Kind::ReduceScatter => reduce(self.element, self.op, contributions),
            Kind::AllGather | Kind::Broadcast => contributions.concat(),
        }
    }

    /// What of the whole result a rank gets.
    fn part<'a>(&self, total: &'a [u8], rank: usize) -> &'a [u8] {
        let bytes = self.count * self.element.bytes();
        if self.kind == Kind::ReduceScatter { &total[rank * bytes..][..bytes] } else { total }
    }
}

/// Sends parcels and waits until each has been received, as a kernel of NCCL does.
fn send_all(link: &Link, parcels: &[(String, Vec<u8>)]) -> Result<(), Lost> {
    for (what, bytes) in parcels {
        write_text(link, what)?;
        link.write(bytes)?;
        link.read(&mut [0])?;
    }
    Ok(())
}

fn write_text(link: &Link, text: &str) -> Result<(), Lost> {
    link.write(&(text.len() as u32).to_le_bytes())?;
    link.write(text.as_bytes())
}

fn read_text(link: &Link) -> Result<String, Lost> {
    let mut length = [0; 4];
    link.read(&mut length)?;
    let mut bytes = vec![0; (u32::from_le_bytes(length) as usize).min(4096)];
    link.read(&mut bytes)?;
    String::from_utf8(bytes).map_err(|_| Lost::Gone)
}
