//! Deals whole dialogues into shards and writes down which shard holds what.
//!
//! Every utterance is in exactly one shard, dialogues stay whole and in file order, and the same corpus always gives
//! the same shards, so a corpus's digest is the digest of what it says.

use std::collections::BTreeMap;

use insula_proto::{
    corpus::{CorpusManifest, Dialogue, LabelSet, Split, SplitManifest},
    ids::{Digest, Hasher},
};

/// Utterances in each of a split's first shards, about: evaluating so many takes a CPU worker about a minute, which is
/// what a lost worker costs (guessed for a 135M base on two cores).
const SHARD_UTTERANCES: usize = 256;

/// After so many shards of one size the next ones hold twice as much: a shard costs a file, a sync and a line of the
/// manifest, and whoever has a split this long has time for larger pieces.
const SHARDS_OF_ONE_SIZE: usize = 64;

/// Utterances in a shard at most, about, however long the split: what bounds the memory of sharding.
const SHARD_UTTERANCES_MAX: usize = 16 * SHARD_UTTERANCES;

/// Utterances the shard at a place of its split may hold: 256 in the first 64, 512 in the next 64, up to 4096.
fn room_at(place: usize) -> usize {
    let doublings = u32::try_from(place / SHARDS_OF_ONE_SIZE).unwrap_or(u32::MAX);
    let grown = 2usize.checked_pow(doublings).and_then(|times| times.checked_mul(SHARD_UTTERANCES));
    grown.map_or(SHARD_UTTERANCES_MAX, |room| room.min(SHARD_UTTERANCES_MAX))
}

/// Cuts a split's dialogues, as they come, into runs that fill their shards; a dialogue longer than a shard is one.
///
/// An error ends the run at hand, which is then not given: nothing is made of a split that cannot be read whole.
pub fn deal<E>(dialogues: impl Iterator<Item = Result<Dialogue, E>>) -> impl Iterator<Item = Result<Vec<Dialogue>, E>> {
    let mut dialogues = dialogues.peekable();
    (0..).map_while(move |place| {
        let (room, mut held) = (room_at(place), 0);
        let mut part = Vec::new();
        let fits = |dialogue: &Dialogue, held: usize| held == 0 || held + dialogue.utterances.len() <= room;
        while let Some(next) = dialogues.next_if(|next| next.as_ref().map_or(true, |dialogue| fits(dialogue, held))) {
            match next {
                Ok(dialogue) => {
                    held += dialogue.utterances.len();
                    part.push(dialogue);
                }
                Err(error) => return Some(Err(error)),
            }
        }
        (!part.is_empty()).then_some(Ok(part))
    })
}

/// The manifest of splits that were cut into shards.
pub fn manifest(name: &str, labels: &LabelSet, splits: BTreeMap<Split, SplitManifest>) -> CorpusManifest {
    let digest = corpus_digest(labels, &splits);
    CorpusManifest { name: name.into(), digest, labels: labels.clone(), splits }
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
    use insula_proto::corpus::{Label, Shard, Utterance};
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

    fn dialogues(sizes: &[usize]) -> Vec<Dialogue> {
        sizes.iter().enumerate().map(|(number, &size)| dialogue(number, size)).collect()
    }

    fn dealt(sizes: &[usize]) -> Vec<Vec<Dialogue>> {
        deal(dialogues(sizes).into_iter().map(Ok::<_, ()>)).map(Result::unwrap).collect()
    }

    fn utterances(part: &[Dialogue]) -> usize {
        part.iter().map(|d| d.utterances.len()).sum()
    }

    proptest! {
        #[test]
        fn every_utterance_is_in_exactly_one_shard(sizes in prop::collection::vec(1usize..300, 1..40)) {
            let parts = dealt(&sizes);
            prop_assert!(parts.iter().all(|part| utterances(part) <= SHARD_UTTERANCES || part.len() == 1));
            let full = |pair: &[Vec<Dialogue>]| utterances(&pair[0]) + pair[1][0].utterances.len() > SHARD_UTTERANCES;
            prop_assert!(parts.windows(2).all(full));
            prop_assert_eq!(parts.concat(), dialogues(&sizes));
        }
    }

    #[test]
    fn the_shards_of_a_long_split_grow_and_then_stay() {
        let sizes: Vec<usize> = dealt(&[64; 6000]).iter().map(|part| utterances(part)).collect();
        let expected = [256, 512, 1024, 2048].iter().flat_map(|&size| [size; 64]).chain([4096; 33]);
        assert_eq!(sizes[..289], expected.collect::<Vec<_>>());
        assert_eq!(room_at(usize::MAX), SHARD_UTTERANCES_MAX);
    }

    #[test]
    fn an_error_is_handed_on_and_the_run_it_ends_is_not() {
        let parts = deal([Ok(dialogue(0, 3)), Err("row 5"), Ok(dialogue(1, 3))].into_iter());
        assert_eq!(parts.take(1).collect::<Vec<_>>(), [Err("row 5")]);
    }

    #[test]
    fn the_digest_names_what_a_corpus_says_and_not_what_it_is_called() {
        let labels = |names: [&str; 2]| LabelSet::new(names.map(String::from).to_vec()).unwrap();
        let digest = |name: &str, names, content: &str| {
            let shard = Shard { digest: Digest::of(content.as_bytes()), bytes: 1, dialogues: 1, utterances: 1 };
            let splits = BTreeMap::from([(Split::Train, SplitManifest { shards: vec![shard] })]);
            manifest(name, &labels(names), splits).digest
        };
        let one = digest("sample", ["good", "bad"], "text");
        assert_eq!(one, digest("copy", ["good", "bad"], "text"));
        assert_ne!(one, digest("sample", ["good", "bad"], "other text"));
        assert_ne!(one, digest("sample", ["bad", "good"], "text"));
    }
}
