//! Right operands of products, put into panels of sixteen columns (see `simd::gemm`).

use rayon::prelude::*;

use super::simd::gemm::PANEL;
use super::simd::transpose;

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

/// Packs `B: [k, n]` from float32 panels of its transpose.
///
/// Rows 16q.. and columns 16p.. of B are a 16 x 16 block of panel q, lying turned.
pub(crate) fn turned(from: &[f32], k: usize, n: usize, panels: &mut [f32]) {
    turned_blocks(k, n, panels, |at, width, out| {
        transpose::rows_to_panel(&from[at..][..width * PANEL], PANEL, width, out.len() / PANEL, out);
    });
}

/// The same from panels that are stored otherwise, which `read(at, to)` widens.
pub(crate) fn turned_from(read: impl Fn(usize, &mut [f32]) + Sync, k: usize, n: usize, panels: &mut [f32]) {
    turned_blocks(k, n, panels, |at, width, out| {
        let mut block = [0.0; PANEL * PANEL];
        read(at, &mut block[..width * PANEL]);
        transpose::rows_to_panel(&block, PANEL, width, out.len() / PANEL, out);
    });
}

/// Calls `block(at, width, out)` for every block: where it begins in the transpose's panels, how many of B's columns it
/// holds, and its rows of B's panel.
fn turned_blocks(k: usize, n: usize, panels: &mut [f32], block: impl Fn(usize, usize, &mut [f32]) + Sync) {
    let count = n.div_ceil(PANEL);
    panels[..count * PANEL * k].par_chunks_mut(PANEL * k).enumerate().for_each(|(p, panel)| {
        let width = PANEL.min(n - p * PANEL);
        for (q, out) in panel.chunks_mut(PANEL * PANEL).enumerate() {
            block(q * PANEL * n + p * PANEL * PANEL, width, out);
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
