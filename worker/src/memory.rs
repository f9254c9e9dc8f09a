//! How much memory a job will take of a worker, told before it begins.
//!
//! Buffers go back to an arena that keeps them by the width of their rows and never shrinks (see `insula_kernels::cpu`),
//! so the peak is, width by width, the most rows alive at once in training or in evaluation. What the model keeps alive
//! is written in [`crate::model`]; here it is counted. To that come the frozen weights, the adapter with its gradients
//! and moments, the logits of a block of rows, the scratch of the operation in hand, and the process itself.

use std::collections::BTreeMap;

use insula_kernels::{Precision, cpu};

use crate::adapter::{AdapterConfig, Layout, Target};
use crate::base::ModelConfig;
use crate::model::LOGIT_ROWS;

/// A worker that has read no base yet, with a tokenizer, examples and the runtime: measured with SmolLM2's tokenizer and
/// MELD (docs/lab.md).
const PROCESS_BYTES: u64 = 80 << 20;
/// Vectors as long as the adapter: its parameters on the host and on the device, gradients on the device and twice on
/// the host, two moments, and a checkpoint on its way.
const ADAPTER_COPIES: u64 = 8;

/// What is to be computed.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The base's dimensions.
    pub model: &'a ModelConfig,
    /// Size of the files it is read from, bytes.
    pub base_bytes: u64,
    /// How its weights are held.
    pub precision: Precision,
    /// The adapter.
    pub adapter: &'a AdapterConfig,
    /// Whether activations are computed again instead of kept.
    pub recompute: bool,
    /// Tree tokens of the longest slot; 0 where nothing is trained.
    pub slot_tokens: usize,
    /// Tree tokens of the longest forest evaluated, label tries included; 0 where nothing is.
    pub forest_tokens: usize,
}

/// Predicted resident memory, bytes, by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Frozen weights.
    pub weights: u64,
    /// What reading them takes besides, before anything is computed.
    pub loading: u64,
    /// Rows that are alive at once, activations above all.
    pub activations: u64,
    /// Scratch of the operations.
    pub scratch: u64,
    /// The adapter, its gradients and moments.
    pub adapter: u64,
    /// The process itself.
    pub process: u64,
}

impl Memory {
    /// The peak.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.weights + self.process + self.loading.max(self.activations + self.scratch + self.adapter)
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
        weights: weights(c, plan.precision),
        loading: floats(largest) + plan.base_bytes,
        activations: floats(activations),
        scratch: floats(scratch) + cpu::UNPACKED_BYTES,
        adapter: floats(Layout::new(plan.adapter, c).len()) * ADAPTER_COPIES,
        process: PROCESS_BYTES,
    }
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
    let act = usize::from(plan.adapter.targets.contains(&Target::Down));
    let passing = 4;
    collect([
        (c.hidden, tokens * (c.layers + whole + passing)), // inputs, middle residuals; gradients and norms
        (q, tokens * (2 * whole + 2)),                     // queries, attention; both gradients
        (kv, tokens * (2 * (whole + 1) + 2)),              // keys, values; both gradients
        (c.heads, tokens * whole),
        (c.intermediate, tokens * (2 * whole + 2 + act)), // gate, up; both gradients
        (plan.adapter.r, tokens * plan.adapter.targets.len() * (whole + 1)),
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
    let element = match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    };
    let layer: usize = Target::ALL.iter().map(|target| target.shape(c).iter().product::<usize>()).sum();
    let embeddings = c.vocab * c.hidden * if c.tied { 1 } else { 2 };
    let norms = (2 * c.layers + 1) * c.hidden;
    element * (c.layers * layer + embeddings) as u64 + 4 * norms as u64
}
