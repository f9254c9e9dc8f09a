//! Names of things: every id is its own type, so that none can be passed for another.
//!
//! ```compile_fail
//! use insula_proto::ids::{JobId, LeaseId};
//! let job: JobId = LeaseId(3);
//! ```

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A submitted job; counts up from 1, written `job-7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job-{}", self.0)
    }
}

/// Text that was expected to be a job's name.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not a job id: expected 'job-N', such as job-7")]
pub struct NotAJobId(String);

impl FromStr for JobId {
    type Err = NotAJobId;
    fn from_str(text: &str) -> Result<Self, NotAJobId> {
        let digits = text.strip_prefix("job-").unwrap_or(text);
        digits.parse().map(JobId).map_err(|_| NotAJobId(text.to_owned()))
    }
}

/// A task of a job: its place in the job's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskIndex(pub u32);

/// One registration of a worker; a worker that registers again gets a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId(pub u64);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker-{}", self.0)
    }
}

/// A lease; its number only grows, so it is the fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lease-{}", self.0)
    }
}

/// SHA-256 of some bytes, written `sha256:<64 hexadecimal digits>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The 64 hexadecimal digits alone.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The 32 bytes.
    pub fn bytes(&self) -> [u8; 32] {
        let digit = |place: usize| self.hex().as_bytes()[place] as char;
        let nibble = |place| digit(place).to_digit(16).expect("a digest is hexadecimal") as u8;
        std::array::from_fn(|i| nibble(2 * i) << 4 | nibble(2 * i + 1))
    }

    /// The whole text, `sha256:...`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Computes a [`Digest`] of bytes that arrive in pieces.
#[derive(Default, Clone)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Adds the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of all pieces in order.
    pub fn finish(self) -> Digest {
        let mut text = String::from("sha256:");
        for byte in self.0.finalize() {
            text.push(char::from_digit(u32::from(byte >> 4), 16).expect("a nibble is below 16"));
            text.push(char::from_digit(u32::from(byte & 15), 16).expect("a nibble is below 16"));
        }
        Digest(text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that was expected to be a digest.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not a digest: expected 'sha256:' and 64 lowercase hexadecimal digits")]
pub struct NotADigest(String);

impl TryFrom<String> for Digest {
    type Error = NotADigest;
    fn try_from(text: String) -> Result<Self, NotADigest> {
        let hex = text.strip_prefix("sha256:").unwrap_or("");
        let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if hex.len() == 64 && hex.chars().all(is_digit) { Ok(Self(text)) } else { Err(NotADigest(text)) }
    }
}

impl FromStr for Digest {
    type Err = NotADigest;
    fn from_str(text: &str) -> Result<Self, NotADigest> {
        text.to_owned().try_into()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_sha256_in_hexadecimal_and_parses_back() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(digest.as_str().parse::<Digest>().unwrap(), digest);
        assert!("sha256:BA".parse::<Digest>().is_err());
    }

    #[test]
    fn a_job_id_reads_with_and_without_its_prefix() {
        assert_eq!("job-7".parse::<JobId>().unwrap(), JobId(7));
        assert_eq!("7".parse::<JobId>().unwrap(), JobId(7));
        assert!("lease-7".parse::<JobId>().is_err());
    }
}
