//! Deals whole dialogues into shards and writes down which shard holds what.
//!
//! Every utterance is in exactly one shard, dialogues stay whole and in file order, and the same corpus always gives
//! the same shards, so a corpus's digest is the digest of what it says.

use std::collections::BTreeMap;

use insula_proto::{
    corpus::{CorpusManifest, Dialogue, LabelSet, Part, Shard, Split, SplitManifest},
    ids::{Digest, Hasher},
    job::Share,
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

/// Keeps `floor(n * share)` of `n` dialogues, spread evenly and without knowing `n`: whoever evaluates a share of a split
/// sees the same dialogues in every job.
pub fn spread<T, E>(dialogues: impl Iterator<Item = Result<T, E>>, share: Share) -> impl Iterator<Item = Result<T, E>> {
    let kept = move |place: u64| share.of(place + 1) > share.of(place);
    let numbered = (0..).zip(dialogues);
    numbered.filter(move |(place, dialogue)| dialogue.is_err() || kept(*place)).map(|(_, dialogue)| dialogue)
}

/// The manifest of splits that were cut into shards; no dialogue has more than `speakers`.
pub fn manifest(
    name: &str,
    labels: &LabelSet,
    speakers: u32,
    splits: BTreeMap<Split, SplitManifest>,
) -> CorpusManifest {
    let digest = corpus_digest(labels, &splits);
    let parts = vec![Part { name: name.into(), digest: digest.clone(), speakers }];
    CorpusManifest { name: name.into(), digest, labels: labels.clone(), splits, parts }
}

/// Corpora that do not have one label set.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "corpora {first} and {second} have different labels ({first_labels}; {second_labels}): expected a mapping onto one \
     set in labels.file"
)]
pub struct DifferentLabels {
    first: String,
    second: String,
    first_labels: String,
    second_labels: String,
}

/// The corpus that several make together, each a part of it under its name, in this order.
///
/// # Errors
/// When their label sets are not one.
///
/// # Panics
/// When there is none.
pub fn mixed(corpora: Vec<(String, CorpusManifest)>) -> Result<CorpusManifest, DifferentLabels> {
    let (first_name, first) = corpora.first().expect("a mix has at least one corpus").clone();
    let names: Vec<&str> = corpora.iter().map(|(name, _)| name.as_str()).collect();
    let name = names.join("+");
    let mut mix = CorpusManifest { name, parts: vec![], splits: BTreeMap::new(), ..first.clone() };
    let mut hasher = Hasher::default();
    for (place, (name, corpus)) in (0..).zip(corpora) {
        if corpus.labels != first.labels {
            let listed = |corpus: &CorpusManifest| corpus.labels.names().join(", ");
            let (first_labels, second_labels) = (listed(&first), listed(&corpus));
            return Err(DifferentLabels { first: first_name, second: name, first_labels, second_labels });
        }
        hasher.update(format!("part {}:{name} {}\n", name.len(), corpus.digest).as_bytes());
        for (split, manifest) in corpus.splits {
            let of_part = manifest.shards.into_iter().map(|shard| Shard { part: place, ..shard });
            mix.splits.entry(split).or_default().shards.extend(of_part);
        }
        let speakers = corpus.parts.iter().map(|part| part.speakers).max().unwrap_or(0);
        mix.parts.push(Part { name, digest: corpus.digest, speakers });
    }
    mix.digest = hasher.finish();
    Ok(mix)
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
            let shard =
                Shard { digest: Digest::of(content.as_bytes()), bytes: 1, dialogues: 1, utterances: 1, part: 0 };
            let splits = BTreeMap::from([(Split::Train, SplitManifest { shards: vec![shard] })]);
            manifest(name, &labels(names), 1, splits).digest
        };
        let one = digest("sample", ["good", "bad"], "text");
        assert_eq!(one, digest("copy", ["good", "bad"], "text"));
        assert_ne!(one, digest("sample", ["good", "bad"], "other text"));
        assert_ne!(one, digest("sample", ["bad", "good"], "text"));
    }

    #[test]
    fn a_share_of_dialogues_is_spread_evenly_and_floors() {
        let kept = |n: usize, share: &str| {
            let all = (0..n).map(Ok::<_, ()>);
            spread(all, share.parse().unwrap()).map(Result::unwrap).collect::<Vec<_>>()
        };
        assert_eq!(kept(10, "1/4"), [3, 7]);
        assert_eq!(kept(5, "1"), [0, 1, 2, 3, 4]);
        assert_eq!(kept(280, "1/8").len(), 280 / 8);
        assert!(kept(3, "1/4").is_empty());
    }

    #[test]
    fn a_mix_holds_every_shard_of_every_part_under_one_label_set() {
        let corpus = |content: &str, labels: [&str; 2], speakers| {
            let digest = Digest::of(content.as_bytes());
            let shard = Shard { digest, bytes: 1, dialogues: 1, utterances: 3, part: 0 };
            let splits = BTreeMap::from([(Split::Train, SplitManifest { shards: vec![shard] })]);
            manifest(content, &LabelSet::new(labels.map(String::from).to_vec()).unwrap(), speakers, splits)
        };
        let of = |name: &str, corpus| (String::from(name), corpus);
        let (a, b) = (corpus("a", ["good", "bad"], 2), corpus("b", ["good", "bad"], 9));
        let mix = mixed(vec![of("one", a.clone()), of("two", b)]).unwrap();
        assert_eq!(mix.name, "one+two");
        let shards = &mix.splits[&Split::Train].shards;
        assert_eq!(
            shards.iter().map(|shard| (shard.part, mix.part_name(shard))).collect::<Vec<_>>(),
            [(0, "one"), (1, "two")]
        );
        assert_eq!(mix.parts.iter().map(|part| part.speakers).collect::<Vec<_>>(), [2, 9]);
        let other = mixed(vec![of("one", a), of("two", corpus("b", ["good", "evil"], 9))]).unwrap_err().to_string();
        assert!(other.contains("one and two have different labels (good, bad; good, evil)"), "{other}");
    }
}
