//! What the workers of a job wrote: one file per job, lines only ever added at the end.

use std::{path::PathBuf, sync::Arc};

use insula_proto::ids::JobId;
use tokio::{
    fs,
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
    sync::{Mutex, watch},
};

/// Largest log of a job: a year of a line a second. A job that writes more is not read by anybody (guessed).
pub const LOG_BYTES_MAX: u64 = 1 << 30;

/// Why a log cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk refused.
    #[error("log of {job}: {source}")]
    Io {
        /// Whose log.
        job: JobId,
        /// What the system said.
        source: std::io::Error,
    },
    /// Beyond [`LOG_BYTES_MAX`].
    #[error("log of {0} is full: expected at most {LOG_BYTES_MAX} bytes")]
    Full(JobId),
    /// An offset beyond the end.
    #[error("log of {job} has {bytes} bytes: offset {offset} is beyond its end")]
    BeyondEnd {
        /// Whose log.
        job: JobId,
        /// Its size.
        bytes: u64,
        /// What was asked for.
        offset: u64,
    },
}

/// The logs; cheap to clone.
#[derive(Debug, Clone)]
pub struct Logs {
    folder: Arc<PathBuf>,
    /// One writer at a time: lines of two workers must not mix.
    writing: Arc<Mutex<()>>,
    written: watch::Sender<u64>,
}

/// Where a reader of one worker's lines stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Bytes of the whole log behind it.
    pub in_log: u64,
    /// Bytes of the worker's lines among them.
    pub in_own: u64,
}

impl Logs {
    /// Logs in a folder that exists.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder: Arc::new(folder), writing: Arc::new(Mutex::new(())), written: watch::Sender::new(0) }
    }

    /// Adds lines, each with the name of who wrote it in front.
    ///
    /// # Errors
    /// When the log is full or the disk refuses.
    pub async fn append(&self, job: JobId, who: &str, lines: &str) -> Result<(), LogError> {
        let text: String = lines.lines().map(|line| format!("{who}: {line}\n")).collect();
        let failed = |source| LogError::Io { job, source };
        let _turn = self.writing.lock().await;
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.path(job)).await.map_err(failed)?;
        if file.metadata().await.map_err(failed)?.len() + text.len() as u64 > LOG_BYTES_MAX {
            return Err(LogError::Full(job));
        }
        file.write_all(text.as_bytes()).await.map_err(failed)?;
        file.flush().await.map_err(failed)?;
        self.written.send_modify(|times| *times += 1);
        Ok(())
    }

    /// At most `limit` bytes from an offset; none at the end.
    ///
    /// # Errors
    /// When the offset is beyond the end or the disk refuses.
    pub async fn read(&self, job: JobId, offset: u64, limit: usize) -> Result<Vec<u8>, LogError> {
        let failed = |source| LogError::Io { job, source };
        let mut file = match fs::File::open(self.path(job)).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && offset == 0 => return Ok(vec![]),
            Err(error) => return Err(failed(error)),
        };
        let bytes = file.metadata().await.map_err(failed)?.len();
        if offset > bytes {
            return Err(LogError::BeyondEnd { job, bytes, offset });
        }
        file.seek(std::io::SeekFrom::Start(offset)).await.map_err(failed)?;
        let mut read = Vec::new();
        file.take(limit as u64).read_to_end(&mut read).await.map_err(failed)?;
        Ok(read)
    }

    /// The next lines of one worker, from whole lines of about `limit` bytes of the log; `None` at its end. Empty where
    /// other workers wrote those lines.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn read_of(
        &self,
        job: JobId,
        worker: &str,
        place: &mut Place,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, LogError> {
        let mut limit = limit;
        loop {
            let read = self.read(job, place.in_log, limit).await?;
            let Some(end) = read.iter().rposition(|&byte| byte == b'\n') else {
                // A line longer than that, or half a line that a power cut left.
                if read.len() < limit {
                    return Ok(None);
                }
                limit *= 2;
                continue;
            };
            let head = format!("{worker}: ");
            let lines = read[..=end].split_inclusive(|&byte| byte == b'\n');
            let own: Vec<u8> = lines.filter(|line| line.starts_with(head.as_bytes())).flatten().copied().collect();
            place.in_log += end as u64 + 1;
            place.in_own += own.len() as u64;
            return Ok(Some(own));
        }
    }

    /// Changes whenever any log grows.
    pub fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    fn path(&self, job: JobId) -> PathBuf {
        self.folder.join(format!("{job}.log"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_is_read_by_byte_offset_with_its_writers_named() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::new(folder.path().into());
        let job = JobId(3);
        assert_eq!(logs.read(job, 0, 100).await.unwrap(), b"");
        logs.append(job, "w1", "one\ntwo\n").await.unwrap();
        logs.append(job, "w2", "three").await.unwrap();
        assert_eq!(logs.read(job, 0, 100).await.unwrap(), b"w1: one\nw1: two\nw2: three\n");
        assert_eq!(logs.read(job, 8, 7).await.unwrap(), b"w1: two");
        assert_eq!(logs.read(job, 26, 7).await.unwrap(), b"");
        let error = logs.read(job, 27, 7).await.unwrap_err().to_string();
        assert_eq!(error, "log of job-3 has 26 bytes: offset 27 is beyond its end");
    }
    #[tokio::test]
    async fn one_workers_lines_are_read_among_those_of_all() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::new(folder.path().into());
        let job = JobId(3);
        let long = "x".repeat(300);
        for (who, lines) in [("w1", "one"), ("w11", "other\nlines"), ("w1", long.as_str()), ("w2", "w1: no")] {
            logs.append(job, who, lines).await.unwrap();
        }
        for limit in [1, 7, 64, 4096] {
            let (mut place, mut own) = (Place::default(), Vec::new());
            while let Some(lines) = logs.read_of(job, "w1", &mut place, limit).await.unwrap() {
                own.extend(lines);
            }
            assert_eq!(String::from_utf8(own.clone()).unwrap(), format!("w1: one\nw1: {long}\n"), "{limit}");
            assert_eq!((place.in_own, place.in_log), (own.len() as u64, 346), "{limit}");
        }
        // Half a line is nobody's until the rest comes.
        let mut half = fs::OpenOptions::new().append(true).open(logs.path(job)).await.unwrap();
        half.write_all(b"w1: hal").await.unwrap();
        half.flush().await.unwrap();
        let mut place = Place { in_log: 346, in_own: 0 };
        assert_eq!(logs.read_of(job, "w1", &mut place, 2).await.unwrap(), None);
    }
}
