//! What the keys of gangs are made of: 32 random bytes that a state directory keeps, so that all members of a generation
//! are given the same key, whenever the coordinator restarts.
#![expect(clippy::disallowed_methods, reason = "the room that keeps the secret's file")]

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
};

use insula_proto::ids::{JobId, TaskIndex};
use sha2::{Digest as _, Sha256};

/// Bytes of the secret, and of a key.
const BYTES: usize = 32;

/// The secret; cheap to clone.
#[derive(Clone)]
pub struct Secret(Arc<[u8; BYTES]>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// The secret of a state directory, made where there is none, readable by its owner alone.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is not 32 bytes long.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join("secret");
        match fs::read(&path) {
            Ok(bytes) => {
                let found = bytes.len();
                let wrong = |_| io::Error::other(format!("{} has {found} bytes: expected {BYTES}", path.display()));
                bytes.try_into().map(|bytes| Self(Arc::new(bytes))).map_err(wrong)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::make(&path),
            Err(error) => Err(error),
        }
    }

    fn make(path: &Path) -> io::Result<Self> {
        let random = Sha256::new().chain_update(uuid::Uuid::new_v4()).chain_update(uuid::Uuid::new_v4());
        let bytes: [u8; BYTES] = random.finalize().into();
        // Whole or not at all: a file cut short by a crash would refuse the next start.
        let unfinished = path.with_extension("new");
        let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        Ok(Self(Arc::new(bytes)))
    }

    /// The key of a gang's generation.
    pub fn key_of(&self, job: JobId, task: TaskIndex, generation: u32) -> [u8; BYTES] {
        let of = Sha256::new().chain_update(*self.0).chain_update(job.0.to_le_bytes());
        of.chain_update(task.0.to_le_bytes()).chain_update(generation.to_le_bytes()).finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_keeps_its_secret_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let key = |secret: &Secret, generation| secret.key_of(JobId(1), TaskIndex(0), generation);
        let first = Secret::open(folder.path()).unwrap();
        let again = Secret::open(folder.path()).unwrap();
        assert_eq!(key(&first, 3), key(&again, 3));
        assert_ne!(key(&first, 3), key(&first, 4));
        fs::write(folder.path().join("secret"), b"short").unwrap();
        let error = Secret::open(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("has 5 bytes: expected 32"), "{error}");
    }
}
