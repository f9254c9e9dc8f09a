//! Deals whole dialogues into shards and writes down which shard holds what.
//!
//! Every utterance is in exactly one shard, dialogues stay whole and in file order, and the same corpus always gives
//! the same shards, so a corpus's digest is the digest of what it says.

use std::collections::BTreeMap;

use insula_proto::{
    corpus::{CorpusManifest, Dialogue, LabelSet, Shard, Split, SplitManifest},
    ids::{Digest, Hasher},
    shard,
};

use crate::corpus::Corpus;

/// Utterances in a shard, about: evaluating so many takes a CPU worker about a minute, which is what a lost worker
/// costs (guessed for a 135M base on two cores).
pub const SHARD_UTTERANCES: usize = 256;

/// A corpus cut into files, and the manifest that names them.
#[derive(Debug, Clone)]
pub struct Sharded {
    /// Which shard holds what.
    pub manifest: CorpusManifest,
    /// The shards' bytes, by digest.
    pub files: BTreeMap<Digest, Vec<u8>>,
}

/// Cuts a corpus into shards.
pub fn shards(corpus: &Corpus) -> Sharded {
    let mut files = BTreeMap::new();
    let mut splits = BTreeMap::new();
    for (&split, dialogues) in &corpus.splits {
        let shards = deal(dialogues).into_iter().map(|part| {
            let bytes = shard::encode(part);
            let shard = shard_of(part, &bytes);
            files.insert(shard.digest.clone(), bytes);
            shard
        });
        splits.insert(split, SplitManifest { shards: shards.collect() });
    }
    let digest = corpus_digest(&corpus.labels, &splits);
    let manifest = CorpusManifest { name: corpus.name.clone(), digest, labels: corpus.labels.clone(), splits };
    Sharded { manifest, files }
}

fn shard_of(part: &[Dialogue], bytes: &[u8]) -> Shard {
    let count = |n: usize| u32::try_from(n).expect("a corpus file has fewer than 2^32 utterances");
    Shard {
        digest: Digest::of(bytes),
        bytes: bytes.len() as u64,
        dialogues: count(part.len()),
        utterances: count(part.iter().map(|d| d.utterances.len()).sum()),
    }
}

/// Runs of whole dialogues with at most [`SHARD_UTTERANCES`] utterances, or one dialogue that alone has more.
pub fn deal(dialogues: &[Dialogue]) -> Vec<&[Dialogue]> {
    let mut parts = Vec::new();
    let (mut start, mut held) = (0, 0);
    for (place, dialogue) in dialogues.iter().enumerate() {
        if place > start && held + dialogue.utterances.len() > SHARD_UTTERANCES {
            parts.push(&dialogues[start..place]);
            (start, held) = (place, 0);
        }
        held += dialogue.utterances.len();
    }
    if start < dialogues.len() {
        parts.push(&dialogues[start..]);
    }
    parts
}

/// Digest of the labels and of every shard's digest in order; the corpus's name has no part in it.
fn corpus_digest(labels: &LabelSet, splits: &BTreeMap<Split, SplitManifest>) -> Digest {
    let mut hasher = Hasher::default();
    let mut line = |word: &str, value: &str| hasher.update(format!("{word} {}:{value}\n", value.len()).as_bytes());
    line("corpus", "1");
    labels.names().iter().for_each(|label| line("label", label));
    for (split, manifest) in splits {
        line("split", split.as_str());
        manifest.shards.iter().for_each(|shard| line("shard", shard.digest.as_str()));
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use insula_proto::corpus::{Label, Utterance};
    use proptest::prelude::*;

    use super::*;

    fn dialogue(number: usize, utterances: usize) -> Dialogue {
        let turn = |place: usize| Utterance {
            id: place.to_string(),
            speaker: 0,
            speaker_name: "Ross".into(),
            text: format!("{number} {place}"),
            gold: Label(0),
        };
        Dialogue { id: format!("train/{number}"), utterances: (0..utterances).map(turn).collect() }
    }

    fn corpus(sizes: &[usize]) -> Corpus {
        let dialogues = sizes.iter().enumerate().map(|(number, &size)| dialogue(number, size)).collect();
        let labels = LabelSet::new(vec!["good".into(), "bad".into()]).unwrap();
        Corpus { name: "sample".into(), labels, splits: BTreeMap::from([(Split::Train, dialogues)]) }
    }

    proptest! {
        #[test]
        fn every_utterance_is_in_exactly_one_shard(sizes in prop::collection::vec(1usize..300, 1..40)) {
            let corpus = corpus(&sizes);
            let sharded = shards(&corpus);
            let manifest = &sharded.manifest.splits[&Split::Train];
            let read: Vec<Dialogue> = manifest
                .shards
                .iter()
                .flat_map(|s| shard::decode(&sharded.files[&s.digest]).expect("a shard decodes"))
                .collect();
            prop_assert_eq!(&read, &corpus.splits[&Split::Train]);
            prop_assert_eq!(manifest.utterances(), sizes.iter().sum::<usize>() as u64);
            let bounded = |s: &Shard| s.utterances as usize <= SHARD_UTTERANCES || s.dialogues == 1;
            prop_assert!(manifest.shards.iter().all(bounded));
        }
    }

    #[test]
    fn the_digest_names_what_a_corpus_says_and_not_what_it_is_called() {
        let mut other = corpus(&[3, 4]);
        other.name = "copy".into();
        assert_eq!(shards(&corpus(&[3, 4])).manifest.digest, shards(&other).manifest.digest);
        assert_ne!(shards(&corpus(&[3, 5])).manifest.digest, shards(&other).manifest.digest);
        other.labels = LabelSet::new(vec!["bad".into(), "good".into()]).unwrap();
        assert_ne!(shards(&corpus(&[3, 4])).manifest.digest, shards(&other).manifest.digest);
    }
}
