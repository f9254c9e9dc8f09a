//! Which artifacts are kept: everything that something refers to, and of an ended job its best and its latest.
//!
//! ```text
//! a job that has not ended, or is pinned     everything it knows of
//! an ended job                               the best epoch's adapter (the latest where none is best), the latest checkpoint,
//!                                            ledger, predictions, embeddings
//! every job                                  its corpus's shards, what it starts from
//! the fleet                                  cached tokens
//! ```

use std::collections::BTreeSet;

use insula_proto::ids::Digest;

use super::state::{Job, State, Training};
use super::task::TaskState;

/// What is not to be deleted.
#[derive(Debug, Default)]
pub struct Kept {
    /// Every digest that something refers to.
    pub digests: BTreeSet<Digest>,
    /// Kept manifests that name a state themselves: journals of 0.1.0 did not write it down.
    pub manifests: BTreeSet<Digest>,
}

/// Everything that is kept.
pub fn kept(state: &State) -> Kept {
    let mut kept = Kept::default();
    for corpus in state.corpora.values() {
        let shards = corpus.splits.values().flat_map(|split| &split.shards);
        kept.digests.extend(shards.map(|shard| shard.digest.clone()));
    }
    kept.digests.extend(state.tokens.cached.values().cloned());
    state.jobs.values().for_each(|job| keep_job(&mut kept, job));
    kept
}

fn keep_job(kept: &mut Kept, job: &Job) {
    kept.digests.extend(job.start.iter().map(|file| file.digest.clone()));
    for task in &job.tasks {
        match &task.state {
            TaskState::Evaluated(evaluated) => drop(kept.digests.insert(evaluated.predictions.digest.clone())),
            TaskState::Embedded(embedded) => drop(kept.digests.insert(embedded.embeddings.digest.clone())),
            _ => {}
        }
    }
    let all = job.pinned || !job.phase.name().is_final();
    job.stages.iter().for_each(|stage| keep_stage(kept, stage, all));
}

fn keep_stage(kept: &mut Kept, stage: &Training, all: bool) {
    kept.digests.extend(stage.ledger.iter().map(|segment| segment.lines.digest.clone()));
    for checkpoint in stage.checkpoints.iter().take(if all { usize::MAX } else { 1 }) {
        kept.digests.extend(checkpoint.artifacts().cloned());
        if checkpoint.state.is_none() {
            kept.manifests.insert(checkpoint.manifest.clone());
        }
    }
    let best = stage.best.or(stage.epochs.last_key_value().map(|(epoch, _)| *epoch));
    let epochs = stage.epochs.iter().filter(|(epoch, _)| all || Some(**epoch) == best);
    kept.digests.extend(epochs.flat_map(|(_, files)| files).map(|file| file.digest.clone()));
}
