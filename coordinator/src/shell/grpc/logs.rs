//! What the workers of a job wrote, by byte offset.

use insula_proto::{
    ids::{JobId, WorkerId},
    v1::{self, logs_server::Logs},
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::{Answers, Desk, answers, hand, log_status};
use crate::shell::artifacts::CHUNK_BYTES;

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
        let v1::ReadLogRequest { job_id, offset, follow } = request.into_inner();
        let job = self.job(&job_id)?.id;
        let desk = self.clone();
        Ok(Response::new(answers(self.stop.clone(), move |sender| desk.tell_log(job, offset, follow, sender))))
    }
}

impl Desk {
    async fn tell_log(
        self,
        job: JobId,
        mut offset: u64,
        follow: bool,
        sender: mpsc::Sender<Result<v1::LogChunk, Status>>,
    ) -> Result<(), Status> {
        let (mut written, mut committed) = (self.logs.written(), self.owner.committed());
        loop {
            // Both are marked as seen, and the job looked at, before reading: what comes during the read wakes us.
            written.borrow_and_update();
            committed.borrow_and_update();
            let ended = self.owner.board().job(job).is_none_or(|job| job.phase.name().is_final());
            let data = self.logs.read(job, offset, CHUNK_BYTES).await.map_err(log_status)?;
            if !data.is_empty() {
                let next = offset + data.len() as u64;
                if !hand(&sender, v1::LogChunk { offset, data }).await {
                    return Ok(());
                }
                offset = next;
                continue;
            }
            if !follow || ended {
                return Ok(());
            }
            tokio::select! {
                _ = written.changed() => {}
                changed = committed.changed() => changed.map_err(|_| Status::unavailable("the coordinator is stopping"))?,
            }
        }
    }
}
