//! Corpora that were read lately: a sweep's second submit costs a look at its files, not a reading of them.
//!
//! ```text
//! how the corpus is asked for  --+
//! every file's name, size,       +--> key --known, shards all there--> what was read then
//! times and inode              --+      '--otherwise, or in doubt----> read, store, remember
//! ```
//! In doubt it is read again: where a file changed so lately that another change might show the same time, where files
//! changed while they were read, where there are too many of them to look at, where a shard has gone from the store, or
//! may go because no job was accepted with it.
#![expect(clippy::disallowed_methods, reason = "the room that looks at corpus files")]

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use insula_proto::{ids::Digest, job::JobSpec};
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{
    artifacts::Artifacts,
    sharding::{Sharded, ShardingError, shard_job},
};

/// Readings remembered: more corpora than one lab sweeps over in a day.
const KNOWN_MAX: usize = 16;

/// Files and folders looked at for a key; a corpus of more is read every time. IEMOCAP has about 500.
const FILES_MAX: usize = 10_000;

/// Folders within folders; no layout has more than four.
const DEPTH_MAX: usize = 8;

/// A file changed this lately may change again without its times showing it: no file system counts in more than 2 s.
const LATELY: Duration = Duration::from_secs(2);

/// What a reading depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    asked: String,
    files: Vec<Seen>,
}

/// A file or folder as it stood.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    path: PathBuf,
    bytes: u64,
    place: (u64, u64),
    changed: [(i64, i64); 2],
}

/// Readings, the latest first.
type Known = Mutex<VecDeque<(Key, Arc<Sharded>)>>;

/// The readings, and the turn of who reads.
#[derive(Debug)]
pub struct Imports {
    known: Arc<Known>,
    /// One import at a time: each takes all cores.
    turn: Semaphore,
}

impl Default for Imports {
    fn default() -> Self {
        Self { known: Arc::default(), turn: Semaphore::new(1) }
    }
}

impl Imports {
    /// The shards of a job's corpora, all of them in the store. `is_kept` says of a manifest's digest whether the journal
    /// holds it: no pruning then deletes its shards.
    ///
    /// # Errors
    /// As [`shard_job`].
    pub async fn import(
        &self,
        spec: &JobSpec,
        artifacts: &Artifacts,
        is_kept: impl Fn(&Digest) -> bool + Clone + Send + 'static,
    ) -> Result<Arc<Sharded>, ShardingError> {
        if let Ok(sharded) = self.look(spec, artifacts, is_kept.clone()).await? {
            return Ok(sharded);
        }
        let _turn = self.turn.acquire().await.expect("the semaphore is never closed");
        // Whoever had the turn before may have read the same.
        let before = match self.look(spec, artifacts, is_kept.clone()).await? {
            Ok(sharded) => return Ok(sharded),
            Err(before) => before,
        };
        let sharded = Arc::new(shard_job(spec, artifacts).await?);
        if let Some(before) = before.filter(|before| before.is_settled())
            && let Err(Some(after)) = self.look(spec, artifacts, is_kept).await?
            && after.key == before.key
        {
            self.remember(before.key, sharded.clone());
        }
        Ok(sharded)
    }

    /// What was read of the corpora as they lie, as long as its shards are there; else how they lie, `None` where they
    /// cannot be looked at, which reading them then explains. One trip to a thread that may wait for the disk.
    async fn look(
        &self,
        spec: &JobSpec,
        artifacts: &Artifacts,
        is_kept: impl Fn(&Digest) -> bool + Send + 'static,
    ) -> Result<Result<Arc<Sharded>, Option<Look>>, ShardingError> {
        let asked = (spec.all_corpora(), &spec.labels, &spec.evaluate.dialogues);
        let asked = serde_json::to_string(&asked).expect("settings have only text keys");
        let paths: Vec<_> = spec.all_corpora().into_iter().map(|(_, corpus)| PathBuf::from(&corpus.path)).collect();
        let (known, artifacts) = (self.known.clone(), artifacts.clone());
        let looking = spawn_blocking(move || {
            let (at, mut files) = (SystemTime::now(), Vec::new());
            if !paths.iter().all(|path| matches!(see(path, 0, &mut files), Ok(true))) {
                return Err(None);
            }
            let key = Key { asked, files };
            let found = locked(&known).iter().find(|(known, _)| *known == key).map(|(_, sharded)| sharded.clone());
            let whole = |sharded: &Arc<Sharded>| {
                let mut shards = sharded.manifest.splits.values().flat_map(|split| &split.shards);
                is_kept(&sharded.manifest.digest) && shards.all(|shard| artifacts.is_here(&shard.digest))
            };
            found.filter(whole).ok_or(Some(Look { key, at }))
        });
        Ok(looking.await?)
    }

    fn remember(&self, key: Key, sharded: Arc<Sharded>) {
        let mut list = locked(&self.known);
        list.retain(|(known, _)| *known != key);
        list.push_front((key, sharded));
        list.truncate(KNOWN_MAX);
    }
}

fn locked(known: &Known) -> MutexGuard<'_, VecDeque<(Key, Arc<Sharded>)>> {
    // Whoever panicked left whole entries behind.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A key, and when it was made.
#[derive(Debug, Clone)]
struct Look {
    key: Key,
    at: SystemTime,
}

impl Look {
    /// Whether every file was left alone for long enough that a later change shows.
    fn is_settled(&self) -> bool {
        let at = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let latest = i64::try_from(at.saturating_sub(LATELY).as_secs()).unwrap_or(i64::MAX);
        self.key.files.iter().flat_map(|seen| seen.changed).all(|(seconds, _)| seconds < latest)
    }
}

/// Looks at a file, or at a folder and all in it; `false`: there is too much of it.
fn see(path: &Path, depth: usize, files: &mut Vec<Seen>) -> io::Result<bool> {
    if files.len() >= FILES_MAX || depth > DEPTH_MAX {
        return Ok(false);
    }
    // Links are followed, as the reader does.
    let found = fs::metadata(path)?;
    files.push(Seen {
        path: path.to_path_buf(),
        bytes: found.len(),
        place: (found.dev(), found.ino()),
        changed: [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())],
    });
    if !found.is_dir() {
        return Ok(true);
    }
    let mut names = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    for name in names {
        if !see(&name, depth + 1, files)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use insula_proto::corpus::Split;

    use super::*;

    struct Desk {
        corpus: tempfile::TempDir,
        _store: tempfile::TempDir,
        store: PathBuf,
        artifacts: Artifacts,
        imports: Imports,
    }

    impl Desk {
        async fn new() -> Self {
            let (corpus, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let artifacts = Artifacts::open(store.path()).await.unwrap();
            let desk = Self {
                store: store.path().to_path_buf(),
                _store: store,
                corpus,
                artifacts,
                imports: Imports::default(),
            };
            Split::ALL.iter().for_each(|split| desk.write(&format!("{split}.csv"), "Hello"));
            desk
        }

        fn write(&self, name: &str, words: &str) {
            let head = "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID";
            let text = format!("{head}\n{words} of {name}.,Ross,joy,0,0\nGo away.,Rachel,anger,0,1\n");
            fs::write(self.corpus.path().join(name), text).unwrap();
        }

        /// Long ago, as far as the files say.
        fn settle(&self) {
            let long_ago = SystemTime::now() - Duration::from_secs(3600);
            for split in Split::ALL {
                let path = self.corpus.path().join(format!("{split}.csv"));
                fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
            }
        }

        fn spec(&self) -> JobSpec {
            let mut spec = JobSpec::default();
            spec.corpus.path = self.corpus.path().to_string_lossy().into_owned();
            spec
        }

        async fn import(&self) -> Arc<Sharded> {
            self.imports.import(&self.spec(), &self.artifacts, |_| true).await.unwrap()
        }
    }

    /// The change of inode times cannot be set back by a program, so the test waits until they are old enough.
    async fn until_old_enough() {
        tokio::time::sleep(LATELY + Duration::from_millis(1100)).await;
    }

    #[tokio::test]
    async fn a_corpus_is_read_once_as_long_as_nothing_changes() {
        let desk = Desk::new().await;
        // Files that were written just now are read every time.
        let first = desk.import().await;
        assert!(!Arc::ptr_eq(&first, &desk.import().await), "a file may change twice within one tick of its clock");
        until_old_enough().await;
        let first = desk.import().await;
        assert!(Arc::ptr_eq(&first, &desk.import().await));
        // What no job was accepted with may be pruned.
        let again = desk.imports.import(&desk.spec(), &desk.artifacts, |_| false).await.unwrap();
        assert!(!Arc::ptr_eq(&first, &again));
        let first = again;
        // Another seed is the same corpus; another share of its dialogues is not.
        let seeded = JobSpec { seed: 7, ..desk.spec() };
        assert!(Arc::ptr_eq(&first, &desk.imports.import(&seeded, &desk.artifacts, |_| true).await.unwrap()));
        let mut shared = desk.spec();
        shared.evaluate.dialogues = "1/2".parse().unwrap();
        assert!(!Arc::ptr_eq(&first, &desk.imports.import(&shared, &desk.artifacts, |_| true).await.unwrap()));
        assert!(Arc::ptr_eq(&first, &desk.import().await));
        // A change that keeps size and modification time shows all the same.
        desk.write("test.csv", "Howdy");
        desk.settle();
        let changed = desk.import().await;
        assert_ne!(changed.manifest.digest, first.manifest.digest);
        // A file that comes or goes too.
        until_old_enough().await;
        let before = desk.import().await;
        assert!(Arc::ptr_eq(&before, &desk.import().await));
        fs::remove_file(desk.corpus.path().join("dev.csv")).unwrap();
        assert!(desk.imports.import(&desk.spec(), &desk.artifacts, |_| true).await.is_err(), "dev.csv has gone");
    }

    #[tokio::test]
    async fn a_corpus_whose_shard_has_gone_is_read_again() {
        let desk = Desk::new().await;
        until_old_enough().await;
        let first = desk.import().await;
        let shard = &first.manifest.splits[&Split::Dev].shards[0].digest;
        fs::remove_file(desk.store.join(format!("sha256/{}/{}", &shard.hex()[..2], shard.hex()))).unwrap();
        let again = desk.import().await;
        assert!(!Arc::ptr_eq(&first, &again) && again.manifest == first.manifest);
        assert!(desk.artifacts.has(shard).await.unwrap());
    }

    #[test]
    fn a_folder_too_deep_or_missing_has_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let deep = (0..=DEPTH_MAX).fold(folder.path().to_path_buf(), |path, _| path.join("in"));
        fs::create_dir_all(deep).unwrap();
        assert!(!see(folder.path(), 0, &mut vec![]).unwrap());
        assert!(see(&folder.path().join("none"), 0, &mut vec![]).is_err());
    }
}
