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
}
