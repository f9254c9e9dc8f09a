//! What is learnt from: dialogues of labelled utterances, and the manifest of the shards that hold them.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::ids::Digest;

/// The three parts of a corpus; a dialogue belongs to exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What the adapter is trained on.
    Train,
    /// What the best epoch is chosen on.
    Dev,
    /// What the reported metrics are measured on.
    Test,
}

impl Split {
    /// All three, in the order they are read and shown.
    pub const ALL: [Split; 3] = [Split::Train, Split::Dev, Split::Test];

    /// The lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Dev => "dev",
            Split::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that was expected to name a split.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not a split: expected train, dev or test")]
pub struct NotASplit(String);

impl FromStr for Split {
    type Err = NotASplit;
    fn from_str(text: &str) -> Result<Self, NotASplit> {
        Split::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| NotASplit(text.to_owned()))
    }
}

/// A label: its place in the corpus's [`LabelSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Label(pub u16);

impl Label {
    /// The place as an index into tables.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The closed, ordered set of labels of a corpus; the order is the one prompts list them in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct LabelSet(Vec<String>);

/// Why a list of names is not a label set.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LabelSetError {
    /// Fewer than two labels.
    #[error("a label set needs at least 2 labels, got {0}")]
    TooFew(usize),
    /// More labels than a [`Label`] can count.
    #[error("a label set has at most 1000 labels, got {0}")]
    TooMany(usize),
    /// A label without text, or with white space around it, which no answer could equal.
    #[error("label {place} is '{label}': expected text without white space around it")]
    Blank {
        /// Where it stands, from 0.
        place: usize,
        /// The label.
        label: String,
    },
    /// The same text twice.
    #[error("label '{0}' stands in the label set twice")]
    Twice(String),
}

impl LabelSet {
    /// A set of `labels` in this order.
    ///
    /// # Errors
    /// See [`LabelSetError`].
    pub fn new(labels: Vec<String>) -> Result<Self, LabelSetError> {
        match labels.len() {
            n if n < 2 => return Err(LabelSetError::TooFew(n)),
            n if n > 1000 => return Err(LabelSetError::TooMany(n)),
            _ => {}
        }
        for (place, label) in labels.iter().enumerate() {
            if label.is_empty() || label.trim() != label {
                return Err(LabelSetError::Blank { place, label: label.clone() });
            }
            if labels[..place].contains(label) {
                return Err(LabelSetError::Twice(label.clone()));
            }
        }
        Ok(Self(labels))
    }

    /// The labels in order.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// Number of labels.
    #[expect(clippy::len_without_is_empty, reason = "a label set is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The label with this text, case and all.
    pub fn find(&self, text: &str) -> Option<Label> {
        let place = self.0.iter().position(|l| l == text)?;
        Some(Label(u16::try_from(place).expect("a label set has at most 1000 labels")))
    }

    /// The text of a label of this set.
    pub fn name(&self, label: Label) -> &str {
        &self.0[label.index()]
    }
}

impl TryFrom<Vec<String>> for LabelSet {
    type Error = LabelSetError;
    fn try_from(labels: Vec<String>) -> Result<Self, LabelSetError> {
        Self::new(labels)
    }
}

impl From<LabelSet> for Vec<String> {
    fn from(labels: LabelSet) -> Self {
        labels.0
    }
}

/// Ordered turns of some people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dialogue {
    /// Unique within the corpus: `train/12` for MELD, `test/s1_e2_c3` for EmoryNLP.
    pub id: String,
    /// The turns, first spoken first.
    pub utterances: Vec<Utterance>,
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Utterance {
    /// Unique within the dialogue: the file's own number.
    pub id: String,
    /// Who speaks, numbered by first appearance in the dialogue.
    pub speaker: u32,
    /// The name behind the number, as the file has it.
    pub speaker_name: String,
    /// What is said.
    pub text: String,
    /// The annotated label.
    pub gold: Label,
}

/// A corpus as it lies in the artifact store: which shards hold which split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusManifest {
    /// What people call it.
    pub name: String,
    /// Digest of the labels and of every shard's digest in order.
    pub digest: Digest,
    /// The closed label set.
    pub labels: LabelSet,
    /// The shards of each split.
    pub splits: BTreeMap<Split, SplitManifest>,
    /// The corpora it was put together from, in order; one, mostly.
    #[serde(default)] // journals of 0.1.0 do not have it
    pub parts: Vec<Part>,
}

/// One of the corpora that a corpus was put together from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What people call it.
    pub name: String,
    /// Digest of its labels and shards.
    pub digest: Digest,
    /// Speakers of the dialogue with the most of them, so that every speaker's number is below.
    pub speakers: u32,
}

impl CorpusManifest {
    /// The name of the corpus a shard is of.
    pub fn part_name(&self, shard: &Shard) -> &str {
        match self.parts.as_slice() {
            [] | [_] => &self.name,
            parts => parts.get(shard.part as usize).map_or(&self.name, |part| &part.name),
        }
    }

    /// Utterances of a split, by part.
    pub fn utterances_by_part(&self, split: Split) -> Vec<u64> {
        let mut counts = vec![0; self.parts.len().max(1)];
        for shard in self.splits.get(&split).map_or(&[][..], |split| &split.shards) {
            counts[shard.part as usize] += u64::from(shard.utterances);
        }
        counts
    }
}

/// The shards of one split.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitManifest {
    /// Whole dialogues, in file order, cut into shards.
    pub shards: Vec<Shard>,
}

impl SplitManifest {
    /// Utterances in all shards.
    pub fn utterances(&self) -> u64 {
        self.shards.iter().map(|s| u64::from(s.utterances)).sum()
    }

    /// Dialogues in all shards.
    pub fn dialogues(&self) -> u64 {
        self.shards.iter().map(|s| u64::from(s.dialogues)).sum()
    }
}

/// Whole dialogues of one split in one Parquet file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Digest of the file.
    pub digest: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// Dialogues in it.
    pub dialogues: u32,
    /// Utterances in it.
    pub utterances: u32,
    /// Which of the corpus's parts it is of.
    #[serde(default)] // journals of 0.1.0 do not have it
    pub part: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_set_refuses_doubles_blanks_and_singletons() {
        let set = |labels: &[&str]| LabelSet::new(labels.iter().map(|l| l.to_string()).collect());
        assert_eq!(set(&["joy", "joy"]), Err(LabelSetError::Twice("joy".into())));
        assert_eq!(set(&["joy"]), Err(LabelSetError::TooFew(1)));
        assert_eq!(set(&["joy", " sad"]), Err(LabelSetError::Blank { place: 1, label: " sad".into() }));
        let labels = set(&["joy", "sad"]).unwrap();
        assert_eq!(labels.find("sad"), Some(Label(1)));
        assert_eq!(labels.find("Sad"), None);
    }
}
