//! How much memory a job will take of a worker, told before it begins.
//!
//! Buffers go back to an arena that keeps them by the width of their rows and never shrinks (see `insula_kernels::cpu`),
//! so the peak is, width by width, the most rows alive at once in training or in evaluation. What the model keeps alive
//! is written in [`crate::model`]; here it is counted. To that come the weights, what is trained with its gradients and
//! moments, the logits of a block of rows, the scratch of the operation in hand, and the process itself.

pub mod gpu;

use std::collections::BTreeMap;

use insula_kernels::{Precision, cpu};
use insula_proto::job::{Parameters, Stage};

use crate::adapter::{AdapterConfig, Layout, Target};
use crate::base::ModelConfig;
use crate::evaluate::next_forest;
use crate::forest::count_tree_tokens;
use crate::model::{LOGIT_ROWS, of_tables};
use crate::plan::{self, Sample};
use crate::prompt::Example;

/// A worker that has read no base yet, with a tokenizer, examples and the runtime: measured with SmolLM2's tokenizer and
/// MELD (docs/lab.md).
const PROCESS_BYTES: u64 = 60 << 20;
/// Vectors as long as the adapter: its parameters on the host and on the device, gradients on the device and twice on
/// the host, two moments, and a checkpoint's three on their way.
const ADAPTER_COPIES: u64 = 10;
/// Vectors as long as all weights that stay where these are trained: the weights on the host, and two moments.
const ALL_COPIES: u64 = 3;
/// Vectors of a checkpoint on its way. No gradient is alive then.
const CHECKPOINT_COPIES: u64 = 3;

/// What is to be computed.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The base's dimensions.
    pub model: &'a ModelConfig,
    /// Size of the files it is read from, bytes.
    pub base_bytes: u64,
    /// How its weights are held.
    pub precision: Precision,
    /// What is trained.
    pub parameters: Parameters,
    /// The adapter, where one is.
    pub adapter: &'a AdapterConfig,
    /// Whether activations are computed again instead of kept.
    pub recompute: bool,
    /// Whether evaluation merges the adapter into copies of the weights.
    pub merge: bool,
    /// Tree tokens of the longest slot; 0 where nothing is trained.
    pub slot_tokens: usize,
    /// Slots of the update that has most of them; asked only where all weights are trained.
    pub slots: usize,
    /// Tree tokens of the longest forest evaluated, label tries included; 0 where nothing is.
    pub forest_tokens: usize,
}

/// Predicted resident memory, bytes, by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Frozen weights, and copies with the adapter merged.
    pub weights: u64,
    /// The base's files, mapped while they are read, and again for their digest at the start of every task.
    pub mapped: u64,
    /// What reading the weights takes besides, before anything is computed.
    pub loading: u64,
    /// Rows that are alive at once, activations above all.
    pub activations: u64,
    /// Scratch of the operations.
    pub scratch: u64,
    /// What is trained, its gradients and moments.
    pub adapter: u64,
    /// The process itself.
    pub process: u64,
}

impl Memory {
    /// The peak.
    #[must_use]
    pub fn peak(&self) -> u64 {
        let computing = self.activations + self.scratch + self.adapter;
        self.weights + self.process + self.mapped + self.loading.max(computing)
    }
}

/// What the plan will take at its peak on the CPU.
#[must_use]
pub fn predict(plan: &Plan<'_>) -> Memory {
    let c = plan.model;
    let rows = widest(training(plan), &evaluation(plan));
    let activations: usize = rows.iter().map(|(width, rows)| width * rows).sum();
    let tokens = plan.slot_tokens.max(plan.forest_tokens);
    let scratch = tokens * cpu::attention_scratch(c.heads, c.kv_heads, c.head_dim, tokens);
    let largest = c.vocab * c.hidden;
    let floats = |n: usize| 4 * n as u64;
    Memory {
        weights: weights(c, plan.precision) + merged(plan),
        mapped: plan.base_bytes,
        loading: floats(largest),
        activations: floats(activations),
        scratch: floats(scratch) + cpu::UNPACKED_BYTES,
        adapter: trained(plan),
        process: PROCESS_BYTES,
    }
}

/// What is trained, with all that is as long.
fn trained(plan: &Plan<'_>) -> u64 {
    let bytes = |len: usize| 4 * len as u64;
    match plan.parameters {
        Parameters::Lora => bytes(Layout::new(plan.adapter, plan.model).len()) * ADAPTER_COPIES,
        Parameters::All => {
            let whole = bytes(crate::parameters::Layout::new(plan.model).len());
            whole * (ALL_COPIES + CHECKPOINT_COPIES.max(gradients(plan.slots)))
        }
    }
}

/// Gradients alive at once while slots are added in a binary tree: the one in hand beside the sums of complete subtrees.
fn gradients(slots: usize) -> u64 {
    (0..slots).map(|before| u64::from(before.count_ones()) + 1).max().unwrap_or(0)
}

/// Rows alive at once, by their width.
type Rows = BTreeMap<usize, usize>;

fn widest(mut a: Rows, b: &Rows) -> Rows {
    for (width, rows) in b {
        let most = a.entry(*width).or_default();
        *most = (*most).max(*rows);
    }
    a
}

fn collect(counts: impl IntoIterator<Item = (usize, usize)>) -> Rows {
    let mut rows = Rows::new();
    for (width, count) in counts {
        *rows.entry(width).or_default() += count;
    }
    rows
}

/// At the start of the backward pass, in the layer before the last.
fn training(plan: &Plan<'_>) -> Rows {
    let (c, tokens) = (plan.model, plan.slot_tokens);
    if tokens == 0 {
        return Rows::new();
    }
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    // The last layer lets the supervised rows alone through; its input, keys and values are whole.
    let whole = if plan.recompute { 1 } else { c.layers - 1 };
    let all = plan.parameters == Parameters::All;
    let act = usize::from(all || plan.adapter.targets.contains(&Target::Down));
    let pairs = if all { 0 } else { plan.adapter.targets.len() };
    let passing = 4;
    collect([
        (c.hidden, tokens * (c.layers + whole + passing)), // inputs, middle residuals; gradients and norms
        (q, tokens * (2 * whole + 2)),                     // queries, attention; both gradients
        (kv, tokens * (2 * (whole + 1) + 2)),              // keys, values; both gradients
        (c.heads, tokens * whole),
        (c.intermediate, tokens * (2 * whole + 2 + act)), // gate, up; both gradients
        (plan.adapter.r, tokens * pairs * (whole + 1)),
        (c.vocab, LOGIT_ROWS),
    ])
}

/// In the last whole layer, keys and values of all kept to decode on.
fn evaluation(plan: &Plan<'_>) -> Rows {
    let (c, tokens) = (plan.model, plan.forest_tokens);
    if tokens == 0 {
        return Rows::new();
    }
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    collect([
        (c.hidden, tokens * 4),
        (q, tokens * 2),
        (kv, tokens * 2 * c.layers),
        (c.heads, tokens),
        (c.intermediate, tokens * 3),
        (plan.adapter.r, tokens * plan.adapter.targets.len()),
        (c.vocab, LOGIT_ROWS),
    ])
}

fn weights(c: &ModelConfig, precision: Precision) -> u64 {
    let layer: usize = Target::ALL.iter().map(|target| elements(c, *target)).sum();
    let tables = c.vocab * c.hidden * if c.tied { 1 } else { 2 };
    let norms = (2 * c.layers + 1) * c.hidden;
    let bits = bits(precision) * (c.layers * layer) as u64 + bits(of_tables(precision)) * tables as u64;
    bits / 8 + 4 * norms as u64
}

fn elements(c: &ModelConfig, target: Target) -> usize {
    target.shape(c).iter().product()
}

/// Bits a weight, the scales of quantised blocks included.
fn bits(precision: Precision) -> u64 {
    match precision {
        Precision::F32 => 32,
        Precision::Bf16 => 16,
        Precision::Q8 => 9,
        Precision::Q4 => 5,
    }
}

/// float32 copies of the adapted weights.
fn merged(plan: &Plan<'_>) -> u64 {
    if plan.parameters == Parameters::All {
        return 0;
    }
    let adapted: usize = plan.adapter.targets.iter().map(|target| elements(plan.model, *target)).sum();
    if plan.merge { 4 * (plan.model.layers * adapted) as u64 } else { 0 }
}

/// Tree tokens of the longest slot of a whole stage of a training (its seed is `seed`), 0 of none. `sequence` gives a
/// sample's token ids.
#[must_use]
pub fn longest_slot<'a>(
    stage: &Stage,
    seed: u64,
    samples: &[Sample],
    sequence: impl Fn(&Sample) -> &'a [u32],
) -> usize {
    largest(stage, seed, samples, sequence).0
}

/// Slots of the update that has most of them, in a whole stage; 0 of none. `sequence` gives a sample's token ids.
#[must_use]
pub fn most_slots<'a>(stage: &Stage, seed: u64, samples: &[Sample], sequence: impl Fn(&Sample) -> &'a [u32]) -> usize {
    largest(stage, seed, samples, sequence).1
}

/// Tree tokens of the longest slot, and the most slots of an update.
fn largest<'a>(
    stage: &Stage,
    seed: u64,
    samples: &[Sample],
    sequence: impl Fn(&Sample) -> &'a [u32],
) -> (usize, usize) {
    let (train, mut longest, mut most) = (&stage.train, 0, 0);
    let updates_per_pass = samples.len().div_ceil(train.batch as usize).max(1);
    let passes = match train.updates {
        0 => train.epochs,
        updates => updates.div_ceil(u32::try_from(updates_per_pass).unwrap_or(u32::MAX)),
    };
    for pass in 1..=passes {
        for update in plan::pass(samples, train.batching, train.batch as usize, seed, pass) {
            let sequences: Vec<&[u32]> = update.iter().map(&sequence).collect();
            let slots = plan::slots(&sequences, train.slot_tokens as usize);
            most = most.max(slots.len());
            longest = slots.into_iter().map(|slot| count_tree_tokens(&sequences[slot])).fold(longest, u64::max);
        }
    }
    (usize::try_from(longest).expect("a slot's tokens are counted in memory"), most)
}

/// Tree tokens of the longest forest that an evaluation of these dialogues makes, with `trie` rows behind each prompt.
#[must_use]
pub fn longest_forest(dialogues: &[Vec<Example>], budget: usize, trie: usize) -> usize {
    let (mut rest, mut longest) = (dialogues, 0);
    while !rest.is_empty() {
        let (forest, after) = rest.split_at(next_forest(rest, budget));
        let prompts: Vec<&[u32]> = forest.iter().flatten().map(|example| example.prompt_ids.as_slice()).collect();
        let tokens = usize::try_from(count_tree_tokens(&prompts)).expect("a forest's tokens are counted in memory");
        longest = longest.max(tokens + trie * prompts.len());
        rest = after;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelConfig {
        ModelConfig {
            vocab: 49152,
            hidden: 576,
            intermediate: 1536,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            rope_theta: 1e5,
            rope_scaling: None,
            rms_eps: 1e-5,
            context: 2048,
            tied: true,
        }
    }

    #[test]
    fn memory_grows_with_the_slot_and_recomputing_saves_most_of_it() {
        let model = model();
        let adapter = AdapterConfig { r: 16, alpha: 16.0, targets: [Target::Q, Target::K, Target::V].into() };
        let plan = Plan {
            model: &model,
            base_bytes: 90 << 20,
            precision: Precision::F32,
            parameters: Parameters::Lora,
            adapter: &adapter,
            recompute: false,
            merge: false,
            slot_tokens: 2000,
            slots: 0,
            forest_tokens: 0,
        };
        let kept = predict(&plan);
        assert_eq!(kept.weights, 4 * 134_515_008);
        let twice = predict(&Plan { slot_tokens: 4000, ..plan });
        let logits = (LOGIT_ROWS * model.vocab * 4) as u64;
        assert_eq!(twice.activations - logits, 2 * (kept.activations - logits));
        let again = predict(&Plan { recompute: true, ..plan });
        assert!(again.activations < kept.activations / 5, "{} of {}", again.activations, kept.activations);
    }

    #[test]
    fn training_all_weights_takes_their_moments_and_gradients_besides() {
        let model = model();
        let adapter = AdapterConfig { r: 16, alpha: 16.0, targets: [Target::Q].into() };
        let plan = Plan {
            model: &model,
            base_bytes: 90 << 20,
            precision: Precision::F32,
            parameters: Parameters::All,
            adapter: &adapter,
            recompute: true,
            merge: true,
            slot_tokens: 1280,
            slots: 1,
            forest_tokens: 0,
        };
        let whole = 4 * 134_515_008;
        let memory = predict(&plan);
        assert_eq!((memory.weights, memory.adapter), (whole, 6 * whole));
        // The eighth slot is in hand beside the sums of four, two and one.
        assert_eq!((gradients(1), gradients(2), gradients(5), gradients(8), gradients(9)), (1, 2, 3, 4, 4));
        assert_eq!(predict(&Plan { slots: 8, ..plan }).adapter, 7 * whole);
    }

    #[test]
    fn a_small_job_peaks_while_its_base_is_read() {
        let (model, targets) = (model(), [Target::Q].into());
        let adapter = AdapterConfig { r: 8, alpha: 8.0, targets };
        let plan = Plan {
            model: &model,
            base_bytes: 90 << 20,
            precision: Precision::F32,
            parameters: Parameters::Lora,
            adapter: &adapter,
            recompute: false,
            merge: false,
            slot_tokens: 40,
            slots: 0,
            forest_tokens: 0,
        };
        let memory = predict(&plan);
        assert_eq!(memory.peak(), memory.weights + memory.process + memory.mapped + memory.loading);
    }
}
