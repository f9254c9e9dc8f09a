//! How much each sample of an update counts: by its label, and by what it asks.

use insula_proto::job::Objective;

/// A sample of an update, as far as its weight needs it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weighed {
    /// What is asked.
    pub objective: Objective,
    /// What its label counts; 1 where classes count alike.
    pub class: f64,
    /// Supervised tokens.
    pub tokens: usize,
}

/// The weight of each sample's tokens, and what the weighted sum of losses is divided by.
///
/// Without `impact_weight` the loss is one mean over all tokens, each counting by its class (as the authors' code has it,
/// and torch's weighted mean):
/// `sum(class * loss) / sum(class)`. With it the loss is `mean(main) + impact_weight * mean(impact)` (as the paper
/// writes it), each mean over its own tokens; where an update has none of the one, the other's term stands alone.
pub fn of_update(samples: &[Weighed], impact_weight: Option<f64>) -> (Vec<f32>, f64) {
    let sum = |impact: bool| -> f64 {
        let of = samples.iter().filter(|s| (s.objective == Objective::Impact) == impact);
        of.map(|s| s.class * s.tokens as f64).sum()
    };
    // Where nothing counts the gradient is zero, not nothing.
    let some = |denominator: f64| if denominator > 0.0 { denominator } else { 1.0 };
    let (main, impact) = (sum(false), sum(true));
    let Some(impact_weight) = impact_weight else {
        return (samples.iter().map(|s| s.class as f32).collect(), some(main + impact));
    };
    // Everything is put over one denominator, so that a main sample's weight is its class's whatever else is there.
    let denominator = if main > 0.0 { main } else { impact };
    let of_impact = if impact > 0.0 { impact_weight * denominator / impact } else { 0.0 };
    let weight = |s: &Weighed| s.class * if s.objective == Objective::Impact { of_impact } else { 1.0 };
    (samples.iter().map(|s| weight(s) as f32).collect(), some(denominator))
}

/// scikit-learn's `balanced` weights of labels with these counts: `n / (labels * count)`; 0 for a label without samples.
pub fn balanced(counts: &[u64]) -> Vec<f64> {
    let all: u64 = counts.iter().sum();
    let weight = |&count: &u64| if count == 0 { 0.0 } else { all as f64 / (counts.len() as f64 * count as f64) };
    counts.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(objective: Objective, class: f64, tokens: usize) -> Weighed {
        Weighed { objective, class, tokens }
    }

    /// The loss of samples whose every token loses the same, by the formula itself.
    fn loss(samples: &[Weighed], losses: &[f64], impact_weight: Option<f64>) -> f64 {
        let (weights, denominator) = of_update(samples, impact_weight);
        let terms = samples.iter().zip(losses).zip(weights);
        terms.map(|((s, loss), weight)| f64::from(weight) * s.tokens as f64 * loss).sum::<f64>() / denominator
    }

    #[test]
    fn alone_and_alike_every_sample_counts_one() {
        let samples = [sample(Objective::Main, 1.0, 2), sample(Objective::Main, 1.0, 3)];
        assert_eq!(of_update(&samples, None), (vec![1.0, 1.0], 5.0));
        assert_eq!(of_update(&samples, Some(0.1)), (vec![1.0, 1.0], 5.0));
    }

    #[test]
    fn with_a_weight_the_loss_is_mains_mean_and_so_much_of_impacts() {
        let both =
            [sample(Objective::Main, 1.0, 2), sample(Objective::Impact, 1.0, 6), sample(Objective::Main, 1.0, 2)];
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        close(loss(&both, &[1.0, 4.0, 3.0], Some(0.1)), 2.0 + 0.1 * 4.0);
        close(loss(&both, &[1.0, 4.0, 3.0], Some(0.0)), 2.0);
        close(loss(&both, &[1.0, 4.0, 3.0], None), (2.0 + 24.0 + 6.0) / 10.0);
        close(loss(&both[1..2], &[4.0], Some(0.1)), 0.4);
        let classes = [sample(Objective::Main, 3.0, 1), sample(Objective::Main, 1.0, 1)];
        close(loss(&classes, &[1.0, 5.0], None), 2.0);
    }

    #[test]
    fn balanced_weights_are_scikit_learns() {
        assert_eq!(balanced(&[6, 2]), [8.0 / 12.0, 2.0]);
        assert_eq!(balanced(&[0, 4]), [0.0, 0.5]);
    }
}
