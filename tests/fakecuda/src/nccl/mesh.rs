//! The ranks' connections. Each rank keeps one connection to and one from every other rank.
//!
//! ```text
//! rank r -> meeting point: r, number of ranks, address of r's own listener      (once all are there)
//! meeting point -> rank r: the addresses of all ranks
//! rank r -> rank p: r                          for every p; what r sends to p travels here
//! ```
//! No read or write blocks for longer than `PATIENCE`, so that an abort is noticed soon.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::id;

/// How long one read or write may block before the abort is looked at: short against what a person waits for, long
/// against the cost of waking up.
const PATIENCE: Duration = Duration::from_millis(20);

/// Why a transfer ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The communicator was aborted.
    Aborted,
    /// The other side is gone, or speaks another language.
    Gone,
}

/// Set once the communicator is aborted.
#[derive(Clone, Debug, Default)]
pub struct Abort(Arc<AtomicBool>);

impl Abort {
    /// Ends every transfer of the communicator.
    pub fn set(&self) {
        self.0.store(true, SeqCst);
    }

    /// Whether it has been set.
    pub fn is_set(&self) -> bool {
        self.0.load(SeqCst)
    }

    /// Waits for it, as a kernel of NCCL waits for data that never comes.
    pub fn wait(&self) {
        while !self.is_set() {
            std::thread::sleep(PATIENCE / 4);
        }
    }
}

/// One connection.
pub struct Link {
    stream: Mutex<TcpStream>,
    abort: Abort,
}

impl Link {
    fn new(stream: TcpStream, abort: &Abort) -> Result<Link, Lost> {
        let tuned = stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        tuned.map_err(|_| Lost::Gone)?;
        Ok(Link { stream: Mutex::new(stream), abort: abort.clone() })
    }

    /// Sends all bytes.
    pub fn write(&self, mut bytes: &[u8]) -> Result<(), Lost> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        while !bytes.is_empty() {
            let done = self.step(stream.write(bytes))?;
            bytes = &bytes[done..];
        }
        Ok(())
    }

    /// Receives exactly as many bytes as `into` has room for.
    pub fn read(&self, into: &mut [u8]) -> Result<(), Lost> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let mut filled = 0;
        while filled < into.len() {
            filled += self.step(stream.read(&mut into[filled..]))?;
        }
        Ok(())
    }

    /// How far one read or write came: nothing when it only took too long.
    fn step(&self, outcome: std::io::Result<usize>) -> Result<usize, Lost> {
        match outcome {
            _ if self.abort.is_set() => Err(Lost::Aborted),
            Ok(0) => Err(Lost::Gone),
            Ok(count) => Ok(count),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(0),
                _ => Err(Lost::Gone),
            },
        }
    }
}

/// Opens a meeting point on `host` and returns its id. It serves one communicator, on a thread of its own, for as long
/// as this process lives.
pub fn open_meeting(host: &str) -> std::io::Result<[u8; id::BYTES]> {
    let listener = TcpListener::bind((host, 0))?;
    let id = id::encode(listener.local_addr()?);
    std::thread::Builder::new().name("fakecuda meeting".into()).spawn(move || meet(&listener))?;
    Ok(id)
}

/// Waits for all ranks and tells each the addresses of all. A rank that leaves before all are there is replaced when
/// it comes again.
fn meet(listener: &TcpListener) {
    let mut present: Vec<Option<(TcpStream, SocketAddr)>> = Vec::new();
    loop {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let Some((rank, ranks, address)) = hello(&mut stream) else { continue };
        present.resize_with(ranks, || None);
        present[rank] = Some((stream, address));
        if present.iter().all(Option::is_some) {
            break;
        }
    }
    let text: String = present.iter().flatten().map(|(_, address)| format!("{address}\n")).collect();
    for (stream, _) in present.iter_mut().flatten() {
        let length = (text.len() as u32).to_le_bytes();
        // A rank that is gone by now is noticed by the others, who cannot reach it.
        let _gone = stream.write_all(&length).and_then(|()| stream.write_all(text.as_bytes()));
    }
}

/// What a rank says at the meeting point.
fn hello(stream: &mut TcpStream) -> Option<(usize, usize, SocketAddr)> {
    // Whoever connects and says nothing is no rank, and must not keep the others waiting.
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut header = [0; 12];
    stream.read_exact(&mut header).ok()?;
    let [rank, ranks, length] = words(&header);
    let mut text = vec![0; length.min(256)];
    stream.read_exact(&mut text).ok()?;
    let address = std::str::from_utf8(&text).ok()?.parse().ok()?;
    (rank < ranks && ranks <= 1024).then_some((rank, ranks, address))
}

fn words<const N: usize>(bytes: &[u8]) -> [usize; N] {
    let mut words = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word) as usize);
    std::array::from_fn(|_| words.next().unwrap_or_default())
}

/// A rank's connections.
pub struct Mesh {
    outgoing: Vec<Option<Link>>,
    incoming: Vec<Option<Link>>,
}

impl Mesh {
    /// Meets the other ranks and connects with them; waits until all are there.
    pub fn join(meeting: SocketAddr, rank: usize, ranks: usize, host: &str, abort: &Abort) -> Result<Mesh, Lost> {
        let listener = TcpListener::bind((host, 0)).map_err(|_| Lost::Gone)?;
        let own = listener.local_addr().map_err(|_| Lost::Gone)?;
        let addresses = ask(meeting, rank, ranks, own, abort)?;
        let mut mesh = Mesh { outgoing: empty(ranks), incoming: empty(ranks) };
        for (peer, address) in addresses.iter().enumerate().filter(|(peer, _)| *peer != rank) {
            let link = Link::new(TcpStream::connect(address).map_err(|_| Lost::Gone)?, abort)?;
            link.write(&(rank as u32).to_le_bytes())?;
            mesh.outgoing[peer] = Some(link);
        }
        mesh.accept(&listener, ranks - 1, abort)?;
        Ok(mesh)
    }

    fn accept(&mut self, listener: &TcpListener, count: usize, abort: &Abort) -> Result<(), Lost> {
        listener.set_nonblocking(true).map_err(|_| Lost::Gone)?;
        let mut missing = count;
        while missing > 0 {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).map_err(|_| Lost::Gone)?;
                    let link = Link::new(stream, abort)?;
                    let mut peer = [0; 4];
                    link.read(&mut peer)?;
                    let [peer] = words(&peer);
                    *self.incoming.get_mut(peer).ok_or(Lost::Gone)? = Some(link);
                    missing -= 1;
                }
                Err(_) if abort.is_set() => return Err(Lost::Aborted),
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(PATIENCE / 10),
                Err(_) => return Err(Lost::Gone),
            }
        }
        Ok(())
    }

    /// The connection that this rank sends to `peer` on.
    pub fn to(&self, peer: usize) -> Result<&Link, Lost> {
        self.outgoing.get(peer).and_then(Option::as_ref).ok_or(Lost::Gone)
    }

    /// The connection that `peer` sends to this rank on.
    pub fn from(&self, peer: usize) -> Result<&Link, Lost> {
        self.incoming.get(peer).and_then(Option::as_ref).ok_or(Lost::Gone)
    }
}

fn empty(ranks: usize) -> Vec<Option<Link>> {
    (0..ranks).map(|_| None).collect()
}

/// The addresses of all ranks, from the meeting point.
fn ask(
    meeting: SocketAddr,
    rank: usize,
    ranks: usize,
    own: SocketAddr,
    abort: &Abort,
) -> Result<Vec<SocketAddr>, Lost> {
    let link = Link::new(TcpStream::connect(meeting).map_err(|_| Lost::Gone)?, abort)?;
    let text = own.to_string();
    let header = [rank as u32, ranks as u32, text.len() as u32];
    link.write(&header.map(u32::to_le_bytes).concat())?;
    link.write(text.as_bytes())?;
    let mut length = [0; 4];
    link.read(&mut length)?;
    let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
    link.read(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(|_| Lost::Gone)?;
    let addresses: Vec<_> = text.lines().map_while(|line| line.parse().ok()).collect();
    if addresses.len() == ranks { Ok(addresses) } else { Err(Lost::Gone) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meshes(ranks: usize) -> Vec<Mesh> {
        let meeting = id::decode(&open_meeting("127.0.0.1").unwrap()).unwrap();
        let join = |rank| std::thread::spawn(move || Mesh::join(meeting, rank, ranks, "127.0.0.1", &Abort::default()));
        let threads: Vec<_> = (0..ranks).map(join).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
    }

    #[test]
    fn everybody_reaches_everybody() {
        let meshes = meshes(3);
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
            let sent = [from as u8, to as u8];
            meshes[from].to(to).unwrap().write(&sent).unwrap();
            let mut got = [0; 2];
            meshes[to].from(from).unwrap().read(&mut got).unwrap();
            assert_eq!(got, sent);
        }
    }

    #[test]
    fn a_rank_that_left_is_noticed() {
        let mut meshes = meshes(2);
        drop(meshes.pop());
        assert_eq!(meshes[0].from(1).unwrap().read(&mut [0]), Err(Lost::Gone));
    }

    #[test]
    fn an_abort_ends_the_wait_for_ranks_that_never_come() {
        let meeting = id::decode(&open_meeting("127.0.0.1").unwrap()).unwrap();
        let abort = Abort::default();
        let seen = abort.clone();
        let thread = std::thread::spawn(move || Mesh::join(meeting, 0, 2, "127.0.0.1", &seen).err());
        abort.set();
        assert_eq!(thread.join().unwrap(), Some(Lost::Aborted));
    }
}
