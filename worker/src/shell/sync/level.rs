//! Bringing all members of a new gang to the same update.
//!
//! Everybody tells where it stands. Members at the same update must hold the same bytes; those behind ask the lowest rank
//! of the greatest update for its whole state. So a generation goes on from the last finished update without a
//! checkpoint, and whoever joins needs nothing but the others.

use std::{
    net::TcpStream,
    sync::{Arc, mpsc},
    thread,
};

use insula_proto::ids::Digest;
use serde::{Deserialize, Serialize};

use super::{
    Mesh, Seats,
    form::gone,
    peer::{Connection, cut},
    socket::has_ended,
};
use crate::{
    checkpoint::{Progress, State},
    ledger::Line,
    sync::{Gang, SyncError, frame::Kind},
    train::Training,
};

/// Most bytes of progress and ledger. Half a million updates stay under it.
const DESCRIBED_BYTES: u64 = 256 << 20;
/// Bytes of a standing.
const STANDING_BYTES: usize = 84;

/// What a member knows of a training beside the training itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Everything up to this update is reported that was to be.
    pub settled: u32,
    /// The last update of which a checkpoint is reported.
    pub checkpointed: u32,
    /// The updates since then.
    pub lines: Vec<Line>,
}

impl Standing {
    /// Takes note of a checkpoint.
    pub fn checkpointed(&mut self, update: u32) {
        self.checkpointed = self.checkpointed.max(update);
        self.lines.retain(|line| line.update > self.checkpointed);
    }
}

/// What members tell each other first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    update: u32,
    settled: u32,
    checkpointed: u32,
    len: u64,
    /// Of what the training belongs to: settings, corpus, base.
    origin: [u8; 32],
    /// Of the vectors and the losses.
    state: [u8; 32],
}

/// What the vectors are sent with.
#[derive(Debug, Serialize, Deserialize)]
struct Described {
    progress: Progress,
    standing: Standing,
}

impl Mesh {
    /// Brings this member to where the most advanced is; says whether it had been behind.
    ///
    /// # Errors
    /// When a member is lost, or the members' trainings are not the same one.
    pub fn level(
        &mut self,
        training: &mut Training,
        standing: &mut Standing,
        origin: &Digest,
    ) -> Result<bool, SyncError> {
        let own = place(training, standing, origin);
        // Nobody ends a connection before all are level: one that has ended is a member lost, whoever is waited for.
        let streams: Vec<_> = self.connections.iter().map(|held| held.as_ref().map(Connection::stream)).collect();
        let together = move |seats: &Seats, gang: &Gang| {
            seats.still_forming(gang)?;
            let ended = |held: &Option<Arc<TcpStream>>| held.as_ref().is_some_and(|stream| has_ended(stream));
            streams.iter().position(ended).map_or(Ok(()), |rank| Err(gone(gang, rank)))
        };
        self.guarded("coming to the same update", together, |gang, connections| {
            let places = told(gang, connections, own)?;
            let source = source(&places);
            check(gang, &places, source, own)?;
            standing.settled = places.iter().map(|place| place.settled).max().unwrap_or(0);
            let behind = own.update < places[source].update;
            if behind {
                let asked = connections[source].as_mut().expect("whoever is ahead is another");
                fetch(asked, training, standing, places[source], gang, source)?;
            } else if gang.rank == source {
                let described = Described { progress: training.progress().clone(), standing: standing.clone() };
                serve(connections, &places, training, &described)?;
            }
            standing.checkpointed(places.iter().map(|place| place.checkpointed).max().unwrap_or(0));
            Ok(behind)
        })
    }
}

/// The lowest rank of the greatest update.
fn source(places: &[Place]) -> usize {
    let most = places.iter().map(|place| place.update).max();
    places.iter().position(|place| Some(place.update) == most).expect("a gang has members")
}

/// Everybody's place, by rank.
fn told(gang: &Gang, connections: &mut [Option<Connection>], own: Place) -> Result<Vec<Place>, SyncError> {
    for connection in connections.iter_mut().flatten() {
        connection.outgoing.send(Kind::Standing, 0, &own.encode())?;
    }
    let mut places = Vec::new();
    for (rank, connection) in connections.iter_mut().enumerate() {
        let Some(connection) = connection else {
            places.push(own);
            continue;
        };
        let bytes = connection.incoming.receive(Kind::Standing, 0, STANDING_BYTES)?;
        places.push(Place::decode(bytes).ok_or_else(|| SyncError::Disagrees {
            peer: gang.peer(rank),
            what: "its standing's length",
            got: bytes.len().to_string(),
            expected: STANDING_BYTES.to_string(),
        })?);
    }
    Ok(places)
}

/// Members train the same thing, and those at the same update hold the same bytes.
fn check(gang: &Gang, places: &[Place], source: usize, own: Place) -> Result<(), SyncError> {
    for (rank, place) in places.iter().enumerate() {
        let disagrees = |what, got: String, expected: String| {
            Err(SyncError::Disagrees { peer: gang.peer(rank), what, got, expected })
        };
        if place.origin != own.origin {
            return disagrees("its training", hex(&place.origin), hex(&own.origin));
        }
        if place.len != own.len {
            return disagrees("its number of parameters", place.len.to_string(), own.len.to_string());
        }
        let ahead = &places[source];
        if place.update == ahead.update && place.state != ahead.state {
            let what = "what it holds after the last update";
            return disagrees(what, hex(&place.state), hex(&ahead.state));
        }
    }
    Ok(())
}

/// Sends the state to those who are behind, each as soon as it asks.
fn serve(
    connections: &mut [Option<Connection>],
    places: &[Place],
    training: &Training,
    described: &Described,
) -> Result<(), SyncError> {
    let update = training.progress().update;
    let described = serde_json::to_vec(described).expect("progress and ledger are plain data");
    let streams: Vec<_> = connections.iter().flatten().map(Connection::stream).collect();
    let (ends, ended) = mpsc::channel();
    thread::scope(|scope| {
        for (connection, place) in connections.iter_mut().zip(places) {
            let Some(connection) = connection.as_mut().filter(|_| place.update < update) else { continue };
            let (ends, described) = (ends.clone(), &described);
            scope.spawn(move || {
                let mut send = || {
                    let Connection { incoming, outgoing, .. } = connection;
                    incoming.receive(Kind::Ask, update, 0)?;
                    outgoing.send(Kind::State, update, &(described.len() as u64).to_le_bytes())?;
                    outgoing.send_bytes(Kind::State, update, described)?;
                    training.vectors().iter().try_for_each(|vector| outgoing.send_floats(Kind::State, update, vector))
                };
                // The other end is this function's own.
                let _ = ends.send(send());
            });
        }
        drop(ends);
        let served = ended.iter().find(Result::is_err).unwrap_or(Ok(()));
        if served.is_err() {
            streams.iter().for_each(|stream| cut(stream));
        }
        served
    })
}

/// Asks for the state, and takes it in once it has the digest that was told.
fn fetch(
    connection: &mut Connection,
    training: &mut Training,
    standing: &mut Standing,
    place: Place,
    gang: &Gang,
    rank: usize,
) -> Result<(), SyncError> {
    let disagrees =
        |what, got: String, expected: String| Err(SyncError::Disagrees { peer: gang.peer(rank), what, got, expected });
    let update = place.update;
    connection.outgoing.send(Kind::Ask, update, &[])?;
    let incoming = &mut connection.incoming;
    let mut length = [0; 8];
    incoming.receive_bytes(Kind::State, update, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > DESCRIBED_BYTES {
        return disagrees("the length of its progress", length.to_string(), format!("at most {DESCRIBED_BYTES}"));
    }
    let mut described = vec![0; length as usize];
    incoming.receive_bytes(Kind::State, update, &mut described)?;
    let mut vectors = [(); 3].map(|()| vec![0.0; place.len as usize]);
    for vector in &mut vectors {
        incoming.receive_floats(Kind::State, update, vector)?;
    }
    let described: Described = match serde_json::from_slice(&described) {
        Ok(described) => described,
        Err(error) => return disagrees("its progress", error.to_string(), "progress and ledger".into()),
    };
    let got = digest(update, vectors.each_ref().map(Vec::as_slice), &described.progress.losses);
    if got != place.state || described.progress.update != update {
        return disagrees("the state it sent", hex(&got), hex(&place.state));
    }
    let [params, first, second] = vectors;
    if let Err(error) = training.resume(described.progress, State { params, first, second }) {
        return disagrees("the state it sent", error.to_string(), "one of this training".into());
    }
    *standing = Standing { settled: standing.settled, ..described.standing };
    Ok(())
}

fn place(training: &Training, standing: &Standing, origin: &Digest) -> Place {
    let (progress, vectors) = (training.progress(), training.vectors());
    Place {
        update: progress.update,
        settled: standing.settled,
        checkpointed: standing.checkpointed,
        len: vectors[0].len() as u64,
        origin: origin.bytes(),
        state: digest(progress.update, vectors, &progress.losses),
    }
}

fn digest(update: u32, vectors: [&[f32]; 3], losses: &[f32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&update.to_le_bytes());
    let mut bytes = Vec::new();
    for vector in vectors.into_iter().chain([losses]) {
        hasher.update(&(vector.len() as u64).to_le_bytes());
        for values in vector.chunks(1 << 16) {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            hasher.update(&bytes);
        }
    }
    *hasher.finalize().as_bytes()
}

fn hex(digest: &[u8; 32]) -> String {
    let hex: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    hex + "..."
}

impl Place {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(STANDING_BYTES);
        [self.update, self.settled, self.checkpointed].iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.origin);
        bytes.extend(self.state);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; STANDING_BYTES] = bytes.try_into().ok()?;
        let small = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let digest = |at: usize| bytes[at..at + 32].try_into().expect("32 bytes");
        let len = u64::from_le_bytes(bytes[12..20].try_into().expect("eight bytes"));
        let (origin, state) = (digest(20), digest(52));
        Some(Self { update: small(0), settled: small(4), checkpointed: small(8), len, origin, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back() {
        let place = Place { update: 7, settled: 6, checkpointed: 5, len: 1 << 40, origin: [1; 32], state: [2; 32] };
        assert_eq!(Place::decode(&place.encode()), Some(place));
        assert_eq!(Place::decode(&[0; 10]), None);
    }
}
