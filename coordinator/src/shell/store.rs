//! The journal on disk: SQLite with a write-ahead log, synced at every commit, written by one coordinator only.
//!
//! ```text
//! journal  seq  at_ms  job?  body     the events; the state is their fold
//! story    job  seq  part  at_ms  body    what watchers of a job are told, derived from the events, same transaction
//! compacted  job  seq  part               jobs whose progress is told no more, and the last story that was dropped
//! ```
//!
//! `seq` counts from 1 without gaps. A row that cannot be read is an error that names its seq: nothing is skipped.
#![expect(clippy::disallowed_methods, reason = "the room that opens the journal")]

mod append;
mod compact;
mod fold;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use insula_proto::ids::JobId;
use sqlx::{
    ConnectOptions as _, Connection as _, Row as _, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use crate::schedule::{
    State,
    event::{Event, Story},
};

/// The layout of the tables below; another number was written by another insula.
const LAYOUT: i64 = 1;

const TABLES: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS journal (seq INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, job INTEGER, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS story (job INTEGER NOT NULL, seq INTEGER NOT NULL, part INTEGER NOT NULL, \
     at_ms INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (job, seq, part)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS compacted (job INTEGER PRIMARY KEY, seq INTEGER NOT NULL, part INTEGER NOT NULL)",
];

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be made or written.
    #[error("state directory {path} cannot be written: {source}")]
    Unwritable {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process holds the lock.
    #[error("state directory {path} is in use by another coordinator")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// SQLite refused.
    #[error("journal {path}: {source}")]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What it said.
        source: sqlx::Error,
    },
    /// Tables of another layout.
    #[error("journal {path} has layout {found}, expected {LAYOUT}: it was written by another version of insula")]
    Layout {
        /// The database.
        path: PathBuf,
        /// The layout in it.
        found: i64,
    },
    /// No journal where there was one.
    #[error(
        "journal {path} is empty, but its state directory has been in use: expected the journal that was there; put it \
         back, or begin anew in another directory"
    )]
    Emptied {
        /// The database.
        path: PathBuf,
    },
    /// A row that does not read.
    #[error("journal {path}: row {seq} is damaged: {problem}")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// The row.
        seq: i64,
        /// What is wrong with it.
        problem: String,
    },
}

/// The journal, open for writing. Holds the state directory's lock until it is dropped.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: SqliteConnection,
    last_seq: i64,
    last_ms: u64,
    _lock: fs::File,
}

/// One event and what it tells watchers, to be written together.
#[derive(Debug, Clone)]
pub struct Entry {
    /// When.
    pub at_ms: u64,
    /// What happened.
    pub event: Event,
    /// Who is told what.
    pub stories: Vec<(JobId, Story)>,
}

/// The journal, open for reading only; many at once.
#[derive(Debug, Clone)]
pub struct Reader(SqlitePool);

/// Where a story stands: the event it came of, and its place among those.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token {
    /// The event.
    pub seq: i64,
    /// The place, from 0.
    pub part: i64,
}

/// A story as it was told.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// Where it stands.
    pub token: Token,
    /// When.
    pub at_ms: u64,
    /// What.
    pub story: Story,
}

impl Store {
    /// Opens the journal of a state directory, making both where they are missing.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn open(folder: &Path) -> Result<(Self, Reader), StoreError> {
        let lock = lock(folder)?;
        let path = folder.join("journal.sqlite");
        // SQLite takes a file without bytes for a new one. Artifacts are made only after a journal was begun.
        let empty = fs::metadata(&path).is_ok_and(|found| found.len() == 0);
        if empty && folder.join("artifacts").exists() {
            return Err(StoreError::Emptied { path });
        }
        let failed = |source| StoreError::Sqlite { path: path.clone(), source };
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            // A fold of a long journal is slow by right.
            .disable_statement_logging();
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(failed)?;
        let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut connection).await.map_err(failed)?;
        if found != 0 && found != LAYOUT {
            return Err(StoreError::Layout { path, found });
        }
        for table in TABLES {
            sqlx::query(table).execute(&mut connection).await.map_err(failed)?;
        }
        sqlx::query("PRAGMA user_version = 1").execute(&mut connection).await.map_err(failed)?;
        // Four readers: watchers read in short turns, so more would only wait for the same disk.
        let pool = SqlitePoolOptions::new().max_connections(4).acquire_timeout(Duration::from_secs(10));
        let reader = Reader(pool.connect_lazy_with(options.read_only(true).create_if_missing(false)));
        Ok((Self { path, connection, last_seq: 0, last_ms: 0, _lock: lock }, reader))
    }

    /// Folds the whole journal.
    ///
    /// # Errors
    /// When a row is missing or does not read; its seq is named.
    pub async fn fold(&mut self) -> Result<State, StoreError> {
        let folding = fold::fold(&mut self.connection, &self.path).await?;
        (self.last_seq, self.last_ms) = (folding.last_seq, folding.last_ms);
        Ok(folding.state)
    }

    /// The latest time in the journal that was folded, Unix time in ms; 0 of an empty one.
    pub fn last_ms(&self) -> u64 {
        self.last_ms
    }

    /// Writes entries in one transaction and returns when they are on disk.
    ///
    /// # Errors
    /// When they may not be; the state is then ahead of the journal and must be given up.
    pub async fn append(&mut self, entries: &[Entry]) -> Result<i64, StoreError> {
        let path = self.path.clone();
        let last = self.last_seq;
        self.last_seq = append::write(&mut self.connection, last, entries)
            .await
            .map_err(|source| StoreError::Sqlite { path, source })?;
        Ok(self.last_seq)
    }

    /// Jobs whose stories were compacted.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn compacted(&mut self) -> Result<BTreeSet<JobId>, StoreError> {
        let jobs = compact::jobs(&mut self.connection).await;
        jobs.map_err(|source| StoreError::Sqlite { path: self.path.clone(), source })
    }

    /// Drops the progress from the stories of jobs that ended long ago, and keeps in mind up to where. Returns when that
    /// is on disk.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn compact(&mut self, jobs: &[JobId]) -> Result<(), StoreError> {
        let done = compact::compact(&mut self.connection, jobs).await;
        done.map_err(|source| StoreError::Sqlite { path: self.path.clone(), source })
    }
}

impl Reader {
    /// The next stories of a job after a token, at most `limit`.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn stories(&self, job: JobId, after: Token, limit: i64) -> Result<Vec<Told>, sqlx::Error> {
        let query = "SELECT seq, part, at_ms, body FROM story \
                     WHERE job = ? AND (seq, part) > (?, ?) ORDER BY seq, part LIMIT ?";
        let query = sqlx::query(query).bind(signed(job.0)).bind(after.seq).bind(after.part).bind(limit);
        let told = |row: sqlx::sqlite::SqliteRow| {
            let body: &str = row.try_get("body")?;
            let story = serde_json::from_str(body).map_err(|error| sqlx::Error::Decode(error.into()))?;
            let at_ms: i64 = row.try_get("at_ms")?;
            let token = Token { seq: row.try_get("seq")?, part: row.try_get("part")? };
            Ok(Told { token, at_ms: at_ms.unsigned_abs(), story })
        };
        query.fetch_all(&self.0).await?.into_iter().map(told).collect()
    }

    /// The last story that was dropped of a job, where its stories were compacted.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn compacted_to(&self, job: JobId) -> Result<Option<Token>, sqlx::Error> {
        let query = sqlx::query_as::<_, (i64, i64)>("SELECT seq, part FROM compacted WHERE job = ? AND seq > 0");
        let found = query.bind(signed(job.0)).fetch_optional(&self.0).await?;
        Ok(found.map(|(seq, part)| Token { seq, part }))
    }

    /// Whether a token is one of a job's.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn has(&self, job: JobId, token: Token) -> Result<bool, sqlx::Error> {
        let query = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM story WHERE job = ? AND seq = ? AND part = ?");
        Ok(query.bind(signed(job.0)).bind(token.seq).bind(token.part).fetch_one(&self.0).await? == 1)
    }
}

/// Makes the folder and takes its lock, which the system gives back when the process ends, however it ends.
fn lock(folder: &Path) -> Result<fs::File, StoreError> {
    let unwritable = |source| StoreError::Unwritable { path: folder.to_path_buf(), source };
    fs::create_dir_all(folder).map_err(unwritable)?;
    let file = fs::File::create(folder.join("lock")).map_err(unwritable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StoreError::InUse { path: folder.to_path_buf() }),
        Err(fs::TryLockError::Error(source)) => Err(unwritable(source)),
    }
}

/// SQLite has only signed numbers; ids and times stay far below 2^63.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use insula_proto::ids::WorkerId;

    fn entry(worker: u64) -> Entry {
        let (name, device) = (format!("w{worker}"), "cpu".into());
        let event =
            Event::WorkerRegistered { worker: WorkerId(worker), name, device, threads: 1, address: String::new() };
        Entry { at_ms: worker, event, stories: vec![] }
    }

    async fn written(folder: &Path) {
        let (mut store, _) = Store::open(folder).await.unwrap();
        store.append(&[entry(1), entry(2)]).await.unwrap();
        store.append(&[entry(3)]).await.unwrap();
    }

    async fn spoil(folder: &Path, statement: &'static str) {
        let options = SqliteConnectOptions::new().filename(folder.join("journal.sqlite"));
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::query(statement).execute(&mut connection).await.unwrap();
    }

    async fn refusal(folder: &Path) -> String {
        match Store::open(folder).await {
            Ok((mut store, _)) => store.fold().await.expect_err("the journal is spoilt").to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn what_was_appended_is_folded_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path()).await;
        let (mut store, _) = Store::open(folder.path()).await.unwrap();
        let state = store.fold().await.unwrap();
        assert_eq!(state.workers.keys().map(|w| w.0).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(store.append(&[entry(4)]).await.unwrap(), 4);
    }

    #[tokio::test]
    async fn a_damaged_row_is_named() {
        for (statement, expected) in [
            ("UPDATE journal SET body = '{\"event\":\"moon' WHERE seq = 2", "row 2 is damaged: "),
            (
                "UPDATE journal SET body = '{\"event\":\"job_cancelled\",\"job\":7}' WHERE seq = 3",
                "row 3 is damaged: it does not fit the rows before it",
            ),
            ("DELETE FROM journal WHERE seq = 2", "row 2 is damaged: it is missing"),
            ("PRAGMA user_version = 9", "has layout 9, expected 1"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            written(folder.path()).await;
            spoil(folder.path(), statement).await;
            let refusal = refusal(folder.path()).await;
            assert!(refusal.contains(expected), "{refusal}");
        }
    }

    #[tokio::test]
    async fn a_second_coordinator_is_refused_by_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let (_store, _) = Store::open(folder.path()).await.unwrap();
        let expected = format!("state directory {} is in use by another coordinator", folder.path().display());
        assert_eq!(refusal(folder.path()).await, expected);
    }

    #[tokio::test]
    async fn a_state_directory_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let refusal = refusal(&file.join("state")).await;
        assert!(refusal.starts_with("state directory ") && refusal.contains("cannot be written"), "{refusal}");
    }
}
