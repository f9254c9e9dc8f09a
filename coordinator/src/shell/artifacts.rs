//! Files by the digest of their bytes. A file is under its name only when it is whole and on disk.
//!
//! ```text
//! incoming/<n>  --all bytes written, digest known--> rename --> sha256/ab/<64 hexadecimal digits>
//! ```
//! Reading checks the digest again: a damaged file is an error that names it, never data.

use std::{
    collections::{HashSet, VecDeque},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt};
use insula_proto::ids::{Digest, Hasher};
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path as Key};

/// Largest artifact: an adapter with its optimizer state stays below 1 GiB for a 7B base with every projection at r 64.
pub const ARTIFACT_BYTES_MAX: u64 = 4 << 30;

/// Bytes of one message when an artifact travels.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Why an artifact cannot be stored or had.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Not there.
    #[error("artifact {0} is not in the store")]
    Missing(Digest),
    /// There, but its bytes are others.
    #[error("artifact {expected} is damaged: its bytes have digest {found}")]
    Damaged {
        /// What it is called.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// Beyond [`ARTIFACT_BYTES_MAX`].
    #[error("an artifact has more than {ARTIFACT_BYTES_MAX} bytes")]
    TooLarge,
    /// The disk refused.
    #[error("the artifact store failed: {0}")]
    Store(#[from] object_store::Error),
}

/// An artifact as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// What it is called.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
    /// When it was stored, Unix time.
    pub stored_ms: u64,
}

/// The store; cheap to clone.
#[derive(Debug, Clone)]
pub struct Artifacts {
    store: Arc<LocalFileSystem>,
    incoming: Arc<AtomicU64>,
    stored: Arc<Mutex<Lately>>,
}

/// Digests that were stored lately by this process: a report comes right after its files, which need not be looked for.
#[derive(Debug, Default)]
struct Lately {
    digests: HashSet<Digest>,
    in_order: VecDeque<Digest>,
}

/// Digests remembered: a second's artifacts of the largest fleet.
const STORED_MAX: usize = 4096;

impl Lately {
    fn add(&mut self, digest: &Digest) {
        if !self.digests.insert(digest.clone()) {
            return;
        }
        self.in_order.push_back(digest.clone());
        if self.in_order.len() > STORED_MAX
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.digests.remove(&oldest);
        }
    }
}

impl Artifacts {
    /// Opens the store in a folder that exists, and clears away what was never finished.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub async fn open(folder: &Path) -> Result<Self, ArtifactError> {
        let store = Arc::new(LocalFileSystem::new_with_prefix(folder)?.with_fsync(true));
        let left: Vec<_> = store.list(Some(&Key::from("incoming"))).try_collect().await?;
        for object in left {
            store.delete(&object.location).await?;
        }
        Ok(Self { store, incoming: Arc::default(), stored: Arc::default() })
    }

    /// Stores bytes that are at hand.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn put(&self, bytes: Bytes) -> Result<Digest, ArtifactError> {
        let mut incoming = self.incoming().await?;
        incoming.add(bytes).await?;
        Ok(incoming.finish().await?.0)
    }

    /// Begins storing bytes that arrive in pieces.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn incoming(&self) -> Result<Incoming, ArtifactError> {
        let number = self.incoming.fetch_add(1, Ordering::Relaxed);
        let key = Key::from(format!("incoming/{number}"));
        let upload = self.store.put_multipart(&key).await?;
        Ok(Incoming {
            store: self.store.clone(),
            stored: self.stored.clone(),
            key,
            upload,
            hasher: Hasher::default(),
            bytes: 0,
        })
    }

    /// Every artifact, with its size and when it was stored.
    pub fn all(&self) -> impl Stream<Item = Result<Stored, ArtifactError>> + Send + use<> {
        let stored = |object: object_store::ObjectMeta| {
            let hex = object.location.filename()?;
            let digest = format!("sha256:{hex}").parse().ok()?;
            Some(Stored { digest, bytes: object.size, stored_ms: stored_ms(&object) })
        };
        let listed = self.store.list(Some(&Key::from("sha256")));
        listed.map_err(ArtifactError::from).try_filter_map(move |object| std::future::ready(Ok(stored(object))))
    }

    /// When an artifact was stored, Unix time; `None` where it is not there.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn stored_ms(&self, digest: &Digest) -> Result<Option<u64>, ArtifactError> {
        match self.store.head(&key_of(digest)).await {
            Ok(object) => Ok(Some(stored_ms(&object))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes an artifact; one that is not there is no error.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn delete(&self, digest: &Digest) -> Result<(), ArtifactError> {
        let deleted = self.store.delete(&key_of(digest)).await;
        // After the file is gone: who stores it in between is not to be told that it is there.
        locked(&self.stored).digests.remove(digest);
        match deleted {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether an artifact is there, or was stored a moment ago; its bytes are not looked at.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn has(&self, digest: &Digest) -> Result<bool, ArtifactError> {
        if locked(&self.stored).digests.contains(digest) {
            return Ok(true);
        }
        match self.store.head(&key_of(digest)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether an artifact's file is there, asked of the file system at once: for whoever may block.
    pub fn is_here(&self, digest: &Digest) -> bool {
        let path = self.store.path_to_filesystem(&key_of(digest));
        path.is_ok_and(|path| std::fs::metadata(path).is_ok_and(|found| found.is_file()))
    }

    /// All of an artifact's bytes, checked.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub async fn get(&self, digest: &Digest) -> Result<Bytes, ArtifactError> {
        let mut whole = BytesMut::new();
        let mut chunks = std::pin::pin!(self.chunks(digest).await?);
        while let Some(chunk) = chunks.next().await {
            whole.extend_from_slice(&chunk?);
        }
        Ok(whole.freeze())
    }

    /// An artifact's bytes in chunks of [`CHUNK_BYTES`]. The last chunk comes only after the digest was checked, so
    /// whoever has the end has sound bytes.
    ///
    /// # Errors
    /// When it is missing; later, in the stream, when it is damaged.
    pub async fn chunks(
        &self,
        digest: &Digest,
    ) -> Result<impl Stream<Item = Result<Bytes, ArtifactError>> + Send + use<>, ArtifactError> {
        let found = self.store.get(&key_of(digest)).await.map_err(|error| match error {
            object_store::Error::NotFound { .. } => ArtifactError::Missing(digest.clone()),
            error => error.into(),
        })?;
        let reading = Reading {
            pieces: found.into_stream(),
            held: BytesMut::new(),
            hasher: Some(Hasher::default()),
            expected: digest.clone(),
        };
        Ok(futures::stream::try_unfold(reading, Reading::next))
    }
}

fn locked(stored: &Mutex<Lately>) -> MutexGuard<'_, Lately> {
    // Whoever panicked left at worst a digest that is forgotten late.
    stored.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stored_ms(object: &object_store::ObjectMeta) -> u64 {
    u64::try_from(object.last_modified.timestamp_millis()).unwrap_or(0)
}

fn key_of(digest: &Digest) -> Key {
    let hex = digest.hex();
    Key::from(format!("sha256/{}/{hex}", &hex[..2]))
}

/// An artifact on its way out.
struct Reading<S> {
    pieces: S,
    held: BytesMut,
    /// Taken when the last piece was read.
    hasher: Option<Hasher>,
    expected: Digest,
}

impl<S: Stream<Item = object_store::Result<Bytes>> + Unpin> Reading<S> {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, ArtifactError> {
        while let Some(hasher) = &mut self.hasher
            && self.held.len() <= CHUNK_BYTES
        {
            match self.pieces.try_next().await? {
                Some(piece) => {
                    hasher.update(&piece);
                    self.held.extend_from_slice(&piece);
                }
                None => self.check()?,
            }
        }
        if self.held.is_empty() {
            return Ok(None);
        }
        let chunk = self.held.split_to(self.held.len().min(CHUNK_BYTES)).freeze();
        Ok(Some((chunk, self)))
    }

    fn check(&mut self) -> Result<(), ArtifactError> {
        let found = self.hasher.take().expect("the last piece is read once").finish();
        let expected = self.expected.clone();
        if found == expected { Ok(()) } else { Err(ArtifactError::Damaged { expected, found }) }
    }
}

/// An artifact on its way in. Dropped unfinished, it leaves nothing under any digest.
pub struct Incoming {
    store: Arc<LocalFileSystem>,
    stored: Arc<Mutex<Lately>>,
    key: Key,
    upload: Box<dyn MultipartUpload>,
    hasher: Hasher,
    bytes: u64,
}

impl Incoming {
    /// Adds the next piece.
    ///
    /// # Errors
    /// When it grows too large or the disk refuses.
    pub async fn add(&mut self, piece: Bytes) -> Result<(), ArtifactError> {
        self.bytes += piece.len() as u64;
        if self.bytes > ARTIFACT_BYTES_MAX {
            self.upload.abort().await?;
            return Err(ArtifactError::TooLarge);
        }
        self.hasher.update(&piece);
        Ok(self.upload.put_part(piece.into()).await?)
    }

    /// Gives the file its name once it is on disk. The same bytes twice are one file.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn finish(mut self) -> Result<(Digest, u64), ArtifactError> {
        let digest = self.hasher.finish();
        self.upload.complete().await?;
        // A file under this digest already is replaced by its equal: whole before, whole after, and mended if damaged.
        self.store.rename(&self.key, &key_of(&digest)).await?;
        locked(&self.stored).add(&digest);
        Ok((digest, self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store() -> (tempfile::TempDir, Artifacts) {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(folder.path()).await.unwrap();
        (folder, artifacts)
    }

    #[tokio::test]
    async fn bytes_come_back_under_their_digest_in_bounded_chunks() {
        let (_folder, artifacts) = store().await;
        for size in [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES - 7] {
            let bytes = Bytes::from((0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>());
            let digest = artifacts.put(bytes.clone()).await.unwrap();
            assert_eq!(artifacts.put(bytes.clone()).await.unwrap(), digest);
            assert_eq!((digest.clone(), artifacts.has(&digest).await.unwrap()), (Digest::of(&bytes), true));
            let chunks: Vec<_> = artifacts.chunks(&digest).await.unwrap().try_collect().await.unwrap();
            assert!(chunks.iter().all(|chunk| chunk.len() <= CHUNK_BYTES));
            assert_eq!(chunks.concat(), bytes);
        }
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "the test damages a file")]
    async fn a_damaged_file_is_an_error_that_names_it_and_a_missing_one_too() {
        let (folder, artifacts) = store().await;
        let digest = artifacts.put(Bytes::from_static(b"sound")).await.unwrap();
        let file = folder.path().join(format!("sha256/{}/{}", &digest.hex()[..2], digest.hex()));
        std::fs::write(file, b"spoilt").unwrap();
        let error = artifacts.get(&digest).await.unwrap_err().to_string();
        assert_eq!(error, format!("artifact {digest} is damaged: its bytes have digest {}", Digest::of(b"spoilt")));
        let other = Digest::of(b"other");
        assert!(matches!(artifacts.get(&other).await, Err(ArtifactError::Missing(d)) if d == other));
        assert!(!artifacts.has(&other).await.unwrap());
    }

    #[tokio::test]
    async fn what_was_never_finished_is_cleared_away() {
        let (folder, artifacts) = store().await;
        let mut incoming = artifacts.incoming().await.unwrap();
        incoming.add(Bytes::from_static(b"half")).await.unwrap();
        drop(incoming);
        Artifacts::open(folder.path()).await.unwrap();
        assert!(!artifacts.has(&Digest::of(b"half")).await.unwrap());
    }
}
