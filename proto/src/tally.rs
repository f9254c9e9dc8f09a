//! Exact confusion counts that add: what evaluation returns, from which the coordinator derives metrics once.

use serde::{Deserialize, Serialize};

use crate::corpus::Label;

/// How often each gold label was answered with each label, or with nothing readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    labels: usize,
    /// Row-major `[labels, labels + 1]`: gold by answer; the last column counts unreadable answers.
    counts: Vec<u64>,
}

/// Counts that do not have the shape their number of labels asks for.
#[derive(Debug, thiserror::Error)]
#[error("a tally of {labels} labels needs {expected} counts, got {got}")]
pub struct TallyShape {
    labels: usize,
    expected: usize,
    got: usize,
}

impl Tally {
    /// An empty tally over `labels` labels.
    pub fn new(labels: usize) -> Self {
        Self { labels, counts: vec![0; labels * (labels + 1)] }
    }

    /// A tally from counts in row-major order `[labels, labels + 1]`.
    ///
    /// # Errors
    /// When the number of counts is another.
    pub fn from_counts(labels: usize, counts: Vec<u64>) -> Result<Self, TallyShape> {
        let expected = labels.saturating_mul(labels.saturating_add(1));
        if counts.len() == expected {
            Ok(Self { labels, counts })
        } else {
            Err(TallyShape { labels, expected, got: counts.len() })
        }
    }

    /// Counts one answer; `None` is an unreadable one.
    pub fn count(&mut self, gold: Label, answer: Option<Label>) {
        let column = answer.map_or(self.labels, Label::index);
        self.counts[gold.index() * (self.labels + 1) + column] += 1;
    }

    /// Adds another worker's counts over the same labels.
    ///
    /// # Panics
    /// When the number of labels differs: tallies of two label sets were mixed up.
    pub fn add(&mut self, other: &Tally) {
        assert_eq!(self.labels, other.labels, "tallies of different label sets do not add");
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
    }

    /// Number of labels.
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// All counts, row-major `[labels, labels + 1]`.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// How often `gold` was answered with `answer`.
    pub fn at(&self, gold: usize, answer: usize) -> u64 {
        self.counts[gold * (self.labels + 1) + answer]
    }

    /// Answers counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
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
    }
}
