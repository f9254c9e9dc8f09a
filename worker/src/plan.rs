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
/// Sequences keep their order, so those of one dialogue stay together; a slot's tree tokens are counted exactly.
pub fn slots(sequences: &[&[u32]], budget: usize) -> Vec<Range<usize>> {
    let mut slots = Vec::new();
    let mut start = 0;
    let mut tokens = 0;
    for (place, sequence) in sequences.iter().enumerate() {
        let new = sequence.len() - longest_shared_prefix(sequence, &sequences[start..place]);
        if place > start && tokens + new > budget {
            slots.push(start..place);
            start = place;
            tokens = sequence.len();
        } else {
            tokens += new;
        }
    }
    if start < sequences.len() {
        slots.push(start..sequences.len());
    }
    slots
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
