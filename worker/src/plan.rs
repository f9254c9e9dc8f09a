//! Which sample is computed when: share, epochs, updates, slots.
//!
//! ```text
//! all turns --select(share)--> samples --epoch(order, batch)--> updates --slots(token budget)--> slots
//! ```
//!
//! Everything here is a pure function of recipe and seed, so every worker that asks gets the same answer, and each
//! sample is in exactly one slot per epoch whatever the number of workers.

use std::ops::Range;

use insula_proto::job::{Batching, Share};
use rand::seq::SliceRandom as _;

use crate::seed::{Purpose, generator};

/// One turn of one dialogue, as something to learn: indices into the split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sample {
    /// Place of the dialogue in the split.
    pub dialogue: u32,
    /// Place of the turn in the dialogue.
    pub turn: u32,
}

/// The samples that `share` keeps of dialogues with these numbers of turns: `floor(n * share)` of them, drawn without
/// replacement, in the split's order.
pub fn select(turns: &[usize], share: Share, seed: u64) -> Vec<Sample> {
    let count = |n: usize| u32::try_from(n).expect("a split has fewer than 2^32 dialogues and turns");
    let all = turns.iter().enumerate();
    let mut samples: Vec<_> = all
        .flat_map(|(dialogue, &n)| (0..count(n)).map(move |turn| Sample { dialogue: count(dialogue), turn }))
        .collect();
    let kept = usize::try_from(share.of(samples.len() as u64)).expect("a share keeps at most all");
    if kept < samples.len() {
        samples.shuffle(&mut generator(seed, Purpose::Share));
        samples.truncate(kept);
        samples.sort_unstable();
    }
    samples
}

/// The updates of an epoch: every sample once, `batch` in each update but the last.
pub fn epoch(samples: &[Sample], batching: Batching, batch: usize, seed: u64, epoch: u32) -> Vec<Vec<Sample>> {
    let mut chance = generator(seed, Purpose::Order { epoch });
    let order: Vec<Sample> = match batching {
        Batching::Utterance => {
            let mut order = samples.to_vec();
            order.shuffle(&mut chance);
            order
        }
        Batching::Dialogue => {
            let mut dialogues: Vec<_> = samples.chunk_by(|a, b| a.dialogue == b.dialogue).collect();
            dialogues.shuffle(&mut chance);
            dialogues.concat()
        }
    };
    order.chunks(batch).map(<[Sample]>::to_vec).collect()
}

/// Cuts an update's sequences into slots of at most `budget` tree tokens each (a longer sequence is a slot alone).
///
/// Sequences keep their order. Of all such cuts the one with the fewest tree tokens in all is taken, which falls
/// between dialogues where that can be; of equals the one with the fewest slots.
pub fn slots(sequences: &[&[u32]], budget: usize) -> Vec<Range<usize>> {
    // best[j]: least (tree tokens, slots) of the first j sequences, and where the last of those slots begins.
    let mut best = vec![((0, 0), 0)];
    for end in 1..=sequences.len() {
        let mut least = ((usize::MAX, usize::MAX), end - 1);
        let mut tokens = 0;
        for start in (0..end).rev() {
            tokens += sequences[start].len() - longest_shared_prefix(sequences[start], &sequences[start + 1..end]);
            if tokens > budget && end - start > 1 {
                break; // a slot that begins earlier has more still
            }
            let (before, slots) = best[start].0;
            least = least.min(((before + tokens, slots + 1), start));
        }
        best.push(least);
    }
    let starts = std::iter::successors(Some(sequences.len()), |end| (*end > 0).then(|| best[*end].1));
    let ends: Vec<usize> = starts.collect();
    ends.windows(2).rev().map(|pair| pair[1]..pair[0]).collect()
}

/// How much of `sequence` a forest of `others` already holds.
fn longest_shared_prefix(sequence: &[u32], others: &[&[u32]]) -> usize {
    let shared = |other: &&[u32]| sequence.iter().zip(other.iter()).take_while(|(a, b)| a == b).count();
    others.iter().map(shared).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forest::count_tree_tokens;
    use proptest::prelude::*;

    fn share(text: &str) -> Share {
        text.parse().unwrap()
    }

    #[test]
    fn a_share_of_meld_keeps_the_papers_number_of_samples() {
        let turns = vec![9989 / 7; 7];
        assert_eq!(select(&turns, share("1/16"), 42).len(), 9989 / 16);
        assert_eq!(select(&turns, share("1"), 42).len(), 9989);
    }

    #[test]
    fn slots_are_cut_between_dialogues_where_they_fit() {
        let sequences: [&[u32]; 5] = [&[1, 2, 3], &[1, 2, 4], &[5, 6, 7], &[5, 6, 8], &[5, 6, 9]];
        assert_eq!(slots(&sequences, 9), vec![0..5]);
        assert_eq!(slots(&sequences, 8), vec![0..2, 2..5]);
        assert_eq!(slots(&sequences, 2), vec![0..1, 1..2, 2..3, 3..4, 4..5]);
        assert!(slots(&[], 8).is_empty());
    }

    proptest! {
        #[test]
        fn every_sample_is_in_exactly_one_slot_of_an_epoch(
            turns in prop::collection::vec(0usize..9, 1..12), batch in 1usize..9, seed: u64, utterance: bool, budget in 1usize..40,
        ) {
            let batching = if utterance { Batching::Utterance } else { Batching::Dialogue };
            let samples = select(&turns, share("2/3"), seed);
            let updates = epoch(&samples, batching, batch, seed, 3);
            prop_assert!(updates.iter().rev().skip(1).all(|u| u.len() == batch));
            let mut seen = Vec::new();
            for update in &updates {
                let sequences: Vec<Vec<u32>> = update.iter().map(|s| (0..=s.turn).chain([90 + s.dialogue]).collect()).collect();
                let views: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
                let mut next = 0;
                for slot in slots(&views, budget) {
                    prop_assert_eq!(slot.start, next);
                    next = slot.end;
                    prop_assert!(slot.len() == 1 || count_tree_tokens(&views[slot.clone()]) <= budget as u64);
                    seen.extend_from_slice(&update[slot]);
                }
                prop_assert_eq!(next, update.len());
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, samples);
        }
    }
}
