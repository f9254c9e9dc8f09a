//! One connection between two members: frames out, frames in, each direction for itself.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::Arc,
};

use super::socket::has_ended;
use crate::sync::{
    Peer, SyncError,
    frame::{HEAD_BYTES, Header, Key, Keys, Kind, PAYLOAD_BYTES, TAG_BYTES},
};

/// Numbers in a full frame.
const FLOATS: usize = PAYLOAD_BYTES / size_of::<f32>();

/// A connection that both sides have proved themselves on.
#[derive(Debug)]
pub struct Connection {
    /// What this member sends.
    pub outgoing: Direction,
    /// What the other sends.
    pub incoming: Direction,
    stream: Arc<TcpStream>,
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Direction {
    peer: Peer,
    stream: Arc<TcpStream>,
    key: Key,
    generation: u32,
    /// Frames so far.
    sequence: u64,
    /// Head, payload and tag of the frame in hand.
    frame: Vec<u8>,
}

impl Connection {
    /// A connection from its first frame on.
    pub fn new(stream: TcpStream, peer: Peer, generation: u32, keys: &Keys, dialled: bool) -> Self {
        let stream = Arc::new(stream);
        let (out, into) = if dialled { (&keys.dialler, &keys.listener) } else { (&keys.listener, &keys.dialler) };
        let direction = |key: &Key| Direction {
            peer: peer.clone(),
            stream: Arc::clone(&stream),
            key: key.clone(),
            generation,
            sequence: 0,
            frame: Vec::new(),
        };
        Self { outgoing: direction(out), incoming: direction(into), stream }
    }

    /// Whether the other member has ended it, though frames of it may be left to read.
    pub fn has_ended(&self) -> bool {
        has_ended(&self.stream)
    }

    /// Its socket.
    pub fn stream(&self) -> Arc<TcpStream> {
        Arc::clone(&self.stream)
    }
}

/// Ends a connection, and with it whatever waits for it.
pub fn cut(stream: &TcpStream) {
    // It fails where the other side was faster, which is as well.
    let _ = stream.shutdown(Shutdown::Both);
}

impl Direction {
    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Sends one frame.
    pub fn send(&mut self, kind: Kind, update: u32, payload: &[u8]) -> Result<(), SyncError> {
        self.send_filled(kind, update, |frame| frame.extend_from_slice(payload))
    }

    /// Sends bytes in as many frames as they take.
    pub fn send_bytes(&mut self, kind: Kind, update: u32, bytes: &[u8]) -> Result<(), SyncError> {
        bytes.chunks(PAYLOAD_BYTES).try_for_each(|payload| self.send(kind, update, payload))
    }

    /// Sends numbers in as many frames as they take.
    pub fn send_floats(&mut self, kind: Kind, update: u32, values: &[f32]) -> Result<(), SyncError> {
        values.chunks(FLOATS).try_for_each(|values| {
            let fill = |frame: &mut Vec<u8>| frame.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            self.send_filled(kind, update, fill)
        })
    }

    fn send_filled(&mut self, kind: Kind, update: u32, fill: impl FnOnce(&mut Vec<u8>)) -> Result<(), SyncError> {
        let header = Header { kind, generation: self.generation, update, sequence: self.sequence };
        self.frame.clear();
        self.frame.resize(HEAD_BYTES, 0);
        fill(&mut self.frame);
        let (head, tag) = header.seal(&self.key, &self.frame[HEAD_BYTES..]);
        self.frame[..HEAD_BYTES].copy_from_slice(&head);
        self.frame.extend_from_slice(&tag);
        let sent = (&*self.stream).write_all(&self.frame);
        sent.map_err(|problem| self.broken("sending", problem))?;
        self.sequence += 1;
        Ok(())
    }

    /// Receives one frame of at most `most` bytes.
    pub fn receive(&mut self, kind: Kind, update: u32, most: usize) -> Result<&[u8], SyncError> {
        let header = Header { kind, generation: self.generation, update, sequence: self.sequence };
        let mut head = [0; HEAD_BYTES];
        let read = (&*self.stream).read_exact(&mut head);
        read.map_err(|problem| self.broken("waiting for it", problem))?;
        let length = header.open(&self.key, &head, most).map_err(|problem| self.wrong(problem))?;
        self.frame.resize(length + TAG_BYTES, 0);
        let read = (&*self.stream).read_exact(&mut self.frame);
        read.map_err(|problem| self.broken("receiving", problem))?;
        let (payload, tag) = self.frame.split_at(length);
        let tag = tag.try_into().expect("a frame ends with its tag");
        Header::check(&self.key, &head, payload, tag).map_err(|problem| self.wrong(problem))?;
        self.sequence += 1;
        Ok(&self.frame[..length])
    }

    /// Receives as many bytes as fit, from as many frames as the other took.
    pub fn receive_bytes(&mut self, kind: Kind, update: u32, mut bytes: &mut [u8]) -> Result<(), SyncError> {
        while !bytes.is_empty() {
            let payload = self.receive(kind, update, bytes.len())?;
            let (filled, left) = bytes.split_at_mut(payload.len());
            filled.copy_from_slice(payload);
            bytes = left;
        }
        Ok(())
    }

    /// Receives as many numbers as fit, cut into frames as [`Direction::send_floats`] does.
    pub fn receive_floats(&mut self, kind: Kind, update: u32, values: &mut [f32]) -> Result<(), SyncError> {
        for values in values.chunks_mut(FLOATS) {
            let payload = self.receive(kind, update, size_of_val(values))?;
            let (numbers, _) = payload.as_chunks::<4>();
            if numbers.len() != values.len() || payload.len() != size_of_val(values) {
                let (got, expected) = (payload.len().to_string(), size_of_val(values).to_string());
                return Err(SyncError::Disagrees { peer: self.peer.clone(), what: "a frame's length", got, expected });
            }
            values.iter_mut().zip(numbers).for_each(|(value, number)| *value = f32::from_le_bytes(*number));
        }
        Ok(())
    }

    fn broken(&self, doing: &'static str, problem: std::io::Error) -> SyncError {
        SyncError::Broken { peer: self.peer.clone(), doing, problem }
    }

    fn wrong(&self, problem: crate::sync::frame::FrameError) -> SyncError {
        SyncError::Frame { peer: self.peer.clone(), problem }
    }
}
