//! What travels between members: bounded frames that are checksummed and authenticated.
//!
//! ```text
//! dialler                         listener
//!   hello: who, to whom, nonce  ->            both: key of the connection = keyed hash of hello and welcome
//!                               <- welcome: nonce
//!   frames, each with a number  <->  frames, each with a number
//! ```
//!
//! Hello and welcome carry a keyed BLAKE3 tag under the gang's key; frames carry two under the connection's, one of the
//! header and one of everything, so that a length is believed before a payload is waited for. The connection's key is
//! another for each connection and each direction, so a frame of another connection, direction, generation or place in
//! the sequence does not pass, whoever recorded it.

use std::fmt;

/// Most bytes a frame carries.
pub const PAYLOAD_BYTES: usize = 1 << 20;
/// Bytes of a tag.
pub const TAG_BYTES: usize = 32;
/// Bytes in front of a frame's payload: its header and the header's tag.
pub const HEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// Bytes of a hello.
pub const HELLO_BYTES: usize = 56 + TAG_BYTES;
/// Bytes of a welcome.
pub const WELCOME_BYTES: usize = 24 + TAG_BYTES;
const HEADER_BYTES: usize = 28;
/// The protocol and its version; another one is refused.
const MAGIC: [u8; 8] = *b"insulag2";

/// What a frame is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Where a member stands: its last update and the digest of its state.
    Standing = 1,
    /// A member asks another for its state.
    Ask = 2,
    /// The state.
    State = 3,
    /// A member has computed its slots; what it announces.
    Here = 4,
    /// Losses and subtrees.
    Part = 5,
    /// A finished piece of the sum.
    Finished = 6,
    /// Everything was reported: nothing is left to do.
    Done = 7,
    /// The GPU a member could join with.
    Gpu = 8,
    /// What the members' GPUs find each other by.
    GpuGroup = 9,
}

/// Why bytes are not the frame that was to come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes are not what was sent, or the sender has another key.
    #[error("{0} is damaged or of another gang: its tag does not fit")]
    Damaged(&'static str),
    /// Something else than insula's, or another version of it.
    #[error("not a frame of this version of insula: it begins with {0:02x?}")]
    Foreign([u8; 8]),
    /// A frame for another time.
    #[error("frame has {what} {got}, expected {expected}")]
    Unexpected {
        /// Which part of the header.
        what: &'static str,
        /// What it is.
        got: u64,
        /// What was to come.
        expected: u64,
    },
    /// A frame longer than what is left to come.
    #[error("frame of {got} bytes, at most {most} expected")]
    Long {
        /// Its length.
        got: u64,
        /// What was left to come.
        most: u64,
    },
}

/// A key that never shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// A gang's key.
    #[must_use]
    pub fn of_gang(key: [u8; 32]) -> Self {
        Self(key)
    }

    fn tag(&self, parts: &[&[u8]]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        parts.iter().for_each(|part| {
            hasher.update(part);
        });
        hasher.finalize()
    }

    /// Whether `tag` is that of `parts`; takes as long for any wrong one.
    fn fits(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        tag.try_into().is_ok_and(|tag: [u8; TAG_BYTES]| self.tag(parts) == blake3::Hash::from_bytes(tag))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The keys of a connection: of what the dialler sends, and of what the listener does.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Of the dialler's frames.
    pub dialler: Key,
    /// Of the listener's frames.
    pub listener: Key,
}

impl Keys {
    /// The keys of the connection that began with these.
    #[must_use]
    pub fn of(gang: &Key, hello: &[u8; HELLO_BYTES], welcome: &[u8; WELCOME_BYTES]) -> Self {
        let key = |who: &[u8]| Key(*gang.tag(&[b"connection", who, hello, welcome]).as_bytes());
        Self { dialler: key(b"dialler"), listener: key(b"listener") }
    }
}

/// What a dialler says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The generation it forms.
    pub generation: u32,
    /// Its rank there.
    pub rank: u32,
    /// Its lease.
    pub from: u64,
    /// The listener's lease.
    pub to: u64,
    /// Another each time.
    pub nonce: [u8; 16],
}

impl Hello {
    /// Its bytes, tagged.
    #[must_use]
    pub fn encode(&self, key: &Key) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.generation.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.rank.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.from.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.to.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.nonce);
        let (said, tag) = bytes.split_at_mut(HELLO_BYTES - TAG_BYTES);
        tag.copy_from_slice(key.tag(&[b"hello", said]).as_bytes());
        bytes
    }

    /// What bytes claim to be; [`Hello::is_genuine`] says whether to believe it.
    ///
    /// # Errors
    /// When they are not a hello of this version.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, FrameError> {
        let magic: [u8; 8] = array(bytes, 0);
        if magic != MAGIC {
            return Err(FrameError::Foreign(magic));
        }
        Ok(Self {
            generation: u32::from_le_bytes(array(bytes, 8)),
            rank: u32::from_le_bytes(array(bytes, 12)),
            from: u64::from_le_bytes(array(bytes, 16)),
            to: u64::from_le_bytes(array(bytes, 24)),
            nonce: array(bytes, 32),
        })
    }

    /// Whether whoever made these bytes has the key.
    #[must_use]
    pub fn is_genuine(bytes: &[u8; HELLO_BYTES], key: &Key) -> bool {
        let (said, tag) = bytes.split_at(HELLO_BYTES - TAG_BYTES);
        key.fits(&[b"hello", said], tag)
    }
}

/// What a listener answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Welcome {
    /// The connection stands.
    Come {
        /// Another each time.
        nonce: [u8; 16],
    },
    /// The dialler is of another generation: the listener's, and nothing is to come of this. It carries no proof.
    Generation(u32),
    /// The dialler's hello does not fit the gang's key.
    Key,
}

impl Welcome {
    /// Its bytes, tagged as the answer to `hello`.
    #[must_use]
    pub fn encode(&self, key: &Key, hello: &[u8; HELLO_BYTES]) -> [u8; WELCOME_BYTES] {
        let mut bytes = [0; WELCOME_BYTES];
        bytes[..4].copy_from_slice(&MAGIC[..4]);
        match self {
            Self::Come { nonce } => bytes[8..24].copy_from_slice(nonce),
            Self::Generation(generation) => {
                bytes[4] = 1;
                bytes[8..12].copy_from_slice(&generation.to_le_bytes());
            }
            Self::Key => bytes[4] = 2,
        }
        let (said, tag) = bytes.split_at_mut(WELCOME_BYTES - TAG_BYTES);
        tag.copy_from_slice(key.tag(&[b"welcome", said, hello]).as_bytes());
        bytes
    }

    /// Reads an answer to `hello`. A refusal is believed as it is: all it does is end the connection.
    ///
    /// # Errors
    /// When the bytes are no answer, or a welcome of somebody without the key.
    pub fn decode(bytes: &[u8; WELCOME_BYTES], key: &Key, hello: &[u8; HELLO_BYTES]) -> Result<Self, FrameError> {
        if bytes[..4] != MAGIC[..4] {
            return Err(FrameError::Foreign(array(bytes, 0)));
        }
        let (said, tag) = bytes.split_at(WELCOME_BYTES - TAG_BYTES);
        match bytes[4] {
            1 => Ok(Self::Generation(u32::from_le_bytes(array(bytes, 8)))),
            2 => Ok(Self::Key),
            _ if !key.fits(&[b"welcome", said, hello], tag) => Err(FrameError::Damaged("the welcome")),
            _ => Ok(Self::Come { nonce: array(bytes, 8) }),
        }
    }
}

/// What stands in front of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is of.
    pub kind: Kind,
    /// The gang's generation.
    pub generation: u32,
    /// The update it is for.
    pub update: u32,
    /// Its place among the frames of this direction, from 0.
    pub sequence: u64,
}

impl Header {
    /// The bytes in front of `payload`, and the tag behind it.
    ///
    /// # Panics
    /// When the payload is longer than a frame carries.
    #[must_use]
    pub fn seal(&self, key: &Key, payload: &[u8]) -> ([u8; HEAD_BYTES], [u8; TAG_BYTES]) {
        assert!(payload.len() <= PAYLOAD_BYTES, "whoever sends cuts into frames");
        let mut head = [0; HEAD_BYTES];
        head[..4].copy_from_slice(&MAGIC[4..]);
        head[4] = self.kind as u8;
        head[8..12].copy_from_slice(&self.generation.to_le_bytes());
        head[12..16].copy_from_slice(&self.update.to_le_bytes());
        head[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        head[24..28].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        let (header, tag) = head.split_at_mut(HEADER_BYTES);
        tag.copy_from_slice(key.tag(&[b"header", header]).as_bytes());
        let tag = *key.tag(&[b"frame", header, payload]).as_bytes();
        (head, tag)
    }

    /// The length of the payload behind these bytes, which are to say what `self` says; at most `most`.
    ///
    /// # Errors
    /// When they are damaged or say anything else.
    pub fn open(&self, key: &Key, head: &[u8; HEAD_BYTES], most: usize) -> Result<usize, FrameError> {
        let (header, tag) = head.split_at(HEADER_BYTES);
        if !key.fits(&[b"header", header], tag) {
            return Err(FrameError::Damaged("the header of a frame"));
        }
        let words = [
            ("generation", u64::from(u32::from_le_bytes(array(header, 8))), u64::from(self.generation)),
            ("kind", u64::from(header[4]), self.kind as u64),
            ("update", u64::from(u32::from_le_bytes(array(header, 12))), u64::from(self.update)),
            ("number", u64::from_le_bytes(array(header, 16)), self.sequence),
        ];
        if let Some(&(what, got, expected)) = words.iter().find(|(_, got, expected)| got != expected) {
            return Err(FrameError::Unexpected { what, got, expected });
        }
        let (length, most) = (u32::from_le_bytes(array(header, 24)) as usize, most.min(PAYLOAD_BYTES));
        if length > most {
            return Err(FrameError::Long { got: length as u64, most: most as u64 });
        }
        Ok(length)
    }

    /// Checks the payload that came behind `head`.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn check(key: &Key, head: &[u8; HEAD_BYTES], payload: &[u8], tag: &[u8; TAG_BYTES]) -> Result<(), FrameError> {
        let fits = key.fits(&[b"frame", &head[..HEADER_BYTES], payload], tag);
        if fits { Ok(()) } else { Err(FrameError::Damaged("a frame")) }
    }
}

/// `N` bytes from `at`, of bytes that are long enough.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Key {
        Key::of_gang([byte; 32])
    }

    const HEADER: Header = Header { kind: Kind::Part, generation: 3, update: 17, sequence: 5 };

    fn opened(key: &Key, expected: &Header, frame: &[u8], most: usize) -> Result<Vec<u8>, FrameError> {
        let head = array(frame, 0);
        let length = expected.open(key, &head, most)?;
        let payload = &frame[HEAD_BYTES..HEAD_BYTES + length];
        Header::check(key, &head, payload, &array(frame, HEAD_BYTES + length))?;
        Ok(payload.to_vec())
    }

    fn frame(key: &Key, payload: &[u8]) -> Vec<u8> {
        let (head, tag) = HEADER.seal(key, payload);
        [&head[..], payload, &tag].concat()
    }

    #[test]
    fn a_frame_with_any_bit_flipped_is_refused() {
        let frame = frame(&key(1), b"some floats");
        assert_eq!(opened(&key(1), &HEADER, &frame, 64).unwrap(), b"some floats");
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let refused = opened(&key(1), &HEADER, &damaged, 64).unwrap_err();
            assert!(matches!(refused, FrameError::Damaged(_)), "bit {bit}: {refused:?}");
        }
        assert_eq!(
            opened(&key(2), &HEADER, &frame, 64).unwrap_err().to_string(),
            "the header of a frame is damaged or of another gang: its tag does not fit"
        );
    }

    #[test]
    fn a_frame_for_another_time_is_refused_by_name() {
        let frame = frame(&key(1), b"some floats");
        let refused = |expected: Header| opened(&key(1), &expected, &frame, 64).unwrap_err().to_string();
        assert_eq!(refused(Header { generation: 4, ..HEADER }), "frame has generation 3, expected 4");
        assert_eq!(refused(Header { update: 18, ..HEADER }), "frame has update 17, expected 18");
        assert_eq!(refused(Header { sequence: 6, ..HEADER }), "frame has number 5, expected 6");
        assert_eq!(refused(Header { kind: Kind::Done, ..HEADER }), "frame has kind 5, expected 7");
        let long = opened(&key(1), &HEADER, &frame, 10).unwrap_err().to_string();
        assert_eq!(long, "frame of 11 bytes, at most 10 expected");
    }

    #[test]
    fn hello_and_welcome_prove_the_key_and_make_one_of_each_connection() {
        let hello = Hello { generation: 3, rank: 1, from: 9, to: 4, nonce: [5; 16] };
        let bytes = hello.encode(&key(1));
        assert_eq!(Hello::decode(&bytes), Ok(hello));
        assert!(Hello::is_genuine(&bytes, &key(1)) && !Hello::is_genuine(&bytes, &key(2)));
        let other = Hello { nonce: [6; 16], ..hello }.encode(&key(1));
        let welcome = Welcome::Come { nonce: [7; 16] }.encode(&key(1), &bytes);
        assert_eq!(Welcome::decode(&welcome, &key(1), &bytes), Ok(Welcome::Come { nonce: [7; 16] }));
        assert!(Welcome::decode(&welcome, &key(1), &other).is_err(), "an answer to another hello");
        assert!(Welcome::decode(&welcome, &key(2), &bytes).is_err());
        let (keys, others) = (Keys::of(&key(1), &bytes, &welcome), Keys::of(&key(1), &other, &welcome));
        assert!(keys.dialler != keys.listener && keys.dialler != others.dialler);
        let stale = Welcome::Generation(8).encode(&key(1), &bytes);
        assert_eq!(Welcome::decode(&stale, &key(2), &bytes), Ok(Welcome::Generation(8)));
        assert!(matches!(Hello::decode(&[b'G'; HELLO_BYTES]), Err(FrameError::Foreign(_))));
    }
}
