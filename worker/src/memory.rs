//! How much memory a training will take, told before it begins.
//!
//! A slot's memory is its tree tokens times what the backward pass reads of each token and layer (see [`crate::model`]),
//! and a slot has at most `train.slot_tokens` of them. To that come the frozen weights, which lie packed, the adapter
//! with its gradients and moments, the logits of a block of rows, and the scratch of the operation in hand. The process
//! itself (code, tokenizer, examples, runtime) is a constant that was measured.

use crate::adapter::{AdapterConfig, Layout};
use crate::base::ModelConfig;
use insula_kernels::{Precision, cpu};

/// Resident memory of a worker before it has read a base, and what its tokenizer, examples and runtime come to: measured
/// with SmolLM2's tokenizer and MELD's training split (docs/lab.md).
const PROCESS_BYTES: u64 = 90 << 20;
/// Vectors as long as the adapter: its parameters on the host and the device, gradients on the device and twice on the
/// host, two moments, and a checkpoint on its way.
const ADAPTER_COPIES: u64 = 8;

/// What is to be trained.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The base's dimensions.
    pub model: &'a ModelConfig,
    /// How its weights are held.
    pub precision: Precision,
    /// The adapter.
    pub adapter: &'a AdapterConfig,
    /// Tree tokens of the longest slot.
    pub slot_tokens: usize,
    /// Whether activations are computed again instead of kept.
    pub recompute: bool,
}

/// Predicted peak of resident memory, bytes, by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Frozen weights.
    pub weights: u64,
    /// What the forward pass keeps for the backward pass.
    pub activations: u64,
    /// Buffers and scratch of the operations themselves, logits included.
    pub working: u64,
    /// The adapter, its gradients and moments.
    pub adapter: u64,
    /// The process itself.
    pub process: u64,
}

impl Memory {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.activations + self.working + self.adapter + self.process
    }
}

/// What the plan will take at its peak on the CPU.
#[must_use]
pub fn predict(plan: &Plan<'_>) -> Memory {
    let Plan { model, precision, adapter, slot_tokens, recompute } = *plan;
    let c = model;
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let downs = adapter.r * adapter.targets.len();
    let state = 2 * c.hidden + 2 * q + 2 * kv + c.heads + 2 * c.intermediate + downs;
    let kept = match recompute {
        false => (c.layers - 1) * state,
        true => (c.layers - 1) * c.hidden + state,
    };
    // The last layer keeps its input, keys and values; of the rest the supervised rows alone.
    let last = c.hidden + 2 * kv;
    let passing = 4 * c.hidden + 2 * q + 2 * kv + 3 * c.intermediate;
    let working = slot_tokens * (passing + cpu::attention_scratch(c.heads, c.kv_heads, c.head_dim, slot_tokens));
    let logits = crate::model::LOGIT_ROWS * (c.vocab + 2 * c.hidden);
    let floats = |n: usize| 4 * n as u64;
    Memory {
        weights: weights(model, precision),
        activations: floats(slot_tokens * (kept + last)),
        working: floats(working + logits) + cpu::UNPACKED_BYTES,
        adapter: floats(Layout::new(adapter, model).len()) * ADAPTER_COPIES,
        process: PROCESS_BYTES,
    }
}

fn weights(c: &ModelConfig, precision: Precision) -> u64 {
    let element = match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    };
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let layer = 2 * c.hidden * q + 2 * c.hidden * kv + 3 * c.hidden * c.intermediate;
    let embeddings = c.vocab * c.hidden * if c.tied { 1 } else { 2 };
    let norms = (2 * c.layers + 1) * c.hidden;
    element * (c.layers * layer + embeddings) as u64 + 4 * norms as u64
}
