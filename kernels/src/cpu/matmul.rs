//! Products with a frozen weight: forward by its rows, backward by its columns.

use super::buffer::Arena;
use super::simd::gemm::{self, Left, Product, Right};
use super::weight::CpuWeight;
use std::sync::Arc;

/// `y (+)= x W^T`.
pub(super) fn forward(arena: &Arc<Arena>, x: &[f32], w: &CpuWeight, y: &mut [f32], add: bool) {
    let m = x.len() / w.columns;
    assert_eq!((x.len(), y.len()), (m * w.columns, m * w.rows), "x is [{m}, in] and y [{m}, out]");
    let product = Product { m, k: w.columns, n: w.rows, stride: w.rows, add };
    w.with_forward_panels(arena, |panels| {
        gemm::parallel(product, Left::rows(x, w.columns), Right::packed(panels, w.columns), y);
    });
}

/// `dx (+)= dy W`.
pub(super) fn backward(arena: &Arc<Arena>, dy: &[f32], w: &CpuWeight, dx: &mut [f32], add: bool) {
    let m = dy.len() / w.rows;
    assert_eq!((dy.len(), dx.len()), (m * w.rows, m * w.columns), "dy is [{m}, out] and dx [{m}, in]");
    let mut panels = arena.take(gemm::packed_len(w.rows, w.columns));
    w.pack_backward(&mut panels);
    let product = Product { m, k: w.rows, n: w.columns, stride: w.columns, add };
    gemm::parallel(product, Left::rows(dy, w.rows), Right::packed(&panels, w.rows), dx);
}
