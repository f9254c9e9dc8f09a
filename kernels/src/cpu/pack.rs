//! Right operands of products, put into panels of sixteen columns (see `simd::gemm`).

use half::bf16;
use rayon::prelude::*;

use super::simd::gemm::PANEL;
use super::simd::{math, transpose};
use super::weight::Values;

/// Packs B = W^T for `W: [n, k]` row-major.
pub(crate) fn transposed(w: &[f32], n: usize, k: usize, panels: &mut [f32]) {
    transposed_strided(w, k, n, k, panels);
}

/// Packs B = W^T for n rows of `W`, `stride` apart, of which the first k columns count.
pub(crate) fn transposed_strided(w: &[f32], stride: usize, n: usize, k: usize, panels: &mut [f32]) {
    let count = n.div_ceil(PANEL);
    panels[..count * PANEL * k].par_chunks_mut(PANEL * k).enumerate().for_each(|(p, panel)| {
        let height = PANEL.min(n - p * PANEL);
        transpose::rows_to_panel(&w[p * PANEL * stride..], stride, height, k, panel);
    });
}

/// Packs `B: [k, n]` row-major.
pub(crate) fn straight(b: &[f32], k: usize, n: usize, panels: &mut [f32]) {
    straight_strided(b, n, k, n, panels);
}

/// Packs k rows of B, `stride` apart, of which the first n columns count.
pub(crate) fn straight_strided(b: &[f32], stride: usize, k: usize, n: usize, panels: &mut [f32]) {
    let count = n.div_ceil(PANEL);
    panels[..count * PANEL * k].par_chunks_mut(PANEL * k).enumerate().for_each(|(p, panel)| {
        let width = PANEL.min(n - p * PANEL);
        for (row, out) in panel.chunks_exact_mut(PANEL).enumerate() {
            copy_padded(&b[row * stride + p * PANEL..][..width], out);
        }
    });
}

/// Packs B = W^T for a frozen `W: [n, k]`.
pub(crate) fn weight_transposed(w: &Values, n: usize, k: usize, panels: &mut [f32]) {
    match w {
        Values::F32(values) => transposed(values, n, k, panels),
        Values::Bf16(values) => {
            panels[..n.div_ceil(PANEL) * PANEL * k].par_chunks_mut(PANEL * k).enumerate().for_each_init(
                || vec![0.0; PANEL * k],
                |wide, (p, panel)| {
                    let height = PANEL.min(n - p * PANEL);
                    math::widen(&values[p * PANEL * k..][..height * k], &mut wide[..height * k]);
                    transpose::rows_to_panel(wide, k, height, k, panel);
                },
            );
        }
    }
}

/// Packs B = W for a frozen `W: [k, n]`.
pub(crate) fn weight_straight(w: &Values, k: usize, n: usize, panels: &mut [f32]) {
    match w {
        Values::F32(values) => straight(values, k, n, panels),
        Values::Bf16(values) => straight_bf16(values, k, n, panels),
    }
}

fn straight_bf16(b: &[bf16], k: usize, n: usize, panels: &mut [f32]) {
    panels[..n.div_ceil(PANEL) * PANEL * k].par_chunks_mut(PANEL * k).enumerate().for_each(|(p, panel)| {
        let width = PANEL.min(n - p * PANEL);
        for (row, out) in panel.chunks_exact_mut(PANEL).enumerate() {
            math::widen(&b[row * n + p * PANEL..][..width], &mut out[..width]);
            out[width..].fill(0.0);
        }
    });
}

fn copy_padded(from: &[f32], to: &mut [f32]) {
    if let (Ok(from), Ok(to)) = (<&[f32; PANEL]>::try_from(from), <&mut [f32; PANEL]>::try_from(&mut *to)) {
        *to = *from;
        return;
    }
    to[..from.len()].copy_from_slice(from);
    to[from.len()..].fill(0.0);
}
