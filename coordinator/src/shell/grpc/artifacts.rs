//! Files by the digest of their bytes, in chunks.

use std::pin::pin;

use futures::StreamExt;
use insula_proto::{
    ids::Digest,
    v1::{self, artifacts_server::Artifacts},
};
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, Desk, answers, artifact_status, ask_status, hand, invalid};
use crate::shell::pruning::{PruneError, prune};

#[tonic::async_trait]
impl Artifacts for Desk {
    type GetStream = Answers<v1::ArtifactChunk>;

    async fn get(&self, request: Request<v1::GetArtifactRequest>) -> Result<Response<Self::GetStream>, Status> {
        let digest: Digest = request.into_inner().digest.parse().map_err(invalid("digest"))?;
        let chunks = self.artifacts.chunks(&digest).await.map_err(artifact_status)?;
        let send_all = |sender| async move {
            let mut chunks = pin!(chunks);
            while let Some(chunk) = chunks.next().await {
                let data = chunk.map_err(artifact_status)?.to_vec();
                if !hand(&sender, v1::ArtifactChunk { data }).await {
                    break;
                }
            }
            Ok(())
        };
        Ok(Response::new(answers(self.stop.clone(), send_all)))
    }

    async fn put(
        &self,
        request: Request<Streaming<v1::ArtifactChunk>>,
    ) -> Result<Response<v1::PutArtifactResponse>, Status> {
        let mut chunks = request.into_inner();
        let mut incoming = self.artifacts.incoming().await.map_err(artifact_status)?;
        while let Some(chunk) = chunks.message().await? {
            incoming.add(chunk.data.into()).await.map_err(artifact_status)?;
        }
        let (digest, bytes) = incoming.finish().await.map_err(artifact_status)?;
        Ok(Response::new(v1::PutArtifactResponse { digest: digest.to_string(), bytes }))
    }

    async fn prune(&self, request: Request<v1::PruneRequest>) -> Result<Response<v1::PruneResponse>, Status> {
        let dry_run = request.into_inner().dry_run;
        let pruned = prune(&self.owner, &self.artifacts, dry_run).await.map_err(|error| match error {
            PruneError::Ask(error) => ask_status(error),
            PruneError::Artifact(error) => artifact_status(error),
        })?;
        Ok(Response::new(v1::PruneResponse {
            deleted_files: pruned.deleted.files,
            deleted_bytes: pruned.deleted.bytes,
            kept_files: pruned.kept.files,
            kept_bytes: pruned.kept.bytes,
        }))
    }
}
