//! `insula explain`, `resume`, `pin`, `prune`: what a person does about jobs that are there.

use insula_proto::v1::{ExplainRequest, PinRequest, PruneRequest, PruneResponse, ResumeRequest};

use super::{client::Client, jobs::summary, out::say, run::job_name};
use crate::{
    args::{JobArgs, PinArgs, PruneArgs, ResumeArgs},
    failure::Failure,
};

/// `insula explain`
pub async fn explain(args: JobArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client).await?;
    let request = ExplainRequest { job_id: job_name(&args.job)? };
    let answer = client.jobs().explain(request).await.map_err(|status| client.failure(&status))?.into_inner();
    answer.sentences.iter().for_each(|sentence| say!("{sentence}"));
    client.close().await;
    Ok(())
}

/// `insula resume`
pub async fn resume(args: ResumeArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client).await?;
    let request = ResumeRequest { job_id: job_name(&args.job)?, pause_epoch: args.epoch };
    let answer = client.jobs().resume(request).await.map_err(|status| client.failure(&status))?.into_inner();
    say!("{}", summary(&answer.job.unwrap_or_default()));
    client.close().await;
    Ok(())
}

/// `insula pin`
pub async fn pin(args: PinArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client).await?;
    let request = PinRequest { job_id: job_name(&args.job)?, pinned: !args.off };
    let answer = client.jobs().pin(request).await.map_err(|status| client.failure(&status))?.into_inner();
    let job = answer.job.unwrap_or_default();
    say!("{}{}", summary(&job), if job.pinned { "  pinned" } else { "" });
    client.close().await;
    Ok(())
}

/// `insula prune`
pub async fn prune(args: PruneArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client).await?;
    let request = PruneRequest { dry_run: args.dry_run };
    let answer = client.artifacts().prune(request).await.map_err(|status| client.failure(&status))?.into_inner();
    let PruneResponse { deleted_files, deleted_bytes, kept_files, kept_bytes } = answer;
    let word = if args.dry_run { "would delete" } else { "deleted" };
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    say!(
        "{word} {deleted_files} files ({:.1} MB), kept {kept_files} ({:.1} MB)",
        megabytes(deleted_bytes),
        megabytes(kept_bytes)
    );
    client.close().await;
    Ok(())
}
