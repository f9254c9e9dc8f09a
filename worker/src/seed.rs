//! Chance as data: every random choice has a generator of its own, derived from the job's seed and what the choice is for.

use insula_proto::ids::Hasher;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

/// What a random choice is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Which samples a share keeps.
    Share,
    /// Which samples a share of a part of the corpus keeps.
    ShareOf {
        /// The part.
        part: u32,
    },
    /// The order of a pass (from 1) over the samples.
    Order {
        /// The pass.
        epoch: u32,
    },
    /// A stage of the training after its first.
    Stage {
        /// From 1.
        stage: usize,
    },
    /// The labels drawn for shuffled demonstrations.
    ShuffledLabels {
        /// Which shard's, by the beginning of its digest's digest.
        shard: u64,
    },
    /// The adapter's first values.
    Adapter,
    /// Which utterances of a label may be demonstrations.
    Demonstrations {
        /// The label's place in its set.
        label: u16,
    },
    /// How long a request to an endpoint waits before it is tried again.
    Pause {
        /// Which request.
        request: u64,
        /// Which try, from 1.
        attempt: u32,
    },
}

/// The seed of a stage of the training: the job's own in the first.
pub fn of_stage(seed: u64, stage: usize) -> u64 {
    if stage == 0 { seed } else { number(seed, Purpose::Stage { stage }) }
}

/// The generator for `purpose` under the job's `seed`.
pub fn generator(seed: u64, purpose: Purpose) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(derived(seed, purpose))
}

/// A number for code that wants one instead of a generator.
pub fn number(seed: u64, purpose: Purpose) -> u64 {
    let bytes = derived(seed, purpose);
    u64::from_le_bytes(bytes[..8].try_into().expect("8 of 32 bytes"))
}

/// SHA-256 of the seed and the purpose's name: no two purposes share a stream.
fn derived(seed: u64, purpose: Purpose) -> [u8; 32] {
    let mut hasher = Hasher::default();
    hasher.update(format!("insula seed {seed} for {purpose:?}").as_bytes());
    hasher.finish().bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::RngCore;

    #[test]
    fn every_purpose_has_its_own_stream_and_the_same_seed_the_same() {
        let first = |seed, purpose| generator(seed, purpose).next_u64();
        let order = |epoch| Purpose::Order { epoch };
        assert_eq!(first(7, order(1)), first(7, order(1)));
        assert_ne!(first(7, order(1)), first(7, order(2)));
        assert_ne!(first(7, order(1)), first(8, order(1)));
        assert_ne!(first(7, Purpose::Share), first(7, Purpose::Adapter));
    }
}
