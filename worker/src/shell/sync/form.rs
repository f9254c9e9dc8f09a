//! Forming a gang: everybody dials the lower ranks and awaits the higher.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use super::{Mesh, Seats, listener::Caller, peer::Connection, socket};
use crate::sync::{
    Gang, Peer, SyncError,
    frame::{HELLO_BYTES, Hello, Key, Keys, WELCOME_BYTES, Welcome},
};

/// A member that does not welcome a caller for so long is called again: it may compute for minutes, or not have heard.
const WELCOME: Duration = Duration::from_secs(30);
/// How often a wait looks whether to go on.
const LOOK: Duration = Duration::from_millis(100);
/// A member that cannot be reached for so long, though the coordinator still counts it in, will not be.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many heartbeats have to be answered in that time: of a coordinator that is away nobody knows whom it counts in.
const ANSWERS: u64 = 30;

/// Connects with every other member, each of which has proved that it has the gang's key. One try: whoever is not there
/// yet and does not call is waited for as long as the generation stands.
///
/// # Errors
/// When a lower rank cannot be reached or refuses, a connection breaks, the generation is no longer the newest, or this
/// worker is to leave.
pub fn form(gang: &Gang, seats: &Seats, unreachable: &mut Unreachable) -> Result<Mesh, SyncError> {
    let key = Key::of_gang(gang.key);
    let mut dialled = Vec::new();
    for rank in 0..gang.rank {
        seats.still_forming(gang)?;
        let said = hello(gang, rank).encode(&key);
        let stream = socket::dial(&gang.seats[rank].address).and_then(|stream| {
            (&stream).write_all(&said)?;
            Ok(stream)
        });
        match stream {
            Ok(stream) => dialled.push((said, stream)),
            Err(problem) => return Err(unreachable.not_reached(gang, rank, seats, "calling it", problem)),
        }
    }
    let higher = match await_callers(gang, seats, &key, &dialled)? {
        Ok(higher) => higher,
        Err(rank) => {
            // What it said before it went, if anything, is the better reason.
            let (said, stream) = dialled.swap_remove(rank);
            welcomed(gang, rank, &key, &said, stream, unreachable, seats, || seats.still_forming(gang))?;
            return Err(gone(gang, rank));
        }
    };
    let mut connections = Vec::new();
    for (rank, (said, stream)) in dialled.into_iter().enumerate() {
        let look = || {
            seats.still_forming(gang)?;
            match higher.iter().position(Connection::has_ended) {
                Some(place) => Err(gone(gang, gang.rank + 1 + place)),
                None => Ok(()),
            }
        };
        connections.push(Some(welcomed(gang, rank, &key, &said, stream, unreachable, seats, look)?));
    }
    connections.push(None);
    connections.extend(higher.into_iter().map(Some));
    unreachable.since = None;
    Ok(Mesh::new(gang.clone(), seats.clone(), connections))
}

/// A member that has ended its connection while the gang was being formed.
pub(super) fn gone(gang: &Gang, rank: usize) -> SyncError {
    let problem = io::ErrorKind::UnexpectedEof.into();
    SyncError::Broken { peer: gang.peer(rank), doing: "forming the gang", problem }
}

fn hello(gang: &Gang, rank: usize) -> Hello {
    Hello {
        generation: gang.generation,
        rank: u32::try_from(gang.rank).expect("a rank that came as 32 bits"),
        from: gang.seats[gang.rank].lease,
        to: gang.seats[rank].lease,
        nonce: nonce(),
    }
}

fn nonce() -> [u8; 16] {
    uuid::Uuid::new_v4().into_bytes()
}

/// Takes in the higher ranks as they call, or says which lower rank has gone meanwhile.
///
/// A member that goes unnoticed holds up the others: each would wait for another that waits for it.
fn await_callers(
    gang: &Gang,
    seats: &Seats,
    key: &Key,
    lower: &[([u8; HELLO_BYTES], TcpStream)],
) -> Result<Result<Vec<Connection>, usize>, SyncError> {
    let mut higher: Vec<Option<Connection>> = (gang.rank + 1..gang.world()).map(|_| None).collect();
    while higher.iter().any(Option::is_none) {
        seats.still_forming(gang)?;
        if let Some(rank) = lower.iter().position(|(_, stream)| socket::has_ended(stream)) {
            return Ok(Err(rank));
        }
        // Whoever went after it called will call again.
        higher.iter_mut().for_each(|held| drop(held.take_if(|held| held.has_ended())));
        let Some(caller) = seats.listener.take(seats.lease, LOOK) else { continue };
        if caller.hello.generation > gang.generation {
            // The coordinator has told the caller first.
            seats.listener.put_back(caller);
            seats.seating.ask();
            std::thread::sleep(LOOK);
            continue;
        }
        if let Some((rank, connection)) = believed(gang, key, caller) {
            // One that calls twice has lost its first connection.
            higher[rank - gang.rank - 1] = Some(connection);
        }
    }
    Ok(Ok(higher.into_iter().flatten().collect()))
}

/// The connection of a caller that is a higher rank of this gang; others are told why they are not.
fn believed(gang: &Gang, key: &Key, caller: Caller) -> Option<(usize, Connection)> {
    let Caller { hello, bytes, stream, .. } = caller;
    let refuse = |answer: Welcome| {
        tracing::warn!("a caller of generation {} is refused: {answer:?}", hello.generation);
        // Whoever does not take the answer sees the connection end.
        let _ = (&stream).write_all(&answer.encode(key, &bytes));
    };
    if hello.generation < gang.generation {
        refuse(Welcome::Generation(gang.generation));
        return None;
    }
    let rank = hello.rank as usize;
    let seat = gang.seats.get(rank).filter(|seat| rank > gang.rank && seat.lease == hello.from);
    if seat.is_none() || !Hello::is_genuine(&bytes, key) {
        refuse(Welcome::Key);
        return None;
    }
    let welcome = Welcome::Come { nonce: nonce() }.encode(key, &bytes);
    (&stream).write_all(&welcome).ok()?;
    let keys = Keys::of(key, &bytes, &welcome);
    Some((rank, Connection::new(stream, gang.peer(rank), gang.generation, &keys, false)))
}

/// Waits for a lower rank's answer, which comes once it forms this generation too.
#[expect(clippy::too_many_arguments, reason = "the operands of one step of forming; a struct would only rename them")]
fn welcomed(
    gang: &Gang,
    rank: usize,
    key: &Key,
    said: &[u8; HELLO_BYTES],
    stream: TcpStream,
    unreachable: &mut Unreachable,
    seats: &Seats,
    look: impl Fn() -> Result<(), SyncError>,
) -> Result<Connection, SyncError> {
    let mut answer = [0; WELCOME_BYTES];
    if let Err(problem) = read_looking(&stream, &mut answer, look)? {
        let doing = "waiting for its welcome";
        if problem.kind() == io::ErrorKind::TimedOut {
            // It is reached, and busy.
            unreachable.since = None;
            return Err(SyncError::Broken { peer: gang.peer(rank), doing, problem });
        }
        return Err(unreachable.not_reached(gang, rank, seats, doing, problem));
    }
    let refused = |reason: String| SyncError::Refused { peer: gang.peer(rank), reason };
    let wrong = |problem| SyncError::Frame { peer: gang.peer(rank), problem };
    match Welcome::decode(&answer, key, said).map_err(wrong)? {
        Welcome::Come { .. } => {
            let keys = Keys::of(key, said, &answer);
            Ok(Connection::new(stream, gang.peer(rank), gang.generation, &keys, true))
        }
        Welcome::Generation(newer) => {
            let reason = format!("generation {newer} has taken the place of generation {}", gang.generation);
            Err(refused(reason))
        }
        Welcome::Key => {
            let problem = io::Error::other("it takes this worker for none of its gang");
            Err(unreachable.not_reached(gang, rank, seats, "being welcomed", problem))
        }
    }
}

/// Reads bytes, looking now and then whether to go on waiting; `TimedOut` where nothing has come for [`WELCOME`].
#[expect(clippy::disallowed_methods, reason = "the shell asks the clock how long it has waited")]
fn read_looking(
    stream: &TcpStream,
    bytes: &mut [u8],
    look: impl Fn() -> Result<(), SyncError>,
) -> Result<io::Result<()>, SyncError> {
    let read = |bytes: &mut [u8]| {
        stream.set_read_timeout(Some(LOOK))?;
        let read = (&*stream).read(bytes);
        stream.set_read_timeout(None)?;
        read
    };
    let (mut filled, began) = (0, Instant::now());
    while filled < bytes.len() {
        look()?;
        match read(&mut bytes[filled..]) {
            Ok(0) => return Ok(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(more) => filled += more,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if began.elapsed() > WELCOME {
                    let nothing = format!("nothing for {} s", WELCOME.as_secs());
                    return Ok(Err(io::Error::new(io::ErrorKind::TimedOut, nothing)));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Err(io::Error::other(error))),
        }
    }
    Ok(Ok(()))
}

/// How long a lower rank has not been reached, over all tries of a generation.
#[derive(Debug, Default)]
pub struct Unreachable {
    since: Option<Since>,
}

#[derive(Debug)]
struct Since {
    generation: u32,
    rank: usize,
    at: Instant,
    answers: u64,
}

impl Unreachable {
    #[expect(clippy::disallowed_methods, reason = "the shell asks the clock since when a member cannot be reached")]
    fn not_reached(
        &mut self,
        gang: &Gang,
        rank: usize,
        seats: &Seats,
        doing: &'static str,
        problem: io::Error,
    ) -> SyncError {
        let (generation, answers) = (gang.generation, seats.seating.answers());
        let same = |since: &Since| since.generation == generation && since.rank == rank;
        if !self.since.as_ref().is_some_and(same) {
            self.since = Some(Since { generation, rank, at: Instant::now(), answers });
        }
        SyncError::Broken { peer: gang.peer(rank), doing, problem }
    }

    /// The member that will not be reached any more.
    #[must_use]
    pub fn for_good(&self, gang: &Gang, seats: &Seats) -> Option<Peer> {
        let since = self.since.as_ref().filter(|since| since.generation == gang.generation)?;
        let answered = seats.seating.answers() - since.answers;
        (since.at.elapsed() >= PATIENCE && answered >= ANSWERS).then(|| gang.peer(since.rank))
    }
}
