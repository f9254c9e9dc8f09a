//! Metrics from a tally, derived once, exactly as scikit-learn derives them.
//!
//! The formulas are `precision_recall_fscore_support`, `f1_score` and `accuracy_score` of scikit-learn with `labels=`
//! the full label set and `zero_division=0`. An unreadable answer is a prediction outside the label set: it counts
//! towards its gold label's support and so against recall, and against nobody's precision.

use insula_proto::tally::Tally;
use serde::{Deserialize, Serialize};

/// Metrics of one tally; all values are fractions from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Answers judged.
    pub samples: u64,
    /// Mean of the labels' F1, weighted by support.
    pub weighted_f1: f64,
    /// Plain mean of the labels' F1, labels without support included.
    pub macro_f1: f64,
    /// Part of the answers that are right.
    pub accuracy: f64,
    /// Answers that are no label.
    pub unreadable: u64,
    /// In the label set's order.
    pub labels: Vec<LabelMetric>,
}

/// Metrics of one label.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LabelMetric {
    /// Right answers among those that say this label.
    pub precision: f64,
    /// Right answers among those that should.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub f1: f64,
    /// Answers that should say this label.
    pub support: u64,
}

impl Metric {
    /// The metrics of a tally.
    pub fn of(tally: &Tally) -> Self {
        let labels: Vec<LabelMetric> = (0..tally.labels()).map(|label| LabelMetric::of(tally, label)).collect();
        let samples = tally.total();
        let weighted: f64 = labels.iter().map(|l| l.f1 * l.support as f64).sum();
        let plain: f64 = labels.iter().map(|l| l.f1).sum();
        let right: u64 = (0..tally.labels()).map(|label| tally.at(label, label)).sum();
        Self {
            samples,
            weighted_f1: ratio(weighted, samples as f64),
            macro_f1: ratio(plain, labels.len() as f64),
            accuracy: ratio(right as f64, samples as f64),
            unreadable: tally.unreadable(),
            labels,
        }
    }
}

impl LabelMetric {
    fn of(tally: &Tally, label: usize) -> Self {
        let right = tally.at(label, label) as f64;
        let answered: u64 = (0..tally.labels()).map(|gold| tally.at(gold, label)).sum();
        let support: u64 = (0..=tally.labels()).map(|answer| tally.at(label, answer)).sum();
        Self {
            precision: ratio(right, answered as f64),
            recall: ratio(right, support as f64),
            f1: ratio(2.0 * right, (answered + support) as f64),
            support,
        }
    }
}

/// `a / b`, and 0 where `b` is 0, as `zero_division=0` asks.
fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { a / b }
}

#[cfg(test)]
mod tests {
    use insula_proto::corpus::Label;

    use super::*;

    /// The last bits may differ, as sums are taken in another order.
    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 4.0 * f64::EPSILON
    }

    // from sklearn.metrics import precision_recall_fscore_support as prfs, f1_score, accuracy_score
    // gold, said = [0,0,0,1,1,2,2,2,2,3,0,1], [0,1,4,1,1,2,0,2,4,4,0,2]; of = dict(labels=[0,1,2,3], zero_division=0)
    // prfs(gold, said, **of), f1_score(gold, said, average="weighted", **of)  # and "macro", accuracy_score(gold, said)
    #[test]
    fn metrics_equal_scikit_learns_on_a_list_with_unreadable_answers() {
        let gold = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 0, 1];
        let said = [0, 1, 4, 1, 1, 2, 0, 2, 4, 4, 0, 2];
        let mut tally = Tally::new(4);
        gold.iter().zip(said).for_each(|(&g, s)| tally.count(Label(g), (s < 4).then_some(Label(s))));
        let metric = Metric::of(&tally);
        assert!(close(metric.weighted_f1, 0.5476190476190476), "{metric:?}");
        assert!(close(metric.macro_f1, 0.4523809523809524), "{metric:?}");
        assert_eq!((metric.accuracy, metric.samples, metric.unreadable), (0.5, 12, 3));
        let expected = [
            (2.0 / 3.0, 0.5, 4.0 / 7.0, 4),
            (2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0, 3),
            (2.0 / 3.0, 0.5, 4.0 / 7.0, 4),
            (0.0, 0.0, 0.0, 1),
        ];
        for (label, (precision, recall, f1, support)) in metric.labels.iter().zip(expected) {
            let same = close(label.precision, precision) && close(label.recall, recall) && close(label.f1, f1);
            assert!(same && label.support == support, "{label:?}");
        }
    }

    // As above, over 200 answers drawn with Python's random.seed(7); said label 7 is unreadable, label 6 has no support.
    #[test]
    fn metrics_equal_scikit_learns_on_two_hundred_answers() {
        let counts = [
            [57, 6, 10, 7, 6, 5, 4, 6],
            [1, 26, 2, 3, 4, 2, 6, 3],
            [0, 2, 15, 2, 0, 0, 1, 1],
            [0, 1, 2, 11, 0, 0, 1, 1],
            [1, 0, 0, 1, 1, 0, 0, 0],
            [1, 1, 1, 2, 1, 6, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0],
        ];
        let metric = Metric::of(&Tally::from_counts(7, counts.concat()).unwrap());
        assert!(close(metric.weighted_f1, 0.6392760232013184), "{metric:?}");
        assert!(close(metric.macro_f1, 0.4371369585026258), "{metric:?}");
        assert!(close(metric.accuracy, 0.58), "{metric:?}");
        let f1 = [
            0.7080745341614907,
            0.6265060240963856,
            0.5882352941176471,
            0.5238095238095238,
            0.13333333333333333,
            0.48,
            0.0,
        ];
        assert!(metric.labels.iter().zip(f1).all(|(label, f1)| close(label.f1, f1)), "{metric:?}");
    }

    #[test]
    fn an_empty_tally_has_metrics_of_zero() {
        let metric = Metric::of(&Tally::new(2));
        assert_eq!((metric.weighted_f1, metric.macro_f1, metric.accuracy), (0.0, 0.0, 0.0));
    }
}
