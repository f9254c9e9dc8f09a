//! Deletes artifacts that nothing refers to. What is referred to is asked of the owner first; what was stored within the
//! last hour is left alone, since a worker stores a file before it reports it.

use std::time::Duration;

use futures::TryStreamExt;
use insula_proto::ids::Digest;
use tokio_util::sync::CancellationToken;

use super::{
    artifacts::{ArtifactError, Artifacts},
    clock::wall_ms,
    owner::{AskError, OwnerHandle},
};
use crate::schedule::{Answer, Request, keep::Kept};

/// What is younger is not looked at, ms.
const YOUNG_MS: u64 = 3_600_000;

/// Why nothing more was pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The owner does not say what is referred to.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The store failed.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

/// Files and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub files: u64,
    /// How large together.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// What a pruning came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Deleted, or to be deleted.
    pub deleted: Count,
    /// Left.
    pub kept: Count,
}

/// Prunes once; `dry_run` deletes nothing and says what it would.
///
/// # Errors
/// When the owner or the store fails; what was deleted until then is gone.
pub async fn prune(owner: &OwnerHandle, artifacts: &Artifacts, dry_run: bool) -> Result<Pruned, PruneError> {
    let now_ms = wall_ms();
    let kept = match owner.ask(Request::Kept).await? {
        Answer::Kept(kept) => kept,
        other => unreachable!("what is kept is answered with digests, got {other:?}"),
    };
    let states = states_of(&kept, artifacts).await?;
    let mut pruned = Pruned::default();
    let mut all = std::pin::pin!(artifacts.all());
    while let Some(found) = all.try_next().await? {
        let is_old = |stored_ms: u64| stored_ms + YOUNG_MS <= now_ms;
        let needed = kept.digests.contains(&found.digest) || states.contains(&found.digest);
        if needed || !is_old(found.stored_ms) {
            pruned.kept.add(found.bytes);
            continue;
        }
        // Files are listed a thousand at a time: the same bytes may have been stored anew since, and be reported by now.
        if !dry_run && artifacts.stored_ms(&found.digest).await?.is_some_and(is_old) {
            artifacts.delete(&found.digest).await?;
        }
        pruned.deleted.add(found.bytes);
    }
    Ok(pruned)
}

/// The states that manifests of an older journal name. A manifest that does not read names none that could be used.
async fn states_of(kept: &Kept, artifacts: &Artifacts) -> Result<Vec<Digest>, ArtifactError> {
    let mut states = Vec::new();
    for manifest in &kept.manifests {
        let bytes = match artifacts.get(manifest).await {
            Err(ArtifactError::Missing(_) | ArtifactError::Damaged { .. }) => continue,
            bytes => bytes?,
        };
        let manifest: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
        let state = manifest.as_ref().and_then(|manifest| manifest["state"].as_str());
        states.extend(state.and_then(|state| state.parse::<Digest>().ok()));
    }
    Ok(states)
}

/// Prunes every so often until the coordinator stops.
pub async fn prune_regularly(owner: OwnerHandle, artifacts: Artifacts, every: Duration, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = stop.cancelled() => return,
        }
        match prune(&owner, &artifacts, false).await {
            Ok(Pruned { deleted, .. }) if deleted.files > 0 => {
                tracing::info!(
                    files = deleted.files,
                    bytes = deleted.bytes,
                    "artifacts that nothing needs were deleted"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "artifacts could not be pruned"),
        }
    }
}
