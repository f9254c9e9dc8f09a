//! `insula audit`: proves from a job's ledger that every sample of every pass was used exactly once.
//!
//! What the ledger must say is computed here, from the job's settings and its shards; the coordinator only hands out both.

use insula_proto::{
    convert,
    corpus::{CorpusManifest, Split},
    ids::Digest,
    job::{JobSpec, Stage},
    shard,
    v1::{Artifact, GetArtifactRequest, GetCorpusRequest, GetJobRequest, JobState, LedgerRequest, StageLedger},
};
use insula_worker::{
    ledger::{self, Line, Summary},
    plan::{self, Turns},
    seed,
};

use super::{client::Client, out::say, run::job_name};
use crate::{args::AuditArgs, failure::Failure};

/// `insula audit`
pub async fn run(args: AuditArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client).await?;
    let job = job_name(&args.job)?;
    let Audited { spec, succeeded, ledgers, corpus } = of_job(&client, &job).await?;
    let turns = turns(&client, &corpus).await?;
    let selected = plan::select(&turns, spec.data.share, spec.data.mix, spec.seed);
    let mut audited = Vec::new();
    for (place, (stage, of_stage)) in spec.training_stages().into_iter().zip(&ledgers).enumerate() {
        let samples = plan::asked(&selected, &stage.objectives);
        let lines = lines(&client, of_stage).await?;
        let summary =
            ledger::verify(lines.iter().map(String::as_str), &samples, &stage, seed::of_stage(spec.seed, place));
        let summary = summary.map_err(|fault| Failure::Operation(format!("{job}, {}: {fault}", stage.name())))?;
        let Summary { updates, all, .. } = summary;
        // A training that goes on has a ledger up to its newest checkpoint; one that has ended has all of it.
        if succeeded && updates < all {
            let name = stage.name();
            return Err(Failure::Operation(format!(
                "{job}, {name}: the ledger ends after update {updates}, expected all {all} of a job that has succeeded"
            )));
        }
        audited.push((stage, samples.len(), summary));
    }
    if args.json {
        let stages: Vec<_> = audited.iter().map(|(stage, samples, summary)| json(stage, *samples, summary)).collect();
        say!("{}", serde_json::json!({ "job_id": job, "stages": stages }));
    } else {
        audited.iter().for_each(|(stage, samples, summary)| say!("{job}, {}", text(stage, *samples, summary)));
    }
    client.close().await;
    Ok(())
}

/// What is audited of a job.
struct Audited {
    spec: JobSpec,
    succeeded: bool,
    /// By stage.
    ledgers: Vec<StageLedger>,
    corpus: CorpusManifest,
}

async fn of_job(client: &Client, job: &str) -> Result<Audited, Failure> {
    let request = GetJobRequest { job_id: job.to_owned(), etag: String::new() };
    let found = client.jobs().get(request).await.map_err(|status| client.failure(&status))?.into_inner();
    let found = found.job.unwrap_or_default();
    let succeeded = found.state() == JobState::Succeeded;
    let spec = convert::job_spec(found.spec.unwrap_or_default());
    let spec = spec.map_err(|_| Failure::Operation(format!("{job}: its settings do not read")))?;
    if !spec.trains() {
        return Err(Failure::Input(format!("{job} trains nothing: expected a job with a training")));
    }
    let request = LedgerRequest { job_id: job.to_owned() };
    let ledger = client.jobs().ledger(request).await.map_err(|status| client.failure(&status))?.into_inner();
    let request = GetCorpusRequest { digest: ledger.corpus_digest };
    let corpus = client.corpora().get(request).await.map_err(|status| client.failure(&status))?.into_inner();
    let corpus = corpus.corpus.unwrap_or_default().try_into();
    let corpus = corpus.map_err(|e| Failure::operation(format!("{job}: its corpus"), e))?;
    Ok(Audited { spec, succeeded, ledgers: ledger.stages, corpus })
}

/// How many turns each dialogue of the training split has, in order.
async fn turns(client: &Client, corpus: &CorpusManifest) -> Result<Vec<Turns>, Failure> {
    let mut turns = Vec::new();
    for of in corpus.splits.get(&Split::Train).map_or(&[][..], |split| &split.shards) {
        let bytes = bytes(client, of.digest.as_str()).await?;
        let dialogues = shard::decode(&bytes).map_err(|e| Failure::operation(format!("shard {}", of.digest), e))?;
        turns.extend(dialogues.iter().map(|dialogue| Turns { turns: dialogue.utterances.len(), part: of.part }));
    }
    Ok(turns)
}

/// A stage's lines, those of updates that its segments do not count left out.
async fn lines(client: &Client, ledger: &StageLedger) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    for segment in &ledger.segments {
        let Artifact { digest, .. } = segment.lines.clone().unwrap_or_default();
        let text = String::from_utf8(bytes(client, &digest).await?);
        let text = text.map_err(|e| Failure::operation(format!("ledger {digest}"), e))?;
        let counts = |line: &&str| match serde_json::from_str::<Line>(line) {
            Ok(read) => (segment.first..=segment.last).contains(&read.update),
            Err(_) => true, // whoever verifies it says what is wrong with it
        };
        lines.extend(text.lines().filter(counts).map(str::to_owned));
    }
    Ok(lines)
}

/// An artifact, checked.
async fn bytes(client: &Client, digest: &str) -> Result<Vec<u8>, Failure> {
    let request = GetArtifactRequest { digest: digest.to_owned() };
    let mut chunks = client.artifacts().get(request).await.map_err(|status| client.failure(&status))?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.message().await.map_err(|status| client.failure(&status))? {
        bytes.extend_from_slice(&chunk.data);
    }
    let got = Digest::of(&bytes);
    if got.as_str() == digest { Ok(bytes) } else { Err(Failure::Operation(format!("{digest} arrived as {got}"))) }
}

fn text(stage: &Stage, samples: usize, summary: &Summary) -> String {
    let Summary { updates, slots, samples: used, passes, workers, leases, .. } = summary;
    let shares: Vec<_> = workers.iter().map(|(worker, slots)| format!("{worker} {slots}")).collect();
    let order = match *used == samples as u64 * u64::from(*passes) {
        true => format!("{passes} passes over {samples} samples, every one exactly once in each"),
        false => format!("{passes} passes over {samples} samples and a part of another, none twice, none left out"),
    };
    format!(
        "{}: {updates} updates in {slots} slots: {order}\n  slots by worker, under {leases} leases: {}",
        stage.name(),
        shares.join(", ")
    )
}

fn json(stage: &Stage, samples: usize, summary: &Summary) -> serde_json::Value {
    let Summary { updates, all: _, slots, samples: used, passes, workers, leases } = summary;
    serde_json::json!({ "stage": stage.name(), "samples": samples, "updates": updates, "slots": slots, "used": used,
        "passes": passes, "workers": workers, "leases": leases })
}
