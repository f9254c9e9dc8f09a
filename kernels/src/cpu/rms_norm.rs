//! RMSNorm: each row over its root mean square, times a gain.

use rayon::prelude::*;

use super::simd::math;

/// Rows per task: enough work to be worth handing out.
const ROWS: usize = 32;
/// Rows per partial sum of a gain's gradient: fixed, so that the sum does not depend on who adds.
const SUMMED_ROWS: usize = 256;

/// `y = gain * x / rms(x)`, row by row.
pub(super) fn forward(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "x and y have one shape");
    let width = gain.len();
    y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            math::scaled_product(x, gain, inverse_rms(x, eps), y);
        }
    });
}

/// `dx += c * (gain * dy) - c^3 / width * (sum of gain * dy * x) * x`, with `c = 1 / rms(x)`.
pub(super) fn backward(x: &[f32], gain: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) {
    assert_eq!((x.len(), x.len()), (dy.len(), dx.len()), "x, dy and dx have one shape");
    let width = gain.len();
    let rows = dx.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).zip(dy.par_chunks(ROWS * width));
    rows.for_each(|((dx, x), dy)| {
        for ((dx, x), dy) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(dy.chunks_exact(width)) {
            let c = inverse_rms(x, eps);
            let along = -c * c * c / width as f32 * math::triple_dot(dy, gain, x);
            math::add_norm_gradient(dx, dy, gain, x, c, along);
        }
    });
}

/// `grads += sum of dy * x / rms(x)` over the rows, in runs of [`SUMMED_ROWS`], run after run.
pub(super) fn gain_gradient(x: &[f32], eps: f32, dy: &[f32], grads: &mut [f32]) {
    assert_eq!(x.len(), dy.len(), "x and dy have one shape");
    let width = grads.len();
    let runs = x.par_chunks(SUMMED_ROWS * width).zip(dy.par_chunks(SUMMED_ROWS * width));
    let sum = |(x, dy): (&[f32], &[f32])| {
        let mut sum = vec![0.0; width];
        for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
            math::add_scaled_product(&mut sum, x, dy, inverse_rms(x, eps));
        }
        sum
    };
    let sums: Vec<Vec<f32>> = runs.map(sum).collect();
    sums.iter().for_each(|sum| math::add(grads, sum));
}

fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (math::dot(x, x) / x.len() as f32 + eps).sqrt()
}
