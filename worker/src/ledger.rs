//! The ledger: which samples each update of a training was made of, and under whose lease each slot was computed.
//!
//! A line of JSON for each update. Whoever has the recipe, the seed and the samples can say what every line must hold,
//! but for where the slots are cut, which depends on their tokens; so it is checked that the slots of an update tile it,
//! each with the digest of its samples.

use std::collections::BTreeMap;

use insula_proto::{
    ids::{Digest, Hasher},
    job::{Objective, Stage},
};
use serde::{Deserialize, Serialize};

use crate::plan::{self, Sample};

/// An update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// From 1.
    pub update: u32,
    /// The pass over the samples, from 1.
    pub pass: u32,
    /// In order.
    pub slots: Vec<Slot>,
}

/// A slot of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// Its samples' places in the order of the pass: from the first, up to and without the second.
    pub samples: [u64; 2],
    /// Of its samples; see [`digest`].
    pub digest: Digest,
    /// Under whose lease it was computed.
    pub lease: u64,
    /// The worker's name.
    pub worker: String,
}

impl Line {
    /// The line, without its end.
    #[must_use]
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("a line is plain data")
    }
}

/// The digest of samples in an order: dialogue and turn as 32-bit little-endian words, and a byte for the objective.
#[must_use]
pub fn digest(samples: &[Sample]) -> Digest {
    let mut hasher = Hasher::default();
    for sample in samples {
        hasher.update(&sample.dialogue.to_le_bytes());
        hasher.update(&sample.turn.to_le_bytes());
        hasher.update(&[match sample.objective {
            Objective::Main => 0,
            Objective::Speaker => 1,
            Objective::Impact => 2,
        }]);
    }
    hasher.finish()
}

/// What a ledger without fault says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Updates.
    pub updates: u32,
    /// Updates of the whole training.
    pub all: u32,
    /// Slots of all updates.
    pub slots: u64,
    /// Samples of all updates; a sample counts once in each pass.
    pub samples: u64,
    /// Passes over the samples that are complete.
    pub passes: u32,
    /// Slots by worker.
    pub workers: BTreeMap<String, u64>,
    /// Leases under which slots were computed.
    pub leases: usize,
}

/// What is wrong with a ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A line is none.
    #[error("ledger line {line}: {problem}")]
    Line {
        /// From 1.
        line: usize,
        /// What the parser says.
        problem: serde_json::Error,
    },
    /// An update is missing, or there twice.
    #[error("ledger line {line} is of update {got}, expected {expected}")]
    Update {
        /// From 1.
        line: usize,
        /// The line's update.
        got: u32,
        /// The one after the line before.
        expected: u32,
    },
    /// More updates than the training has.
    #[error("update {update} of a training of {updates}")]
    After {
        /// The line's update.
        update: u32,
        /// All there are.
        updates: u32,
    },
    /// An update of another pass.
    #[error("update {update} is of pass {got}, expected {expected}")]
    Pass {
        /// The line's update.
        update: u32,
        /// The line's pass.
        got: u32,
        /// The plan's.
        expected: u32,
    },
    /// Samples of the update that no slot has.
    #[error("update {update}: no slot has places {from} to {to} of pass {pass}, beginning with {sample}", to = .to - 1)]
    Missing {
        /// The update.
        update: u32,
        /// Its pass.
        pass: u32,
        /// The first such place in the pass.
        from: u64,
        /// The place after the last.
        to: u64,
        /// The sample at the first.
        sample: String,
    },
    /// Samples that two slots have.
    #[error("update {update}: slot {slot} has places {from} to {to} of pass {pass} once more, beginning with {sample}", to = .to - 1)]
    Doubled {
        /// The update.
        update: u32,
        /// Its pass.
        pass: u32,
        /// The second of the slots, from 0.
        slot: usize,
        /// The first such place in the pass.
        from: u64,
        /// The place after the last.
        to: u64,
        /// The sample at the first.
        sample: String,
    },
    /// A slot beyond its update, or of nothing.
    #[error("update {update}: slot {slot} has places {from} up to {to}, expected a part of {first} up to {end}")]
    Outside {
        /// The update.
        update: u32,
        /// The slot, from 0.
        slot: usize,
        /// Its first place.
        from: u64,
        /// The place after its last.
        to: u64,
        /// The update's first place.
        first: u64,
        /// The place after its last.
        end: u64,
    },
    /// A slot of other samples.
    #[error(
        "update {update}: slot {slot}, places {from} to {to} of pass {pass}, was computed of {got}; its samples, beginning with {sample}, have {expected}",
        to = .to - 1
    )]
    Wrong {
        /// The update.
        update: u32,
        /// Its pass.
        pass: u32,
        /// The slot, from 0.
        slot: usize,
        /// Its first place.
        from: u64,
        /// The place after its last.
        to: u64,
        /// The ledger's digest.
        got: Digest,
        /// The plan's.
        expected: Digest,
        /// The sample at the first place.
        sample: String,
    },
}

/// Checks a stage's ledger, from its first update, against its plan: `samples` are the stage's ([`plan::asked`]), `seed`
/// is the stage's. A ledger that ends before the training does is checked as far as it goes.
///
/// # Errors
/// The first thing that is wrong, by its place.
pub fn verify<'a>(
    lines: impl IntoIterator<Item = &'a str>,
    samples: &[Sample],
    stage: &Stage,
    seed: u64,
) -> Result<Summary, LedgerError> {
    let batch = stage.train.batch as usize;
    let per_pass = u32::try_from(samples.len().div_ceil(batch)).expect("a split has fewer than 2^32 samples").max(1);
    let updates = if stage.train.updates == 0 { per_pass * stage.train.epochs } else { stage.train.updates };
    let (mut summary, mut leases) = (Summary { all: updates, ..Summary::default() }, std::collections::BTreeSet::new());
    let mut planned: (u32, Vec<Vec<Sample>>) = (0, Vec::new());
    for (place, text) in lines.into_iter().enumerate() {
        let number = place + 1;
        let line: Line = serde_json::from_str(text).map_err(|problem| LedgerError::Line { line: number, problem })?;
        let expected = summary.updates + 1;
        if line.update != expected {
            return Err(LedgerError::Update { line: number, got: line.update, expected });
        }
        if line.update > updates {
            return Err(LedgerError::After { update: line.update, updates });
        }
        let pass = (line.update - 1) / per_pass + 1;
        if line.pass != pass {
            return Err(LedgerError::Pass { update: line.update, got: line.pass, expected: pass });
        }
        if planned.0 != pass {
            planned = (pass, plan::pass(samples, stage.train.batching, batch, seed, pass));
        }
        let in_pass = (line.update - 1) % per_pass;
        check(&line, u64::from(in_pass) * batch as u64, &planned.1[in_pass as usize])?;
        summary.updates = line.update;
        summary.passes = line.update / per_pass;
        summary.samples += planned.1[in_pass as usize].len() as u64;
        summary.slots += line.slots.len() as u64;
        for slot in line.slots {
            leases.insert(slot.lease);
            *summary.workers.entry(slot.worker).or_default() += 1;
        }
    }
    summary.leases = leases.len();
    Ok(summary)
}

/// Checks that a line's slots tile its update, which begins at the place `first` of its pass.
fn check(line: &Line, first: u64, update: &[Sample]) -> Result<(), LedgerError> {
    let Line { update: number, pass, .. } = *line;
    let end = first + update.len() as u64;
    let name = |place: u64| {
        let Sample { dialogue, turn, objective } = update[(place - first) as usize];
        format!("dialogue {dialogue}, turn {turn}, {}", objective.as_str())
    };
    let missing = |from: u64, to: u64| LedgerError::Missing { update: number, pass, from, to, sample: name(from) };
    let mut next = first;
    for (place, slot) in line.slots.iter().enumerate() {
        let [from, to] = slot.samples;
        if from < first || to > end || from >= to {
            return Err(LedgerError::Outside { update: number, slot: place, from, to, first, end });
        }
        if from > next {
            return Err(missing(next, from));
        }
        if from < next {
            let (to, sample) = (to.min(next), name(from));
            return Err(LedgerError::Doubled { update: number, pass, slot: place, from, to, sample });
        }
        let expected = digest(&update[(from - first) as usize..(to - first) as usize]);
        if slot.digest != expected {
            let (got, sample) = (slot.digest.clone(), name(from));
            return Err(LedgerError::Wrong { update: number, pass, slot: place, from, to, got, expected, sample });
        }
        next = to;
    }
    if next < end { Err(missing(next, end)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use insula_proto::job::JobSpec;
    use proptest::prelude::*;

    const SEED: u64 = 11;

    fn stage(batch: u32, epochs: u32) -> Stage {
        let mut spec = JobSpec::default();
        (spec.train.batch, spec.train.epochs) = (batch, epochs);
        spec.training_stages().remove(0)
    }

    fn samples(count: u32) -> Vec<Sample> {
        (0..count).map(|i| Sample { dialogue: i / 3, turn: i % 3, objective: Objective::Main }).collect()
    }

    /// The ledger of a training whose slots have `width` samples each.
    fn ledger(samples: &[Sample], stage: &Stage, width: usize) -> Vec<Line> {
        let batch = stage.train.batch as usize;
        let of_pass = |pass: u32| {
            let updates = plan::pass(samples, stage.train.batching, batch, SEED, pass);
            updates.into_iter().enumerate().map(move |(place, update)| {
                let slot = |(i, samples): (usize, &[Sample])| {
                    let from = (place * batch + i * width) as u64;
                    let samples_to = from + samples.len() as u64;
                    let (lease, worker) = (7 + i as u64 % 2, format!("w{}", i % 2));
                    Slot { samples: [from, samples_to], digest: digest(samples), lease, worker }
                };
                Line { update: 0, pass, slots: update.chunks(width).enumerate().map(slot).collect() }
            })
        };
        let mut lines: Vec<Line> = (1..=stage.train.epochs).flat_map(of_pass).collect();
        lines.iter_mut().zip(1..).for_each(|(line, update)| line.update = update);
        lines
    }

    fn verified(lines: &[Line], samples: &[Sample], stage: &Stage) -> Result<Summary, LedgerError> {
        let lines: Vec<String> = lines.iter().map(Line::encode).collect();
        verify(lines.iter().map(String::as_str), samples, stage, SEED)
    }

    #[test]
    fn what_is_wrong_is_named() {
        let (stage, samples) = (stage(5, 2), samples(12));
        let good = ledger(&samples, &stage, 2);
        let summary = verified(&good, &samples, &stage).unwrap();
        assert_eq!((summary.updates, summary.passes, summary.samples, summary.slots), (6, 2, 24, 14));
        assert_eq!(summary.all, 6);
        assert_eq!((summary.leases, summary.workers["w0"]), (2, 10));
        let part = verified(&good[..2], &samples, &stage).unwrap();
        assert_eq!((part.updates, part.all, part.passes), (2, 6, 0));
        let refused = |change: &dyn Fn(&mut Vec<Line>)| {
            let mut lines = good.clone();
            change(&mut lines);
            verified(&lines, &samples, &stage).unwrap_err().to_string()
        };
        assert_eq!(refused(&|l| drop(l.remove(1))), "ledger line 2 is of update 3, expected 2");
        assert_eq!(refused(&|l| l[4].pass = 1), "update 5 is of pass 1, expected 2");
        assert_eq!(refused(&|l| l.push(Line { update: 7, ..l[0].clone() })), "update 7 of a training of 6");
        let gone = refused(&|l| drop(l[1].slots.remove(1)));
        assert!(gone.starts_with("update 2: no slot has places 7 to 8 of pass 1, beginning with dialogue "), "{gone}");
        let again = refused(&|l| l[1].slots[1].samples[0] = 6);
        assert!(
            again.starts_with("update 2: slot 1 has places 6 to 6 of pass 1 once more, beginning with "),
            "{again}"
        );
        let outside = refused(&|l| l[0].slots[2].samples[1] = 6);
        assert_eq!(outside, "update 1: slot 2 has places 4 up to 6, expected a part of 0 up to 5");
        let wrong = refused(&|l| l[3].slots[0].digest = digest(&[]));
        assert!(wrong.starts_with("update 4: slot 0, places 0 to 1 of pass 2, was computed of sha256:e3b0"), "{wrong}");
    }

    proptest! {
        #[test]
        fn any_sample_doubled_missing_swapped_or_wrong_is_found(
            count in 4u32..40, batch in 2u32..9, width in 1usize..5, at: prop::sample::Index, fault in 0usize..4,
        ) {
            let (stage, samples) = (stage(batch, 2), samples(count));
            let mut lines = ledger(&samples, &stage, width);
            prop_assert!(verified(&lines, &samples, &stage).is_ok());
            // The samples that were computed, as the workers had them; two neighbours are changed.
            let at = at.index(lines.len());
            let updates = plan::pass(&samples, stage.train.batching, batch as usize, SEED, lines[at].pass);
            let first = (at % updates.len()) as u64 * u64::from(batch);
            let mut computed = updates[at % updates.len()].clone();
            let stranger = Sample { dialogue: 1000, turn: 0, objective: Objective::Main };
            match fault {
                0 if computed.len() > 1 => computed[1] = computed[0],
                1 if computed.len() > 1 => computed.swap(0, 1),
                2 => drop(computed.pop()),
                _ => computed[0] = stranger,
            }
            let line = &mut lines[at];
            line.slots.retain_mut(|slot| {
                let [from, to] = slot.samples.map(|place| ((place - first) as usize).min(computed.len()));
                slot.samples[1] = first + to as u64;
                slot.digest = digest(&computed[from..to]);
                from < to
            });
            let error = verified(&lines, &samples, &stage).unwrap_err().to_string();
            prop_assert!(error.starts_with(&format!("update {}: ", at + 1)), "{error}");
        }
    }
}
