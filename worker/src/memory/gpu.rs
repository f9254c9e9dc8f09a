//! How much of a GPU's memory a job will take, told before it begins.

use super::{LOGIT_ROWS, Plan, elements, evaluation, training, widest};
use crate::{
    adapter::{Layout, Target},
    base::ModelConfig,
    model::of_tables,
};
use insula_kernels::Precision;
use insula_proto::job::Parameters;

/// cuBLASLt's workspace, and kernels and tables that are loaded on their first use.
const BESIDES: u64 = (32 << 20) + (64 << 20);

/// Predicted memory on a GPU, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// Frozen weights: bfloat16, or quantised.
    pub weights: u64,
    /// Everything else at its peak.
    pub computing: u64,
}

/// What the plan will take at its peak on a GPU.
#[must_use]
pub fn predict(plan: &Plan<'_>) -> GpuMemory {
    let c = plan.model;
    let tokens = plan.slot_tokens.max(plan.forest_tokens);
    let rows = widest(training(plan), &evaluation(plan));
    // The residual stream, log-sum-exps and logits are float32; what products leave to each other is half as long.
    let bytes = |width: usize| if [c.hidden, c.heads, c.vocab].contains(&width) { 4 } else { 2 };
    let activations: usize = rows.iter().map(|(&width, rows)| width * rows * bytes(width)).sum();
    // float32 that a product reads is rounded first: the residual's gradient, logits. Scratch is a power of two.
    let rounded = (2 * tokens * c.hidden).next_power_of_two() + (2 * LOGIT_ROWS * c.vocab).next_power_of_two();
    let largest = Target::ALL.iter().map(|target| elements(c, *target)).max().unwrap_or(0).max(c.vocab * c.hidden);
    let widened = match plan.precision {
        Precision::F32 | Precision::Bf16 => 0,
        Precision::Q8 | Precision::Q4 => (2 * largest).next_power_of_two(),
    };
    let trained = match plan.parameters {
        Parameters::Lora => 3 * 4 * Layout::new(plan.adapter, c).len(),
        Parameters::All => 4 * crate::parameters::Layout::new(c).len(),
    };
    let merged = match plan.merge {
        true => {
            let adapted: usize = plan.adapter.targets.iter().map(|target| elements(c, *target)).sum();
            2 * c.layers * adapted + (4 * largest).next_power_of_two()
        }
        false => 0,
    };
    let computing = (activations + rounded + widened + trained + merged) as u64 + BESIDES;
    GpuMemory { weights: weights(c, plan.precision), computing }
}

/// Bytes of a base's weights.
#[must_use]
pub fn weights(c: &ModelConfig, precision: Precision) -> u64 {
    let layer: usize = Target::ALL.iter().map(|target| elements(c, *target)).sum();
    let tables = c.vocab * c.hidden * if c.tied { 1 } else { 2 };
    let norms = 4 * (2 * c.layers + 1) * c.hidden;
    let sixteenths = |precision, n: usize| n as u64 * sixteenths(precision) / 16;
    sixteenths(precision, c.layers * layer) + sixteenths(of_tables(precision), tables) + norms as u64
}

/// Sixteenths of a byte that a weight takes, the scales of quantised blocks included.
fn sixteenths(precision: Precision) -> u64 {
    match precision {
        Precision::F32 | Precision::Bf16 => 32,
        Precision::Q8 => 17,
        Precision::Q4 => 10,
    }
}
