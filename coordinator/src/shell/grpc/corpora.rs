//! Corpora as the coordinator holds them.

use insula_proto::{
    convert,
    ids::Digest,
    job::JobSpec,
    v1::{self, corpora_server::Corpora},
};
use tonic::{Request, Response, Status};

use super::{Desk, ask_status, invalid, sharding_status};
use crate::schedule;

#[tonic::async_trait]
impl Corpora for Desk {
    async fn import(
        &self,
        request: Request<v1::ImportCorpusRequest>,
    ) -> Result<Response<v1::ImportCorpusResponse>, Status> {
        let corpus = convert::corpus_spec(request.into_inner().corpus.unwrap_or_default());
        let spec = JobSpec { corpus: corpus.into(), ..JobSpec::default() };
        let corpus = Desk::import(self, &spec).await.map_err(sharding_status)?.manifest.clone();
        let answer = v1::CorpusManifest::from(&corpus);
        self.owner.ask(schedule::Request::Import { corpus }).await.map_err(ask_status)?;
        Ok(Response::new(v1::ImportCorpusResponse { corpus: Some(answer) }))
    }

    async fn get(&self, request: Request<v1::GetCorpusRequest>) -> Result<Response<v1::GetCorpusResponse>, Status> {
        let digest: Digest = request.into_inner().digest.parse().map_err(invalid("digest"))?;
        let posted = self.owner.board().read();
        let corpus = posted.corpora.get(&digest);
        let corpus = corpus.ok_or_else(|| Status::not_found(format!("no corpus has digest {digest}")))?;
        Ok(Response::new(v1::GetCorpusResponse { corpus: Some((&**corpus).into()) }))
    }

    async fn list(&self, _: Request<v1::ListCorporaRequest>) -> Result<Response<v1::ListCorporaResponse>, Status> {
        let posted = self.owner.board().read();
        let corpora = posted.corpora.values().map(|corpus| (&**corpus).into()).collect();
        Ok(Response::new(v1::ListCorporaResponse { corpora }))
    }
}
