//! What the workers of a job wrote, by byte offset.

use insula_proto::{
    ids::{JobId, WorkerId},
    v1::{self, logs_server::Logs},
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::{Answers, Desk, answers, hand, log_status};
use crate::shell::{
    artifacts::CHUNK_BYTES,
    logs::{LogError, Place},
};

#[tonic::async_trait]
impl Logs for Desk {
    async fn append(&self, request: Request<v1::AppendLogRequest>) -> Result<Response<v1::AppendLogResponse>, Status> {
        let v1::AppendLogRequest { job_id, worker_id, lines } = request.into_inner();
        let job = self.job(&job_id)?.id;
        let name = {
            let posted = self.owner.board().read();
            let known = posted.workers.iter().find(|known| known.id == WorkerId(worker_id));
            known.map(|known| known.worker.name.clone())
        };
        let name = name.ok_or_else(|| {
            Status::failed_precondition(format!("{} is not registered: register again", WorkerId(worker_id)))
        })?;
        self.logs.append(job, &name, &lines).await.map_err(log_status)?;
        Ok(Response::new(v1::AppendLogResponse {}))
    }

    type ReadStream = Answers<v1::LogChunk>;

    async fn read(&self, request: Request<v1::ReadLogRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let v1::ReadLogRequest { job_id, offset, follow, worker } = request.into_inner();
        let job = self.job(&job_id)?.id;
        let wanted = Wanted { job, worker, follow, place: Place::default() };
        let desk = self.clone();
        Ok(Response::new(answers(self.stop.clone(), move |sender| desk.tell_log(wanted, offset, sender))))
    }
}

/// Whose lines are read.
struct Wanted {
    job: JobId,
    /// Empty: all workers'.
    worker: String,
    follow: bool,
    /// Where the reading of one worker's lines stands.
    place: Place,
}

impl Desk {
    /// The next bytes from an offset; none at the end.
    async fn next_of(&self, wanted: &mut Wanted, offset: u64) -> Result<Vec<u8>, LogError> {
        let Wanted { job, worker, place, .. } = wanted;
        if worker.is_empty() {
            return self.logs.read(*job, offset, CHUNK_BYTES).await;
        }
        while let Some(lines) = self.logs.read_of(*job, worker, place, CHUNK_BYTES).await? {
            let begin = place.in_own - lines.len() as u64;
            let before = usize::try_from(offset.saturating_sub(begin)).unwrap_or(usize::MAX);
            if before < lines.len() {
                return Ok(lines[before..].to_vec());
            }
        }
        match place.in_own < offset {
            true => Err(LogError::BeyondEnd { job: *job, bytes: place.in_own, offset }),
            false => Ok(vec![]),
        }
    }

    async fn tell_log(
        self,
        mut wanted: Wanted,
        mut offset: u64,
        sender: mpsc::Sender<Result<v1::LogChunk, Status>>,
    ) -> Result<(), Status> {
        let (mut written, mut committed) = (self.logs.written(), self.owner.committed());
        loop {
            // Both are marked as seen, and the job looked at, before reading: what comes during the read wakes us.
            written.borrow_and_update();
            committed.borrow_and_update();
            let ended = self.owner.board().job(wanted.job).is_none_or(|job| job.phase.name().is_final());
            let data = self.next_of(&mut wanted, offset).await.map_err(log_status)?;
            if !data.is_empty() {
                let next = offset + data.len() as u64;
                if !hand(&sender, v1::LogChunk { offset, data }).await {
                    return Ok(());
                }
                offset = next;
                continue;
            }
            if !wanted.follow || ended {
                return Ok(());
            }
            tokio::select! {
                _ = written.changed() => {}
                changed = committed.changed() => changed.map_err(|_| Status::unavailable("the coordinator is stopping"))?,
            }
        }
    }
}
