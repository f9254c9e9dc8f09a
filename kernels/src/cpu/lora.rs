//! The thin products of one low-rank pair.

use std::sync::Arc;

use super::buffer::Arena;
use super::pack;
use super::simd::gemm::{self, Left, Product, Right};
use super::simd::math;
use crate::backend::LoraShape;

/// `down = x A^T`, `y += scale * down B^T`.
pub(super) fn forward(
    arena: &Arc<Arena>,
    x: &[f32],
    params: &[f32],
    shape: &LoraShape,
    down: &mut [f32],
    y: &mut [f32],
) {
    let LoraShape { r, input, output, .. } = *shape;
    let m = x.len() / input;
    assert_eq!((x.len(), down.len(), y.len()), (m * input, m * r, m * output), "x, down and y have {m} rows");
    let mut panels = arena.take(gemm::packed_len(input, r));
    pack::transposed(a(params, shape), r, input, &mut panels);
    gemm::parallel(
        Product { m, k: input, n: r, stride: r, add: false },
        Left::rows(x, input),
        Right::packed(&panels, input),
        down,
    );
    let mut panels = arena.take(gemm::packed_len(r, output));
    pack::transposed(b(params, shape), output, r, &mut panels);
    math::scale(&mut panels, shape.scale);
    gemm::parallel(
        Product { m, k: r, n: output, stride: output, add: true },
        Left::rows(down, r),
        Right::packed(&panels, r),
        y,
    );
}

/// `dA += ddown^T x`, `dB += scale * dy^T down`, `dx += ddown A`, where `ddown = scale * dy B`.
#[expect(clippy::too_many_arguments, reason = "one per operand of the product")]
pub(super) fn backward(
    arena: &Arc<Arena>,
    x: &[f32],
    down: &[f32],
    dy: &[f32],
    params: &[f32],
    shape: &LoraShape,
    grads: &mut [f32],
    dx: Option<&mut [f32]>,
) {
    let LoraShape { r, input, output, .. } = *shape;
    let m = x.len() / input;
    assert_eq!((x.len(), down.len(), dy.len()), (m * input, m * r, m * output), "x, down and dy have {m} rows");
    let mut ddown = arena.take(m * r);
    let mut panels = arena.take(gemm::packed_len(output, r));
    pack::straight(b(params, shape), output, r, &mut panels);
    math::scale(&mut panels, shape.scale);
    gemm::parallel(
        Product { m, k: output, n: r, stride: r, add: false },
        Left::rows(dy, output),
        Right::packed(&panels, output),
        &mut ddown,
    );

    add_gradient_of_b(arena, down, dy, shape, &mut grads[shape.b..][..output * r]);

    let mut panels = arena.take(gemm::packed_len(m, input));
    pack::straight(x, m, input, &mut panels);
    let da = &mut grads[shape.a..][..r * input];
    gemm::parallel(
        Product { m: r, k: m, n: input, stride: input, add: true },
        Left::transposed(&ddown, r),
        Right::packed(&panels, m),
        da,
    );

    if let Some(dx) = dx {
        let mut panels = arena.take(gemm::packed_len(r, input));
        pack::straight(a(params, shape), r, input, &mut panels);
        gemm::parallel(
            Product { m, k: r, n: input, stride: input, add: true },
            Left::rows(&ddown, r),
            Right::packed(&panels, r),
            dx,
        );
    }
}

/// Through the transpose `[r, output]`, whose rows fit the tiles; B itself is only r wide.
fn add_gradient_of_b(arena: &Arc<Arena>, down: &[f32], dy: &[f32], shape: &LoraShape, db: &mut [f32]) {
    let LoraShape { r, output, .. } = *shape;
    let m = down.len() / r;
    let mut panels = arena.take(gemm::packed_len(m, output));
    pack::straight(dy, m, output, &mut panels);
    let mut turned = arena.take(r * output);
    let product = Product { m: r, k: m, n: output, stride: output, add: false };
    gemm::parallel(product, Left::transposed(down, r), Right::packed(&panels, m), &mut turned);
    for (o, row) in db.chunks_exact_mut(r).enumerate() {
        for (j, value) in row.iter_mut().enumerate() {
            *value += shape.scale * turned[j * output + o];
        }
    }
}

fn a<'a>(params: &'a [f32], shape: &LoraShape) -> &'a [f32] {
    &params[shape.a..][..shape.r * shape.input]
}

fn b<'a>(params: &'a [f32], shape: &LoraShape) -> &'a [f32] {
    &params[shape.b..][..shape.output * shape.r]
}
