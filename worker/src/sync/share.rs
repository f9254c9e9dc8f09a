//! Who computes which slots of an update.

use std::ops::Range;

/// Cuts slots of these costs into a run for each rank, so that the costliest run costs as little as can be.
///
/// Of all such cuts the one whose first runs are the longest; the last may be empty. It depends on the costs alone, so
/// every member finds the same.
///
/// # Panics
/// When there is no rank.
#[must_use]
pub fn share_out(costs: &[u64], ranks: usize) -> Vec<Range<usize>> {
    assert!(ranks > 0, "somebody has to compute");
    let (mut low, mut high) = (costs.iter().copied().max().unwrap_or(0), costs.iter().sum::<u64>());
    while low < high {
        let bound = low + (high - low) / 2;
        if runs_within(costs, bound).len() <= ranks { high = bound } else { low = bound + 1 }
    }
    let mut runs = runs_within(costs, low);
    runs.resize(ranks, costs.len()..costs.len());
    runs
}

/// As few runs as can be, none of which costs more than `bound`; no slot may.
fn runs_within(costs: &[u64], bound: u64) -> Vec<Range<usize>> {
    let (mut runs, mut start, mut sum) = (Vec::new(), 0, 0);
    for (slot, &cost) in costs.iter().enumerate() {
        if sum + cost > bound {
            runs.push(start..slot);
            (start, sum) = (slot, 0);
        }
        sum += cost;
    }
    runs.push(start..costs.len());
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By trying every cut.
    fn least_bound(costs: &[u64], ranks: usize) -> u64 {
        if ranks == 1 {
            return costs.iter().sum();
        }
        let cut = |at: usize| costs[..at].iter().sum::<u64>().max(least_bound(&costs[at..], ranks - 1));
        (0..=costs.len()).map(cut).min().unwrap()
    }

    #[test]
    fn more_ranks_than_slots_leave_some_without() {
        assert_eq!(share_out(&[5, 5], 4), [0..1, 1..2, 2..2, 2..2]);
        assert_eq!(share_out(&[], 2), [0..0, 0..0]);
        assert_eq!(share_out(&[1, 1, 1, 9, 1, 1], 2), [0..3, 3..6]);
    }

    proptest! {
        #[test]
        fn runs_tile_the_slots_and_none_costs_more_than_it_must(
            costs in prop::collection::vec(0u64..50, 1..9), ranks in 1usize..5,
        ) {
            let runs = share_out(&costs, ranks);
            prop_assert_eq!(runs.len(), ranks);
            prop_assert_eq!((runs[0].start, runs[ranks - 1].end), (0, costs.len()));
            prop_assert!(runs.windows(2).all(|pair| pair[0].end == pair[1].start));
            let most = runs.iter().map(|run| costs[run.clone()].iter().sum::<u64>()).max().unwrap();
            prop_assert_eq!(most, least_bound(&costs, ranks));
        }
    }
}
