//! Cross entropy over gathered rows, and what evaluation reads from logits.

use rayon::prelude::*;

use super::simd::math;
use crate::backend::{Readout, Wanted};

/// Loss per row, and the logits replaced by the loss's gradient.
pub(super) fn forward_backward(
    logits: &mut [f32],
    vocab: usize,
    offsets: &[u32],
    ids: &[u32],
    weights: &[f32],
    loss: &mut [f32],
) {
    assert_eq!(logits.len(), loss.len() * vocab, "a row of logits per loss");
    assert_eq!(offsets.len(), loss.len() + 1, "offsets bound every row");
    logits.par_chunks_mut(vocab).zip(loss.par_iter_mut()).enumerate().for_each(|(r, (logits, loss))| {
        let entries = offsets[r] as usize..offsets[r + 1] as usize;
        *loss = row(logits, &ids[entries.clone()], &weights[entries]);
    });
}

fn row(logits: &mut [f32], ids: &[u32], weights: &[f32]) -> f32 {
    let most = math::max(logits);
    let at_targets: Vec<f32> = ids.iter().map(|id| logits[*id as usize]).collect();
    let sum = math::exp_sum(logits, 1.0, most);
    let lse = most + sum.ln();
    let total: f32 = weights.iter().sum();
    math::scale(logits, total / sum);
    for (id, weight) in ids.iter().zip(weights) {
        logits[*id as usize] -= weight;
    }
    at_targets.iter().zip(weights).map(|(logit, weight)| weight * (lse - logit)).sum()
}

/// Log-probabilities of the wanted entries, argmax and margin per row.
pub(super) fn read_out(logits: &[f32], vocab: usize, wanted: &Wanted<'_>) -> Readout {
    let rows: Vec<(Vec<f32>, u32, f32)> =
        logits.par_chunks(vocab).enumerate().map(|(r, logits)| read_row(logits, wanted_of(wanted, r))).collect();
    let mut out = Readout::default();
    for (log_probs, best, margin) in rows {
        out.log_probs.extend(log_probs);
        out.best.push(best);
        out.margin.push(margin);
    }
    out
}

fn wanted_of<'a>(wanted: &Wanted<'a>, row: usize) -> &'a [u32] {
    &wanted.ids[wanted.offsets[row] as usize..wanted.offsets[row + 1] as usize]
}

fn read_row(logits: &[f32], ids: &[u32]) -> (Vec<f32>, u32, f32) {
    let most = math::max(logits);
    let best = logits.iter().position(|logit| *logit == most).unwrap_or(0);
    let second = math::max(&logits[..best]).max(math::max(&logits[best + 1..]));
    let lse = most + math::sum_exp(logits, most).ln();
    (ids.iter().map(|id| logits[*id as usize] - lse).collect(), best as u32, most - second)
}
