//! Which sample is computed when: share, epochs, updates, slots.
//!
//! ```text
//! all turns --select(share, mix)--> turns --asked(objectives)--> samples --pass(order, batch)--> updates
//!                                                                 updates --slots(token budget)--> slots
//! ```
//!
//! Everything here is a pure function of recipe and seed, so every worker that asks gets the same answer, and each
//! sample is in exactly one slot per epoch whatever the number of workers.

use std::{collections::BTreeSet, ops::Range};

use insula_proto::job::{Batching, Mix, Objective, Share};
use rand::seq::SliceRandom as _;

use crate::seed::{Purpose, generator};

/// One turn of one dialogue, as something to learn: indices into the split, and what is asked about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sample {
    /// Place of the dialogue in the split.
    pub dialogue: u32,
    /// Place of the turn in the dialogue.
    pub turn: u32,
    /// What is asked.
    pub objective: Objective,
}

/// A dialogue of the training split, as far as the plan needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turns {
    /// How many turns it has.
    pub turns: usize,
    /// Which part of the corpus it is of.
    pub part: u32,
}

/// The turns that `share` keeps of these dialogues, drawn without replacement, in the split's order: `floor(n * share)` of
/// all of them, or of each part's ([`Mix`]). Each is a sample that asks the main objective.
pub fn select(dialogues: &[Turns], share: Share, mix: Mix, seed: u64) -> Vec<Sample> {
    let parts: BTreeSet<u32> = dialogues.iter().map(|dialogue| dialogue.part).collect();
    if mix == Mix::Total || parts.len() < 2 {
        return drawn(dialogues, |_| true, share, seed, Purpose::Share);
    }
    let of_part = |part| drawn(dialogues, |of: &Turns| of.part == part, share, seed, Purpose::ShareOf { part });
    let mut samples: Vec<Sample> = parts.into_iter().flat_map(of_part).collect();
    samples.sort_unstable();
    samples
}

fn drawn(dialogues: &[Turns], of: impl Fn(&Turns) -> bool, share: Share, seed: u64, purpose: Purpose) -> Vec<Sample> {
    let count = |n: usize| u32::try_from(n).expect("a split has fewer than 2^32 dialogues and turns");
    let turns = |(dialogue, of): (usize, &Turns)| {
        (0..count(of.turns)).map(move |turn| Sample { dialogue: count(dialogue), turn, objective: Objective::Main })
    };
    let mut samples: Vec<_> = dialogues.iter().enumerate().filter(|(_, turns)| of(turns)).flat_map(turns).collect();
    let kept = usize::try_from(share.of(samples.len() as u64)).expect("a share keeps at most all");
    if kept < samples.len() {
        samples.shuffle(&mut generator(seed, purpose));
        samples.truncate(kept);
        samples.sort_unstable();
    }
    samples
}

/// Each sample once for every objective of a stage, those of one turn together.
pub fn asked(samples: &[Sample], objectives: &[Objective]) -> Vec<Sample> {
    let each = |sample: &Sample| {
        let sample = *sample;
        objectives.iter().map(move |&objective| Sample { objective, ..sample })
    };
    samples.iter().flat_map(each).collect()
}

/// The updates of a pass (from 1): every sample once, `batch` in each update but the last.
pub fn pass(samples: &[Sample], batching: Batching, batch: usize, seed: u64, pass: u32) -> Vec<Vec<Sample>> {
    let mut chance = generator(seed, Purpose::Order { epoch: pass });
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

    fn dialogues(parts: &[(u32, usize)]) -> Vec<Turns> {
        parts.iter().map(|&(part, turns)| Turns { turns, part }).collect()
    }

    /// Training utterances of IEMOCAP, MELD and EmoryNLP.
    const PAPER: [(u32, usize); 3] = [(0, 5163), (1, 9989), (2, 7551)];

    #[test]
    fn every_share_and_mix_of_the_paper_keeps_what_its_formula_says() {
        let all = dialogues(&PAPER);
        for denominator in [1, 2, 4, 8, 16, 32, 64] {
            let share = share(&format!("1/{denominator}"));
            let kept = |dialogues: &[Turns], mix| {
                let samples = select(dialogues, share, mix, 42);
                let of_part = |part| samples.iter().filter(|s| dialogues[s.dialogue as usize].part == part).count();
                (samples.len(), [0, 1, 2].map(of_part))
            };
            let (total, _) = kept(&all, Mix::Total);
            assert_eq!(total, (5163 + 9989 + 7551) / denominator);
            let (ratio, by_part) = kept(&all, Mix::Ratio);
            assert_eq!(by_part, [5163 / denominator, 9989 / denominator, 7551 / denominator]);
            assert_eq!(ratio, by_part.iter().sum::<usize>());
            for (place, (part, turns)) in PAPER.into_iter().enumerate() {
                let (single, _) = kept(&dialogues(&[(part, turns)]), Mix::Ratio);
                assert_eq!(single, by_part[place]);
            }
        }
        let single = |place: usize| select(&dialogues(&[PAPER[place]]), share("1/64"), Mix::Total, 42).len();
        assert_eq!([0, 1, 2].map(single), [80, 156, 117], "the paper's smallest runs");
    }

    #[test]
    fn a_stage_asks_every_objective_of_every_sample() {
        let samples = select(&dialogues(&[(0, 3), (0, 2)]), share("1"), Mix::Total, 1);
        let both = asked(&samples, &[Objective::Main, Objective::Impact]);
        assert_eq!(both.len(), 10);
        assert_eq!((both[0].turn, both[1].turn), (0, 0), "a turn's prompts stand together: they share most tokens");
        assert_eq!(asked(&samples, &[Objective::Main]), samples);
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
            let turns: Vec<Turns> = turns.iter().map(|&turns| Turns { turns, part: 0 }).collect();
            let samples = asked(&select(&turns, share("2/3"), Mix::Total, seed), &[Objective::Main, Objective::Impact]);
            let updates = pass(&samples, batching, batch, seed, 3);
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
