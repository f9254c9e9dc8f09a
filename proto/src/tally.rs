//! Exact confusion counts that add: what evaluation returns, from which the coordinator derives metrics once.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::corpus::Label;

/// How often each gold label was answered with each label, or with nothing readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    labels: usize,
    /// Row-major `[labels, labels + 1]`: gold by answer; the last column counts unreadable answers. Narrow and shared: a
    /// coordinator holds two for each of some 100,000 evaluations, and most pairs are equal.
    #[serde(with = "narrow")]
    counts: Arc<[u32]>,
}

/// Counts in a file, as any list of numbers.
mod narrow {
    use std::sync::Arc;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(counts: &Arc<[u32]>, to: S) -> Result<S::Ok, S::Error> {
        counts[..].serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<[u32]>, D::Error> {
        Ok(Vec::<u32>::deserialize(from)?.into())
    }
}

/// Counts that are no tally.
#[derive(Debug, thiserror::Error)]
pub enum TallyShape {
    /// They do not have the shape their number of labels asks for.
    #[error("a tally of {labels} labels needs {expected} counts, got {got}")]
    Number {
        /// Labels.
        labels: usize,
        /// Counts of so many.
        expected: usize,
        /// Counts that came.
        got: usize,
    },
    /// More than any corpus has utterances.
    #[error("a tally counts {0}: expected fewer than 4294967296 utterances")]
    TooLarge(u64),
}

impl Tally {
    /// An empty tally over `labels` labels.
    pub fn new(labels: usize) -> Self {
        Self { labels, counts: vec![0; labels * (labels + 1)].into() }
    }

    /// A tally from counts in row-major order `[labels, labels + 1]`.
    ///
    /// # Errors
    /// When the number of counts is another, or one of them is beyond 2^32.
    pub fn from_counts(labels: usize, counts: Vec<u64>) -> Result<Self, TallyShape> {
        let expected = labels.saturating_mul(labels.saturating_add(1));
        if counts.len() != expected {
            return Err(TallyShape::Number { labels, expected, got: counts.len() });
        }
        let narrow = |count| u32::try_from(count).map_err(|_| TallyShape::TooLarge(count));
        Ok(Self { labels, counts: counts.into_iter().map(narrow).collect::<Result<_, _>>()? })
    }

    /// Keeps one copy of the counts where another tally has the same.
    pub fn share(&mut self, other: &Tally) {
        if self == other {
            self.counts = other.counts.clone();
        }
    }

    /// Counts one answer; `None` is an unreadable one.
    pub fn count(&mut self, gold: Label, answer: Option<Label>) {
        let column = answer.map_or(self.labels, Label::index);
        Arc::make_mut(&mut self.counts)[gold.index() * (self.labels + 1) + column] += 1;
    }

    /// Adds another worker's counts over the same labels.
    ///
    /// # Panics
    /// When the number of labels differs: tallies of two label sets were mixed up. When a count passes 2^32, which no
    /// corpus has utterances for.
    pub fn add(&mut self, other: &Tally) {
        assert_eq!(self.labels, other.labels, "tallies of different label sets do not add");
        for (mine, theirs) in Arc::make_mut(&mut self.counts).iter_mut().zip(&other.counts[..]) {
            *mine = mine.checked_add(*theirs).expect("no corpus has 2^32 utterances");
        }
    }

    /// Number of labels.
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// All counts, row-major `[labels, labels + 1]`.
    pub fn counts(&self) -> impl ExactSizeIterator<Item = u64> {
        self.counts.iter().map(|&count| count.into())
    }

    /// How often `gold` was answered with `answer`.
    pub fn at(&self, gold: usize, answer: usize) -> u64 {
        self.counts[gold * (self.labels + 1) + answer].into()
    }

    /// Answers counted.
    pub fn total(&self) -> u64 {
        self.counts().sum()
    }

    /// Unreadable answers.
    pub fn unreadable(&self) -> u64 {
        (0..self.labels).map(|gold| self.at(gold, self.labels)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_of_two_halves_add_to_the_tally_of_the_whole() {
        let answers = [(0, Some(0)), (0, Some(1)), (1, None), (1, Some(1)), (1, Some(1))];
        let tally = |part: &[(u16, Option<u16>)]| {
            let mut t = Tally::new(2);
            part.iter().for_each(|&(g, a)| t.count(Label(g), a.map(Label)));
            t
        };
        let mut sum = tally(&answers[..2]);
        sum.add(&tally(&answers[2..]));
        assert_eq!(sum, tally(&answers));
        assert_eq!((sum.total(), sum.unreadable(), sum.at(1, 1)), (5, 1, 2));
    }

    #[test]
    fn counts_of_the_wrong_shape_are_refused() {
        assert!(Tally::from_counts(2, vec![0; 5]).is_err());
        assert!(Tally::from_counts(usize::MAX, vec![]).is_err());
        let error = Tally::from_counts(1, vec![0, 1 << 32]).unwrap_err().to_string();
        assert_eq!(error, "a tally counts 4294967296: expected fewer than 4294967296 utterances");
    }

    #[test]
    fn a_tally_is_written_as_it_always_was_and_equal_ones_share_their_counts() {
        let tally = Tally::from_counts(1, vec![3, 4]).unwrap();
        let text = serde_json::to_string(&tally).unwrap();
        assert_eq!(text, r#"{"labels":1,"counts":[3,4]}"#);
        let mut read: Tally = serde_json::from_str(&text).unwrap();
        assert!(read == tally && !Arc::ptr_eq(&read.counts, &tally.counts));
        read.share(&tally);
        assert!(Arc::ptr_eq(&read.counts, &tally.counts));
        read.count(Label(0), None);
        assert_eq!((read.unreadable(), tally.unreadable()), (5, 4), "a copy that goes its own way changes no other");
        read.share(&tally);
        assert_eq!(read.unreadable(), 5);
    }
}
