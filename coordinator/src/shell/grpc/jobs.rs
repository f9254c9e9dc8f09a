//! Jobs: submit, look, watch, cancel, report.

use insula_proto::{
    convert,
    corpus::{CorpusManifest, Split},
    ids::JobId,
    job::{Candidates, JobSpec, Violation},
    v1::{self, jobs_server::Jobs},
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::{Answers, Desk, answers, ask_status, bad_request, hand, invalid, sharding_status, wire};
use crate::{
    corpus::preflight::{Finding, Severity, preflight},
    report,
    schedule::{self, Answer, Job, event::Story},
    shell::store::{Token, Told},
};

/// What whoever watches a compacted job from the beginning is told first.
const COMPACTED: &str = "this job ended long ago: its progress was compacted, what is left follows";

/// Stories read in one go while a watcher catches up.
const STORIES: i64 = 256;

#[tonic::async_trait]
impl Jobs for Desk {
    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitResponse>, Status> {
        let v1::SubmitRequest { request_id, spec } = request.into_inner();
        let spec = convert::job_spec(spec.unwrap_or_default()).map_err(bad_request)?;
        // A submit that comes twice is not looked at twice: what was found then was told then.
        let (corpus, found) = match self.known_corpus(&request_id) {
            Some(corpus) => (corpus, vec![]),
            None => {
                let sharded = self.import(&spec).await.map_err(sharding_status)?;
                let corpora = spec.all_corpora().into_iter().zip(&sharded.descriptions);
                let of_corpus = |((name, _), description): ((Option<&str>, _), _)| {
                    let found = preflight(description, spec.trains()).into_iter();
                    found.map(|f| (f.severity, violation_of(name, f))).collect::<Vec<_>>()
                };
                let found: Vec<_> = corpora.flat_map(of_corpus).collect();
                (sharded.manifest.clone(), found)
            }
        };
        let (refused, told): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|(severity, _)| *severity == Severity::Refuse);
        let refused: Vec<_> = refused.into_iter().map(|(_, v)| v).chain(empty_splits(&corpus, &spec)).collect();
        if !refused.is_empty() {
            return Err(bad_request(refused));
        }
        let mut warnings = warnings(&corpus, &spec);
        warnings.extend(told.into_iter().map(|(_, told)| format!("{}: {}", told.field, told.description)));
        let request = schedule::Request::Submit { request_id, spec: Box::new(spec), corpus };
        match self.owner.ask(request).await.map_err(ask_status)? {
            Answer::Submitted { job, existed } => {
                Ok(Response::new(v1::SubmitResponse { job_id: job.to_string(), existed, warnings }))
            }
            other => unreachable!("a submit is answered with its job, got {other:?}"),
        }
    }

    async fn get(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::GetJobResponse>, Status> {
        let v1::GetJobRequest { job_id, etag } = request.into_inner();
        let job = self.job(&job_id)?;
        let now = etag_of(&job);
        let job = (now != etag).then(|| wire::job(&job, &self.owner.board().read()));
        Ok(Response::new(v1::GetJobResponse { job, etag: now }))
    }

    async fn list(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let v1::ListJobsRequest { page_size, page_token, states } = request.into_inner();
        let size = if page_size == 0 { 50 } else { page_size.min(1000) as usize };
        let below = match page_token.as_str() {
            "" => JobId(u64::MAX),
            token => token.parse().map_err(invalid("page_token"))?,
        };
        let posted = self.owner.board().read();
        let wanted = |job: &Job| states.is_empty() || states.contains(&wire::job_state(job.phase.name()).into());
        let mut found = posted.jobs.range(..below).rev().map(|(_, job)| job).filter(|job| wanted(job));
        let page: Vec<_> = found.by_ref().take(size).collect();
        let next_page_token = match (page.last(), found.next()) {
            (Some(last), Some(_)) => last.id.to_string(),
            _ => String::new(),
        };
        let jobs = page.into_iter().map(|job| wire::job_head(job)).collect();
        Ok(Response::new(v1::ListJobsResponse { jobs, next_page_token }))
    }

    type WatchStream = Answers<v1::JobEvent>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let v1::WatchRequest { job_id, resume_token } = request.into_inner();
        let job = self.job(&job_id)?.id;
        let (after, compacted) = self.resumed(job, &resume_token).await?;
        let desk = self.clone();
        Ok(Response::new(answers(self.stop.clone(), move |sender| desk.tell_stories(job, after, compacted, sender))))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        let job = self.job(&request.into_inner().job_id)?.id;
        Ok(Response::new(v1::CancelResponse { job: Some(self.changed(schedule::Request::Cancel { job }).await?) }))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let job = self.job(&request.into_inner().job_id)?.id;
        match self.owner.ask(schedule::Request::Explain { job }).await.map_err(ask_status)? {
            Answer::Explained(sentences) => Ok(Response::new(v1::ExplainResponse { sentences })),
            other => unreachable!("a question is answered with sentences, got {other:?}"),
        }
    }

    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Result<Response<v1::ResumeResponse>, Status> {
        let v1::ResumeRequest { job_id, pause_epoch } = request.into_inner();
        let job = self.job(&job_id)?.id;
        let job = Some(self.changed(schedule::Request::Resume { job, pause_epoch }).await?);
        Ok(Response::new(v1::ResumeResponse { job }))
    }

    async fn ledger(&self, request: Request<v1::LedgerRequest>) -> Result<Response<v1::LedgerResponse>, Status> {
        let job = self.job(&request.into_inner().job_id)?;
        let stages = job
            .stages
            .iter()
            .map(|stage| v1::StageLedger { segments: stage.ledger.iter().map(wire::ledger_segment).collect() });
        Ok(Response::new(v1::LedgerResponse { stages: stages.collect(), corpus_digest: job.corpus.digest.to_string() }))
    }

    async fn pin(&self, request: Request<v1::PinRequest>) -> Result<Response<v1::PinResponse>, Status> {
        let v1::PinRequest { job_id, pinned } = request.into_inner();
        let job = self.job(&job_id)?.id;
        Ok(Response::new(v1::PinResponse { job: Some(self.changed(schedule::Request::Pin { job, pinned }).await?) }))
    }

    async fn report(&self, request: Request<v1::JobReportRequest>) -> Result<Response<v1::JobReport>, Status> {
        let job = self.job(&request.into_inner().job_id)?;
        let built = report::build(&job).map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(v1::JobReport {
            report_json: built.to_json(),
            report_markdown: report::markdown::render(&built),
            predictions: wire::artifacts(&report::predictions(&job)),
            adapter: wire::artifacts(&report::adapter(&job)),
        }))
    }
}

impl Desk {
    /// Asks for a change of a job, and shows the job as it then is.
    async fn changed(&self, request: schedule::Request) -> Result<v1::Job, Status> {
        match self.owner.ask(request).await.map_err(ask_status)? {
            Answer::Job(job) => Ok(wire::job(&job, &self.owner.board().read())),
            other => unreachable!("a change of a job is answered with the job, got {other:?}"),
        }
    }

    /// The corpus of the job a request id was given: it need not be read again to answer a submit that comes twice.
    fn known_corpus(&self, request_id: &str) -> Option<CorpusManifest> {
        let posted = self.owner.board().read();
        let job = posted.requests.get(request_id)?;
        Some(CorpusManifest::clone(&posted.jobs[job].corpus))
    }

    /// Where a watcher goes on, and the last story that was dropped. Whoever goes on from before that would miss it
    /// without a word, so is told to begin anew.
    async fn resumed(&self, job: JobId, text: &str) -> Result<(Token, Option<Token>), Status> {
        let compacted = self.reader.compacted_to(job).await.map_err(unreadable)?;
        if text.is_empty() {
            return Ok((Token::default(), compacted));
        }
        let unknown =
            || invalid("resume_token")(format!("'{text}' is not a token of {job}: expected one a Watch of it gave"));
        let token = wire::token(text).ok_or_else(unknown)?;
        if compacted.is_some_and(|dropped| token < dropped) {
            return Err(relist(job, token));
        }
        let known = self.reader.has(job, token).await.map_err(unreadable)?;
        // The last story that was dropped is gone, and nothing is missed by going on from it.
        if known || compacted == Some(token) { Ok((token, compacted)) } else { Err(unknown()) }
    }

    /// All stories after a token, those to come too, until the job's last.
    async fn tell_stories(
        self,
        job: JobId,
        mut after: Token,
        compacted: Option<Token>,
        sender: mpsc::Sender<Result<v1::JobEvent, Status>>,
    ) -> Result<(), Status> {
        let mut committed = self.owner.committed();
        if compacted.is_some() && after == Token::default() {
            // Without a token: whoever comes back after this alone begins from the beginning.
            let event = Some(v1::job_event::Event::Note(COMPACTED.into()));
            if !hand(&sender, v1::JobEvent { event, ..Default::default() }).await {
                return Ok(());
            }
        }
        loop {
            // Marked as seen before reading, so that a commit during the read is not slept through.
            committed.borrow_and_update();
            let stories = self.reader.stories(job, after, STORIES).await.map_err(unreadable)?;
            let caught_up = stories.is_empty();
            // Asked after reading: what was compacted before that is missing from what was read.
            let dropped = self.reader.compacted_to(job).await.map_err(unreadable)?;
            if dropped != compacted && dropped.is_some_and(|dropped| after < dropped) {
                return Err(relist(job, after));
            }
            for told in stories {
                after = told.token;
                let last = is_last(&told);
                if !hand(&sender, wire::job_event(told)).await || last {
                    return Ok(());
                }
            }
            if caught_up && self.has_ended(job, after).await? {
                return Ok(());
            }
            if caught_up && committed.changed().await.is_err() {
                return Err(Status::unavailable("the coordinator is stopping"));
            }
        }
    }

    /// Whether nothing can come after a token, for whoever resumes after the job's last story.
    async fn has_ended(&self, job: JobId, after: Token) -> Result<bool, Status> {
        let ended = self.owner.board().job(job).is_some_and(|job| job.phase.name().is_final());
        // The board is posted after the commit, so what an ended job had to tell is all readable by now.
        Ok(ended && self.reader.stories(job, after, 1).await.map_err(unreadable)?.is_empty())
    }
}

/// What was to come after a token was compacted.
fn relist(job: JobId, after: Token) -> Status {
    let after = wire::token_text(after);
    Status::out_of_range(format!(
        "relist: events of {job} after '{after}' were compacted: expected Watch without a resume_token, which tells what \
         is left, or Get for where the job stands"
    ))
}

fn is_last(told: &Told) -> bool {
    matches!(told.story, Story::State { state } if state.is_final())
}

fn etag_of(job: &Job) -> String {
    format!("{}@{}", job.id, job.revision)
}

fn unreadable(error: sqlx::Error) -> Status {
    Status::internal(format!("the journal cannot be read: {error}"))
}

/// What was found of a corpus, under the key of the one it is about, where a job has several.
fn violation_of(corpus: Option<&str>, Finding { field, text, .. }: Finding) -> Violation {
    let field = match (corpus, field.strip_prefix("corpus.")) {
        (Some(name), Some(key)) => format!("corpora.{name}.{key}"),
        _ => field.to_owned(),
    };
    Violation { field, description: text }
}

/// Splits of which `evaluate.dialogues` leaves nothing to evaluate.
fn empty_splits(corpus: &CorpusManifest, spec: &JobSpec) -> Vec<Violation> {
    let empty = corpus.splits.iter().filter(|(_, manifest)| manifest.shards.is_empty());
    let violation = |(split, _): (&Split, _)| Violation {
        field: "evaluate.dialogues".into(),
        description: format!("{} leaves no dialogue of {split}: expected a larger share", spec.evaluate.dialogues),
    };
    empty.map(violation).collect()
}

/// What can be done, but may not be what was meant.
fn warnings(corpus: &CorpusManifest, spec: &JobSpec) -> Vec<String> {
    let samples = spec.sampled(&corpus.utterances_by_part(Split::Train));
    let mut warnings = Vec::new();
    if samples < u64::from(spec.train.batch) && spec.trains() {
        let batch = spec.train.batch;
        warnings.push(format!("data.share leaves {samples} training samples, less than one update of {batch}"));
    }
    let given_away = spec.trains() && spec.retrieval.k > 0 && spec.retrieval.training == Candidates::SameLabel;
    if given_away {
        warnings.push(
            "retrieval.training = \"same-label\": a training prompt's demonstration has its answer's label, and the model \
             may learn to copy it; add the arm shuffled-demonstrations to see whether it does"
                .into(),
        );
    }
    warnings
}
