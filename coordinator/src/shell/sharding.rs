//! A corpus from its files into the artifact store, in memory that does not grow with it.
//!
//! ```text
//! [reading thread]                  [as many as there are cores]     [runtime]
//! survey -> dialogues -> parts --q--> encode, compress            --> hash, store, sync --> manifest, in order
//!                              2                      at most IN_FLIGHT parts from here on
//! ```
//!
//! The manifest names a shard only after the shard is on disk. Parts are taken up in order and come out in order, so
//! the manifest does not depend on who was faster. What a failed sharding stored stays under its digests, named by
//! nobody; the next try finds it there.

use std::{collections::BTreeMap, num::NonZero, sync::Arc, thread::available_parallelism};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use insula_proto::{
    corpus::{CorpusManifest, Dialogue, Shard, Split, SplitManifest},
    job::{CorpusSpec, JobSpec, LabelsSpec, Share},
    shard::encode,
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{JoinError, spawn_blocking},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    artifacts::{ArtifactError, Artifacts},
    corpora::survey_corpus,
};
use crate::{
    corpus::{
        CorpusError, Surveyed,
        describe::{Describer, Description},
    },
    shard::{self, DifferentLabels},
};

/// Parts that wait to be encoded: one to be taken up at once, and one so that the reader seldom waits.
const PARTS: usize = 2;

/// Parts being encoded or stored at once. Storing one is mostly waiting for three syncs of the disk, so more of them
/// than cores keep the cores busy; a part is a few megabytes.
const IN_FLIGHT: usize = 8;

/// Why a corpus was not sharded.
#[derive(Debug, thiserror::Error)]
pub enum ShardingError {
    /// It cannot be read.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// Several that do not go together.
    #[error(transparent)]
    Mix(#[from] DifferentLabels),
    /// It cannot be stored.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A bug: a thread of the sharding panicked.
    #[error("the sharding panicked: {0}")]
    Panicked(#[from] JoinError),
}

/// A corpus in the store.
#[derive(Debug, Clone)]
pub struct Sharded {
    /// Which shards hold it.
    pub manifest: CorpusManifest,
    /// What is in each of its corpora, counted on the way.
    pub descriptions: Vec<Description>,
}

/// Dialogues of one shard.
type Part = (Split, Vec<Dialogue>);

/// Reads the corpus of a job, or all of its corpora, and stores their shards. Dropped, it stops by itself.
///
/// # Errors
/// As [`shard_corpus`], and when the corpora of a mix do not have one label set.
pub async fn shard_job(spec: &JobSpec, artifacts: &Artifacts) -> Result<Sharded, ShardingError> {
    let (mut corpora, mut descriptions) = (Vec::new(), Vec::new());
    for (name, corpus) in spec.all_corpora() {
        let sharded = shard_corpus(corpus, name, &spec.labels, spec.evaluate.dialogues, artifacts).await?;
        let called = name.map_or_else(|| sharded.0.name.clone(), String::from);
        corpora.push((called, sharded.0));
        descriptions.push(sharded.1);
    }
    let manifest = if spec.corpora.is_empty() { corpora.remove(0).1 } else { shard::mixed(corpora)? };
    Ok(Sharded { manifest, descriptions })
}

/// Reads the corpus in `spec.path`, which the job may have a name for, its labels mapped as `labels` says, and stores its shards: all dialogues of train,
/// the `evaluated` share of dev's and test's.
///
/// # Errors
/// The first thing that is wrong with the corpus, with file and row; or that the store refused.
async fn shard_corpus(
    spec: &CorpusSpec,
    called: Option<&str>,
    labels: &LabelsSpec,
    evaluated: Share,
    artifacts: &Artifacts,
) -> Result<(CorpusManifest, Description), ShardingError> {
    let (spec, called, labels) = (spec.clone(), called.map(String::from), labels.clone());
    let surveyed = Arc::new(spawn_blocking(move || survey_corpus(&spec, &labels, called.as_deref())).await??);
    let (parts_in, parts) = mpsc::channel(PARTS);
    let reading = {
        let surveyed = surveyed.clone();
        spawn_blocking(move || read_parts(&surveyed, evaluated, &parts_in))
    };
    let cores = Arc::new(Semaphore::new(available_parallelism().map_or(1, NonZero::get)));
    let stored = |part: Result<Part, CorpusError>| store(part, cores.clone(), artifacts);
    let mut stored = ReceiverStream::new(parts).map(stored).buffered(IN_FLIGHT);
    let mut splits: BTreeMap<Split, SplitManifest> =
        surveyed.splits().map(|split| (split, Default::default())).collect();
    while let Some((split, shard)) = stored.try_next().await? {
        splits.entry(split).or_default().shards.push(shard);
    }
    let description = reading.await?;
    // Of the whole corpus, whatever share of it is evaluated: a speaker's number is the same in every job.
    let speakers = description.splits.values().map(|split| split.most_speakers).max().unwrap_or(0);
    let speakers = u32::try_from(speakers).expect("a dialogue in memory has fewer than 2^32 speakers");
    Ok((shard::manifest(surveyed.name(), surveyed.labels(), speakers, splits), description))
}

/// Hands on all parts in order, or the first error; stops where nobody takes them any more. Gives the description of
/// what was read, which is the whole corpus where all parts were taken.
fn read_parts(surveyed: &Surveyed, evaluated: Share, parts: &mpsc::Sender<Result<Part, CorpusError>>) -> Description {
    let mut describer = Describer::new(surveyed.labels(), surveyed.splits());
    for split in surveyed.splits() {
        let share = if split == Split::Train { Share::WHOLE } else { evaluated };
        let part = |part: Result<Vec<Dialogue>, CorpusError>| part.map(|part| (split, part));
        let ended = match surveyed.dialogues(split) {
            Ok(dialogues) => {
                let seen = dialogues.inspect(|dialogue| {
                    dialogue.iter().for_each(|dialogue| describer.see(split, dialogue));
                });
                shard::deal(shard::spread(seen, share)).map(part).any(|part| {
                    let wrong = part.is_err();
                    parts.blocking_send(part).is_err() || wrong
                })
            }
            Err(error) => {
                drop(parts.blocking_send(Err(error)));
                true
            }
        };
        if ended {
            break;
        }
    }
    describer.finish(surveyed.name(), surveyed.layout(), |split| surveyed.left_out(split))
}

async fn store(
    part: Result<Part, CorpusError>,
    cores: Arc<Semaphore>,
    artifacts: &Artifacts,
) -> Result<(Split, Shard), ShardingError> {
    let (split, part) = part?;
    let count = |n: usize| u32::try_from(n).expect("a dialogue in memory has fewer than 2^32 utterances");
    let (dialogues, utterances) = (count(part.len()), count(part.iter().map(|d| d.utterances.len()).sum()));
    let bytes = {
        let _core = cores.acquire_owned().await.expect("the semaphore is never closed");
        spawn_blocking(move || encode(&part)).await?
    };
    let size = bytes.len() as u64;
    let digest = artifacts.put(Bytes::from(bytes)).await?;
    Ok((split, Shard { digest, bytes: size, dialogues, utterances, part: 0 }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use insula_proto::job::JobSpec;

    use super::*;

    async fn sharded(folder: &Path) -> Result<CorpusManifest, ShardingError> {
        let store = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(store.path()).await.unwrap();
        let path = folder.to_string_lossy().into_owned();
        let spec = CorpusSpec { path, layout: "auto".into(), ..CorpusSpec::default() };
        let spec = JobSpec { corpus: spec.into(), ..JobSpec::default() };
        let Sharded { manifest, .. } = shard_job(&spec, &artifacts).await?;
        for shard in manifest.splits.values().flat_map(|split| &split.shards) {
            assert_eq!(artifacts.get(&shard.digest).await.unwrap().len() as u64, shard.bytes);
        }
        Ok(manifest)
    }

    /// Digests as the reader that held whole files in memory gave them: corpora keep their names for ever.
    #[tokio::test]
    async fn known_corpora_keep_their_digests() {
        for (folder, digest) in [
            ("../configs/sample", "027499e61dff30e7b5cae803a580e1b2c4788e9a0158946c62f6aa819ecbacd5"),
            ("../../shared/corpora/meld", "3731789cfe8f7942e21b8c74aec7fbe057c59736f5e436ebebe7ad82838430bc"),
            ("../../shared/corpora/emorynlp", "ddda56b24eb7e975b5b44aeefd6a1874a44a4e0b542e083159ab6b68e6887ec7"),
        ] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
            if folder.is_dir() {
                assert_eq!(sharded(&folder).await.unwrap().digest.hex(), digest, "{}", folder.display());
            } else {
                println!("skipped: {} is not at hand", folder.display());
            }
        }
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "the test writes a corpus")]
    async fn a_corpus_that_is_wrong_at_its_end_is_refused_with_the_row() {
        let folder = tempfile::tempdir().unwrap();
        for split in Split::ALL {
            let mut text = String::from("Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\n");
            (0..3000).for_each(|n| text += &format!("Hi,Ross,joy,{},{n}\n", n / 9));
            text += if split == Split::Test { "Hi,Ross,glee,900,0\n" } else { "" };
            std::fs::write(folder.path().join(format!("{split}.csv")), text).unwrap();
        }
        let error = sharded(folder.path()).await.unwrap_err().to_string();
        assert!(error.contains("test.csv: row 3002: unknown label 'glee'"), "{error}");
    }
}
