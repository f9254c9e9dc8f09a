//! The worker's side: register, lease, heartbeat, report.

use std::time::Duration;

use insula_proto::{
    ids::{Digest, LeaseId, WorkerId},
    v1::{self, fleet_server::Fleet},
};
use tonic::{Request, Response, Status};

use super::{Answers, Desk, answers, artifact_status, ask_status, hand, invalid, wire};
use crate::{
    schedule::{self, Answer, Grant},
    shell::board::PostedWorker,
};

/// Longest wait for work; a worker then asks again, which shows that it lives.
const WAIT_MS_MAX: u32 = 30_000;

#[tonic::async_trait]
impl Fleet for Desk {
    async fn register(&self, request: Request<v1::RegisterRequest>) -> Result<Response<v1::RegisterResponse>, Status> {
        let caller = request.remote_addr().map(|caller| caller.ip());
        let v1::RegisterRequest { name, version, device, threads, sync_address } = request.into_inner();
        let address = reachable(&sync_address, caller);
        let request = schedule::Request::Register { name, version, device, threads, address };
        match self.owner.ask(request).await.map_err(ask_status)? {
            Answer::Registered(worker) => Ok(Response::new(v1::RegisterResponse {
                worker_id: worker.0,
                heartbeat_ms: self.heartbeat_ms,
                lease_ms: self.lease_ms,
            })),
            other => unreachable!("a registration is answered with an id, got {other:?}"),
        }
    }

    async fn lease(&self, request: Request<v1::LeaseRequest>) -> Result<Response<v1::LeaseResponse>, Status> {
        let v1::LeaseRequest { worker_id, wait_ms, only_job, heard_lease_id } = request.into_inner();
        let only_job = match only_job.as_str() {
            "" => None,
            text => Some(text.parse().map_err(invalid("only_job"))?),
        };
        let wait = Duration::from_millis(wait_ms.min(WAIT_MS_MAX).into());
        let (worker, heard) = (WorkerId(worker_id), LeaseId(heard_lease_id));
        let request = schedule::Request::Lease { worker, only_job, heard, waits_ms: wait_ms.min(WAIT_MS_MAX).into() };
        let grant = tokio::select! {
            grant = self.wait_for_work(request, wait) => grant?,
            () = self.stop.cancelled() => None,
        };
        Ok(Response::new(v1::LeaseResponse { lease: grant.as_ref().map(wire::lease) }))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let v1::HeartbeatRequest { worker_id, lease_id, progress, seated, generation, metrics } = request.into_inner();
        let progress = progress.map(wire::parsed_progress);
        let (worker, lease) = (WorkerId(worker_id), LeaseId(lease_id));
        let request = schedule::Request::Heartbeat { worker, lease, progress, seated, generation };
        let answer = self.owner.ask(request).await.map_err(ask_status)?;
        if let Some(metrics) = metrics {
            self.gauges.set(worker, metrics);
        }
        match answer {
            Answer::Beat { stop, recalled, gang } => {
                let gang = gang.map(|seating| wire::gang(&seating, &self.secret));
                Ok(Response::new(v1::HeartbeatResponse { stop, recalled, gang }))
            }
            other => unreachable!("a heartbeat is answered with whether to stop, got {other:?}"),
        }
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportResponse>, Status> {
        let v1::ReportRequest { worker_id, lease_id, base_digest, report } = request.into_inner();
        let base = match base_digest.as_str() {
            "" => None,
            text => Some(text.parse().map_err(invalid("base_digest"))?),
        };
        let report = Box::new(wire::parsed_report(report)?);
        for digest in report.artifacts() {
            self.must_have(digest).await?;
        }
        let (worker, lease) = (WorkerId(worker_id), LeaseId(lease_id));
        let request = schedule::Request::Report { worker, lease, base, report };
        self.owner.ask(request).await.map_err(ask_status)?;
        Ok(Response::new(v1::ReportResponse {}))
    }

    async fn claim_tokens(
        &self,
        request: Request<v1::ClaimTokensRequest>,
    ) -> Result<Response<v1::ClaimTokensResponse>, Status> {
        let v1::ClaimTokensRequest { worker_id, lease_id, key, spoilt } = request.into_inner();
        let (worker, lease) = (WorkerId(worker_id), LeaseId(lease_id));
        let spoilt = match spoilt.as_str() {
            "" => None,
            text => Some(text.parse().map_err(invalid("spoilt"))?),
        };
        let request =
            schedule::Request::ClaimTokens { worker, lease, key: key.parse().map_err(invalid("key"))?, spoilt };
        match self.owner.ask(request).await.map_err(ask_status)? {
            Answer::Claim(claim) => Ok(Response::new(wire::claim(claim))),
            other => unreachable!("a claim is answered with whose it is, got {other:?}"),
        }
    }

    async fn fulfil_tokens(
        &self,
        request: Request<v1::FulfilTokensRequest>,
    ) -> Result<Response<v1::FulfilTokensResponse>, Status> {
        let v1::FulfilTokensRequest { worker_id, lease_id, key, artifact } = request.into_inner();
        let (worker, lease) = (WorkerId(worker_id), LeaseId(lease_id));
        let key = key.parse().map_err(invalid("key"))?;
        let artifact: Digest = artifact.parse().map_err(invalid("artifact"))?;
        self.must_have(&artifact).await?;
        let request = schedule::Request::FulfilTokens { worker, lease, key, artifact };
        self.owner.ask(request).await.map_err(ask_status)?;
        Ok(Response::new(v1::FulfilTokensResponse {}))
    }

    async fn list_workers(
        &self,
        _: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        Ok(Response::new(self.workers()))
    }

    type WatchWorkersStream = Answers<v1::ListWorkersResponse>;

    async fn watch_workers(
        &self,
        request: Request<v1::WatchWorkersRequest>,
    ) -> Result<Response<Self::WatchWorkersStream>, Status> {
        let every = match request.into_inner().every_ms {
            0 => Duration::from_secs(1),
            ms => Duration::from_millis(ms.max(100).into()),
        };
        let desk = self.clone();
        Ok(Response::new(answers(self.stop.clone(), move |sender| async move {
            while hand(&sender, desk.workers()).await {
                tokio::time::sleep(every).await;
            }
            Ok(())
        })))
    }
}

/// Where a worker can be reached: an address without a host stands on the host it calls from.
fn reachable(told: &str, caller: Option<std::net::IpAddr>) -> String {
    match (told.strip_prefix(':').map(str::parse), caller) {
        (Some(Ok(port)), Some(host)) => std::net::SocketAddr::new(host, port).to_string(),
        _ => told.into(),
    }
}

impl Desk {
    /// All workers, as they now are.
    fn workers(&self) -> v1::ListWorkersResponse {
        let now_ms = self.clock.now_ms();
        let posted = self.owner.board().read();
        let workers = posted.workers.iter().map(|known| self.worker(known, now_ms, &posted.jobs)).collect();
        v1::ListWorkersResponse { workers }
    }

    /// Asks now, and again whenever something becomes ready, until there is work or the wait is over.
    async fn wait_for_work(&self, request: schedule::Request, wait: Duration) -> Result<Option<Grant>, Status> {
        let mut ready = self.owner.ready();
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            // Marked as seen before asking, so that what becomes ready while asking is not slept through.
            ready.borrow_and_update();
            match self.owner.ask(request.clone()).await.map_err(ask_status)? {
                Answer::Leased(Some(grant)) => return Ok(Some(grant)),
                Answer::Leased(None) => {}
                other => unreachable!("asking for work is answered with a lease, got {other:?}"),
            }
            match tokio::time::timeout_at(deadline, ready.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Ok(None),
            }
        }
    }

    /// A result counts only when what it points at is there.
    async fn must_have(&self, digest: &Digest) -> Result<(), Status> {
        match self.artifacts.has(digest).await.map_err(artifact_status)? {
            true => Ok(()),
            false => Err(Status::failed_precondition(format!(
                "artifact {digest} is not in the store: expected it to be put before it is reported"
            ))),
        }
    }

    fn worker(
        &self,
        known: &PostedWorker,
        now_ms: u64,
        jobs: &std::collections::BTreeMap<insula_proto::ids::JobId, std::sync::Arc<schedule::Job>>,
    ) -> v1::Worker {
        let doing = known.lease.map(|lease| format!("{} {}", lease.job, jobs[&lease.job].what(lease.task)));
        let silent = known.heard_ms.map_or(u64::MAX, |heard| now_ms.saturating_sub(heard));
        // A worker that waits for work is heard only when it asks.
        let most =
            if known.lease.is_some() { u64::from(self.lease_ms) } else { u64::from(WAIT_MS_MAX + self.lease_ms) };
        v1::Worker {
            worker_id: known.id.0,
            name: known.worker.name.clone(),
            device: known.worker.device.clone(),
            threads: known.worker.threads,
            alive: silent < most,
            doing: doing.unwrap_or_default(),
            sync_address: known.worker.address.clone(),
            metrics: self.gauges.of(known.id),
        }
    }
}
