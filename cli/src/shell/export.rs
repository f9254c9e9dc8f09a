//! A finished job's report as files: report.json, report.md, predictions.jsonl, adapter/ (with insula.json, the card that
//! says what the adapter was trained for).

use std::path::Path;

use insula_coordinator::report::Report;
use insula_proto::{
    corpus::LabelSet,
    ids::{Digest, Hasher},
    v1::{Artifact, GetArtifactRequest, JobReport, JobReportRequest},
};
use insula_worker::predict::{CARD_FILE, Card, CardBase};
use tokio::io::AsyncWriteExt as _;

use super::client::Client;
use crate::failure::Failure;

/// Asks for a job's report.
///
/// # Errors
/// When the job is unknown or not finished.
pub async fn report(client: &Client, job: &str) -> Result<JobReport, Failure> {
    let request = JobReportRequest { job_id: job.to_owned() };
    let answer = client.jobs().report(request).await.map_err(|status| client.failure(&status))?;
    Ok(answer.into_inner())
}

/// Writes the report and what it refers to into `folder`; report.json comes last, so that its presence says the rest is whole.
///
/// # Errors
/// When the folder cannot be written or an artifact is damaged.
pub async fn write(client: &Client, report: &JobReport, folder: &Path) -> Result<(), Failure> {
    let adapter = folder.join("adapter");
    make(folder).await?;
    let predictions: Vec<&Artifact> = report.predictions.iter().collect();
    download(client, &predictions, &folder.join("predictions.jsonl")).await?;
    if !report.adapter.is_empty() {
        make(&adapter).await?;
    }
    for file in &report.adapter {
        let name = Path::new(&file.name).file_name().ok_or_else(|| odd_name(&file.name))?;
        download(client, &[file], &adapter.join(name)).await?;
    }
    if !report.adapter.is_empty() {
        write_whole(&adapter.join(CARD_FILE), card(report)?.to_json().as_bytes()).await?;
    }
    write_whole(&folder.join("report.md"), report.report_markdown.as_bytes()).await?;
    write_whole(&folder.join("report.json"), report.report_json.as_bytes()).await
}

/// What the report's adapter was trained for.
fn card(report: &JobReport) -> Result<Card, Failure> {
    let wrong = |e: &dyn std::fmt::Display| Failure::Operation(format!("the coordinator's report does not read: {e}"));
    let report = Report::from_json(&report.report_json).map_err(|e| wrong(&e))?;
    let made_from = report.provenance;
    let labels = LabelSet::new(made_from.corpus.labels).map_err(|e| wrong(&e))?;
    let base = CardBase { source: made_from.base.source, digest: made_from.base.digest };
    let recipe = made_from.recipe;
    Ok(Card {
        insula: made_from.insula_version,
        base,
        labels,
        window: recipe.data.window,
        template: recipe.data.template,
        demonstrations: recipe.retrieval.k,
    })
}

fn odd_name(name: &str) -> Failure {
    Failure::Operation(format!("the coordinator names an adapter file '{name}', which is no file name"))
}

async fn make(folder: &Path) -> Result<(), Failure> {
    tokio::fs::create_dir_all(folder).await.map_err(|e| Failure::operation(folder.display(), e))
}

async fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    tokio::fs::write(path, bytes).await.map_err(|e| Failure::operation(path.display(), e))
}

/// Writes artifacts one after the other into one file, each checked against its digest.
async fn download(client: &Client, artifacts: &[&Artifact], path: &Path) -> Result<(), Failure> {
    let wrong = |e: std::io::Error| Failure::operation(path.display(), e);
    let mut file = tokio::fs::File::create(path).await.map_err(wrong)?;
    for artifact in artifacts {
        let got = copy(client, artifact, &mut file).await.map_err(|e| match e {
            CopyError::Io(e) => wrong(e),
            CopyError::Status(status) => client.failure(&status),
        })?;
        if got.as_str() != artifact.digest {
            let (name, digest) = (&artifact.name, &artifact.digest);
            return Err(Failure::Operation(format!("{name}: arrived as {got}, expected {digest}")));
        }
    }
    file.flush().await.map_err(wrong)
}

enum CopyError {
    Io(std::io::Error),
    Status(tonic::Status),
}

async fn copy(client: &Client, artifact: &Artifact, file: &mut tokio::fs::File) -> Result<Digest, CopyError> {
    let request = GetArtifactRequest { digest: artifact.digest.clone() };
    let mut chunks = client.artifacts().get(request).await.map_err(CopyError::Status)?.into_inner();
    let mut hasher = Hasher::default();
    while let Some(chunk) = chunks.message().await.map_err(CopyError::Status)? {
        hasher.update(&chunk.data);
        file.write_all(&chunk.data).await.map_err(CopyError::Io)?;
    }
    Ok(hasher.finish())
}
