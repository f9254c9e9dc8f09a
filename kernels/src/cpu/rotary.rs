//! Rotary position embedding in Hugging Face's half-split order: element i of a head is paired with i + head_dim / 2.

use rayon::prelude::*;

use super::simd::math;
use crate::backend::Direction;

/// Tokens per task.
const ROWS: usize = 64;

/// Rotates every head of every row of `x` by its row of `table: [T, head_dim]` (cosines, then sines).
pub(super) fn apply(x: &mut [f32], table: &[f32], head_dim: usize, direction: Direction) {
    if table.is_empty() {
        return;
    }
    let rows = table.len() / head_dim;
    let width = x.len() / rows;
    assert!(width.is_multiple_of(head_dim) && width * rows == x.len(), "each of {rows} rows holds whole heads");
    let sign = match direction {
        Direction::Forward => 1.0,
        Direction::Backward => -1.0,
    };
    x.par_chunks_mut(ROWS * width).zip(table.par_chunks(ROWS * head_dim)).for_each(|(x, table)| {
        for (row, angles) in x.chunks_exact_mut(width).zip(table.chunks_exact(head_dim)) {
            let (cos, sin) = angles.split_at(head_dim / 2);
            for head in row.chunks_exact_mut(head_dim) {
                let (low, high) = head.split_at_mut(head_dim / 2);
                math::rotate(low, high, cos, sin, sign);
            }
        }
    });
}
