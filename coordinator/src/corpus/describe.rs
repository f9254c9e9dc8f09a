//! What is in a corpus, counted while its dialogues go by: sizes, labels, lengths, and what its splits share.
//!
//! Texts are compared by hashes of 64 bits. Their tables are bounded: where a corpus has more distinct texts than fit,
//! only hashes that end in a zero bit are kept, then in two, and so on. A text that is kept is kept in every split, so
//! what splits share can still be told; counts of texts are then estimates from a known part of them.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
};

use insula_proto::corpus::{Dialogue, LabelSet, Split};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Corpus, Layout, LeftOut};

/// Distinct texts, and distinct dialogues, that are compared at most: some 17 MB a table.
const COMPARED_MAX: usize = 1 << 18;

/// A dialogue of fewer utterances is only a text; it says nothing about leakage.
const DIALOGUE_UTTERANCES_MIN: usize = 2;

/// What is in a corpus.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Description {
    /// What people call it.
    pub name: String,
    /// How its files are laid out.
    pub layout: &'static str,
    /// The label set in prompt order.
    pub label_set: Vec<String>,
    /// Each split by its name.
    #[serde(flatten)]
    pub splits: BTreeMap<Split, SplitDescription>,
    /// What later splits share with earlier ones: each pair of splits once.
    pub leakage: Vec<Leakage>,
    /// One of so many distinct texts was compared; where it is not 1, counts of texts are estimates.
    pub texts_compared_one_in: u64,
}

/// What is in one split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SplitDescription {
    /// Dialogues.
    pub dialogues: u64,
    /// Utterances, each of which is a sample.
    pub samples: u64,
    /// What a base sees of it.
    #[serde(flatten)]
    pub prompts: Option<Prompts>,
    /// Samples by label, in prompt order.
    pub labels: Map<String, Value>,
    /// Speakers in the dialogue that has most.
    pub most_speakers: u64,
    /// Words of an utterance, as white space parts them.
    pub words: Spread,
    /// What the files hold besides.
    pub left_out: LeftOut,
    /// Different texts.
    pub distinct_texts: u64,
    /// Different texts that carry more than one label.
    pub texts_with_several_labels: u64,
    /// The commonest label; none in an empty split.
    pub majority: Option<Majority>,
}

/// What a base sees of a split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prompts {
    /// Of the separate sequences: prompt, label and end, summed.
    pub tokens: u64,
    /// Distinct tokens when each dialogue is one tree.
    pub tree_tokens: u64,
    /// Tokens of the longest prompt.
    pub longest_prompt: u64,
    /// Tokens of a prompt.
    pub prompt_tokens: Spread,
    /// Prompts that had to leave out utterances to fit the base's context.
    pub truncated_prompts: u64,
    /// Utterances that were left out of them, oldest first.
    pub dropped_utterances: u64,
}

/// How lengths spread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// The least.
    pub min: u64,
    /// Half are at most this.
    pub median: u64,
    /// 95 of a hundred are at most this.
    pub p95: u64,
    /// The greatest.
    pub max: u64,
    /// All together.
    pub total: u64,
}

/// What always answering a split's commonest label scores.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Majority {
    /// The label; of several the first in prompt order.
    pub label: String,
    /// Part of the samples, which is the accuracy.
    pub share: f64,
    /// Weighted F1, as a fraction.
    pub weighted_f1: f64,
}

/// What one split has of another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Leakage {
    /// The split that should be new.
    pub of: Split,
    /// The split it was seen in.
    #[serde(rename = "in")]
    pub within: Split,
    /// Dialogues of two utterances or more whose texts, in their order, are a dialogue of the other split too.
    pub dialogues: u64,
    /// Utterances whose text occurs in the other split.
    pub utterances: u64,
    /// Part of the utterances, as a fraction.
    pub share: f64,
}

impl Spread {
    /// The spread of lengths, given how often each occurs; zeros where there are none.
    pub fn of(counts: &BTreeMap<u64, u64>) -> Self {
        let n: u64 = counts.values().sum();
        let at = |rank: u64| {
            let mut passed = 0;
            let mut reached = counts.iter().skip_while(|(_, count)| {
                passed += **count;
                passed < rank
            });
            reached.next().map_or(0, |(length, _)| *length)
        };
        Self {
            min: counts.keys().next().copied().unwrap_or(0),
            median: at(n.div_ceil(2)),
            p95: at((n * 95).div_ceil(100)),
            max: counts.keys().next_back().copied().unwrap_or(0),
            total: counts.iter().map(|(length, count)| length * count).sum(),
        }
    }
}

/// Counts dialogues as they go by.
#[derive(Debug)]
pub struct Describer {
    labels: Vec<String>,
    splits: BTreeMap<Split, Counts>,
    texts: Sampled<Text>,
    dialogues: Sampled<[u32; 3]>,
}

#[derive(Debug, Default)]
struct Counts {
    dialogues: u64,
    labels: Vec<u64>,
    most_speakers: u64,
    words: BTreeMap<u64, u64>,
}

/// What is known of a text, by split.
#[derive(Debug, Default)]
struct Text {
    times: [u32; 3],
    label: [u16; 3],
    several: [bool; 3],
}

impl Describer {
    /// Ready to count the dialogues of some splits.
    pub fn new(labels: &LabelSet, splits: impl Iterator<Item = Split>) -> Self {
        let counts = || Counts { labels: vec![0; labels.len()], ..Counts::default() };
        Self {
            labels: labels.names().to_vec(),
            splits: splits.map(|split| (split, counts())).collect(),
            texts: Sampled::new(COMPARED_MAX),
            dialogues: Sampled::new(COMPARED_MAX),
        }
    }

    /// Counts a dialogue. Labels must be of the label set.
    pub fn see(&mut self, split: Split, dialogue: &Dialogue) {
        let labels = self.labels.len();
        let counts =
            self.splits.entry(split).or_insert_with(|| Counts { labels: vec![0; labels], ..Counts::default() });
        counts.dialogues += 1;
        let (mut speakers, mut whole) = (Vec::new(), DefaultHasher::new());
        for utterance in &dialogue.utterances {
            counts.labels[utterance.gold.index()] += 1;
            *counts.words.entry(utterance.text.split_whitespace().count() as u64).or_default() += 1;
            if !speakers.contains(&utterance.speaker) {
                speakers.push(utterance.speaker);
            }
            utterance.text.hash(&mut whole);
            let mut alone = DefaultHasher::new();
            utterance.text.hash(&mut alone);
            if let Some(text) = self.texts.entry(alone.finish()) {
                let (at, label) = (split as usize, utterance.gold.0);
                text.several[at] |= text.times[at] > 0 && text.label[at] != label;
                text.label[at] = label;
                text.times[at] = text.times[at].saturating_add(1);
            }
        }
        counts.most_speakers = counts.most_speakers.max(speakers.len() as u64);
        if dialogue.utterances.len() >= DIALOGUE_UTTERANCES_MIN
            && let Some(times) = self.dialogues.entry(whole.finish())
        {
            times[split as usize] = times[split as usize].saturating_add(1);
        }
    }

    /// The description of what went by.
    pub fn finish(self, name: &str, layout: Layout, left_out: impl Fn(Split) -> LeftOut) -> Description {
        let described = |(split, counts): (&Split, &Counts)| (*split, self.split(*split, counts, left_out(*split)));
        let splits: BTreeMap<Split, SplitDescription> = self.splits.iter().map(described).collect();
        let pairs = [(Split::Test, Split::Train), (Split::Dev, Split::Train), (Split::Test, Split::Dev)];
        let there = |split: &Split| splits.contains_key(split);
        let pairs = pairs.into_iter().filter(|(of, within)| there(of) && there(within));
        let leakage = pairs.map(|(of, within)| self.leakage(of, within, splits[&of].samples)).collect();
        let texts_compared_one_in = self.texts.one_in();
        Description {
            name: name.into(),
            layout: layout.as_str(),
            label_set: self.labels,
            splits,
            leakage,
            texts_compared_one_in,
        }
    }

    fn split(&self, split: Split, counts: &Counts, left_out: LeftOut) -> SplitDescription {
        let samples: u64 = counts.labels.iter().sum();
        let labels = self.labels.iter().cloned().zip(counts.labels.iter().map(|&count| count.into())).collect();
        let at = split as usize;
        let many = |holds: &dyn Fn(&Text) -> bool| {
            self.texts.kept().filter(|text| holds(text)).count() as u64 * self.texts.one_in()
        };
        SplitDescription {
            dialogues: counts.dialogues,
            samples,
            prompts: None,
            labels,
            most_speakers: counts.most_speakers,
            words: Spread::of(&counts.words),
            left_out,
            distinct_texts: many(&|text| text.times[at] > 0),
            texts_with_several_labels: many(&|text| text.several[at]),
            majority: majority(&self.labels, &counts.labels),
        }
    }

    fn leakage(&self, of: Split, within: Split, samples: u64) -> Leakage {
        let (mine, other) = (of as usize, within as usize);
        let shared = |times: &[u32; 3]| if times[other] > 0 { u64::from(times[mine]) } else { 0 };
        let dialogues = self.dialogues.kept().map(shared).sum::<u64>() * self.dialogues.one_in();
        let utterances = self.texts.kept().map(|text| shared(&text.times)).sum::<u64>() * self.texts.one_in();
        let utterances = utterances.min(samples); // an estimate may overshoot
        Leakage { of, within, dialogues, utterances, share: utterances as f64 / samples.max(1) as f64 }
    }
}

/// Describes a corpus in memory.
pub fn describe(corpus: &Corpus) -> Description {
    let mut describer = Describer::new(&corpus.labels, corpus.splits.keys().copied());
    for (split, dialogues) in &corpus.splits {
        dialogues.iter().for_each(|dialogue| describer.see(*split, dialogue));
    }
    let left_out = |split| corpus.left_out.get(&split).copied().unwrap_or_default();
    describer.finish(&corpus.name, corpus.layout, left_out)
}

/// Answering the commonest label: its recall is 1, its precision and so its support's part of the F1 its share `p`,
/// which weighs `p` as well: `p * 2p / (1 + p)`.
fn majority(labels: &[String], counts: &[u64]) -> Option<Majority> {
    let (place, &most) = counts.iter().enumerate().rev().max_by_key(|(_, count)| **count)?;
    let samples: u64 = counts.iter().sum();
    if samples == 0 {
        return None;
    }
    let share = most as f64 / samples as f64;
    Some(Majority { label: labels[place].clone(), share, weighted_f1: share * 2.0 * share / (1.0 + share) })
}

/// What is known by hash, for as many hashes as fit: those that end in `level` zero bits.
#[derive(Debug)]
struct Sampled<T> {
    level: u32,
    most: usize,
    kept: HashMap<u64, T>,
}

impl<T: Default> Sampled<T> {
    fn new(most: usize) -> Self {
        Self { level: 0, most, kept: HashMap::new() }
    }

    /// What is known of a hash; `None`: it is not among those kept.
    fn entry(&mut self, hash: u64) -> Option<&mut T> {
        while self.kept.len() >= self.most && !self.kept.contains_key(&hash) && hash.trailing_zeros() >= self.level {
            self.level += 1;
            let level = self.level;
            self.kept.retain(|hash, _| hash.trailing_zeros() >= level);
        }
        (hash.trailing_zeros() >= self.level).then(|| self.kept.entry(hash).or_default())
    }

    fn kept(&self) -> impl Iterator<Item = &T> {
        self.kept.values()
    }

    /// One of so many hashes is kept.
    fn one_in(&self) -> u64 {
        1u64.checked_shl(self.level).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use insula_proto::corpus::{Label, Utterance};
    use proptest::prelude::*;

    use super::*;

    fn dialogue(turns: &[(&str, u32, u16)]) -> Dialogue {
        let turn = |(at, (text, speaker, label)): (usize, &(&str, u32, u16))| Utterance {
            id: at.to_string(),
            speaker: *speaker,
            speaker_name: speaker.to_string(),
            text: (*text).into(),
            gold: Label(*label),
        };
        Dialogue { id: "x".into(), utterances: turns.iter().enumerate().map(turn).collect() }
    }

    fn labels() -> LabelSet {
        LabelSet::new(["joy", "sad", "flat"].map(String::from).to_vec()).unwrap()
    }

    #[test]
    fn a_small_corpus_is_counted_in_full() {
        let mut describer = Describer::new(&labels(), [Split::Train, Split::Test].into_iter());
        describer.see(Split::Train, &dialogue(&[("a b c", 0, 0), ("a b c", 1, 1), ("d", 0, 1)]));
        describer.see(Split::Train, &dialogue(&[("e", 0, 1)]));
        describer.see(Split::Test, &dialogue(&[("a b c", 0, 0), ("a b c", 0, 0), ("d", 2, 1)]));
        describer.see(Split::Test, &dialogue(&[("e", 0, 1)]));
        describer.see(Split::Test, &dialogue(&[("f", 0, 0)]));
        let left_out = |split| LeftOut { empty: split as u64, ..LeftOut::default() };
        let described = describer.finish("small", Layout::Meld, left_out);
        let (train, test) = (&described.splits[&Split::Train], &described.splits[&Split::Test]);
        assert_eq!((train.dialogues, train.samples, train.most_speakers), (2, 4, 2));
        assert_eq!(train.words, Spread { min: 1, median: 1, p95: 3, max: 3, total: 8 });
        assert_eq!((train.distinct_texts, train.texts_with_several_labels, train.left_out.empty), (3, 1, 0));
        assert_eq!((test.distinct_texts, test.texts_with_several_labels, test.left_out.empty), (4, 0, 2));
        assert_eq!(train.labels, serde_json::from_str(r#"{"joy": 1, "sad": 3, "flat": 0}"#).unwrap());
        assert_eq!(train.majority.as_ref().unwrap().label, "sad");
        // One dialogue of three turns is train's; the one of a single "e" is only a text.
        let leakage = Leakage { of: Split::Test, within: Split::Train, dialogues: 1, utterances: 4, share: 0.8 };
        assert_eq!(described.leakage, [leakage]);
        assert_eq!(described.texts_compared_one_in, 1);
    }

    #[test]
    fn the_json_keeps_its_names() {
        let mut describer = Describer::new(&labels(), Split::ALL.into_iter());
        describer.see(Split::Dev, &dialogue(&[("a", 0, 0)]));
        let described = describer.finish("small", Layout::Jsonl, |_| LeftOut::default());
        let json = serde_json::to_value(&described).unwrap();
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(keys(&json), "name layout label_set train dev test leakage texts_compared_one_in");
        assert_eq!(
            keys(&json["dev"]),
            "dialogues samples labels most_speakers words left_out distinct_texts texts_with_several_labels majority"
        );
        assert_eq!(json["leakage"][0]["in"], "train");
        assert_eq!(json["train"]["majority"], Value::Null);
        assert_eq!(json["dev"]["majority"]["weighted_f1"], 1.0);
    }

    #[test]
    fn more_texts_than_fit_are_estimated_from_a_part_of_them() {
        let mut sampled = Sampled::<u32>::new(1000);
        for number in 0..50_000u32 {
            let mut hasher = DefaultHasher::new();
            number.hash(&mut hasher);
            sampled.entry(hasher.finish());
        }
        assert!(sampled.kept.len() <= 1000, "{}", sampled.kept.len());
        let estimate = sampled.kept().count() as u64 * sampled.one_in();
        assert!((45_000..55_000).contains(&estimate), "{estimate}");
    }

    proptest! {
        #[test]
        fn a_spread_is_that_of_the_sorted_lengths(mut lengths in prop::collection::vec(0u64..40, 1..200)) {
            let mut counts = BTreeMap::new();
            lengths.iter().for_each(|&length| *counts.entry(length).or_default() += 1);
            lengths.sort_unstable();
            let at = |part: f64| lengths[((lengths.len() as f64 * part).ceil() as usize).max(1) - 1];
            let expected = Spread {
                min: lengths[0],
                median: at(0.5),
                p95: at(0.95),
                max: lengths[lengths.len() - 1],
                total: lengths.iter().sum(),
            };
            prop_assert_eq!(Spread::of(&counts), expected);
        }
    }
}
