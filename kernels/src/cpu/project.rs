//! Linear layers that read one input, with the low-rank pairs that ride on them.
//!
//! ```text
//!   forward    down_i = x A_i^T                              one call for all pairs
//!              y_i = x W_i^T + down_i (s B_i)^T              one call, a sum of two terms each
//!   backward   ddown_i = dy_i (s B_i)                        one call
//!              dx = sum_i dy_i W_i + ddown_i A_i             one sum, and in the same call
//!              dA_i += ddown_i^T x,  dB_i += dy_i^T (s down_i)
//!   and where the weights themselves are trained
//!              dW_i += dy_i^T x
//! ```

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::buffer::{Arena, CpuBuffer};
use super::pack;
use super::simd::gemm::{self, Left, PANEL, Right, Shape, Sum, Term, packed_len};
use super::simd::math;
use super::weight::CpuWeight;
use crate::backend::{LoraShape, Precision};

/// Most floats of a weight unpacked at a time: 8 MB stay in a shared cache, and memory does not grow with the weight.
const UNPACKED_MAX: usize = 2 << 20;

/// The same in bytes: the scratch of a product with a weight that does not lie as the product reads it.
pub const UNPACKED_BYTES: u64 = 4 * UNPACKED_MAX as u64;

/// One layer on the way forward.
pub(super) struct Forward<'a> {
    pub weight: &'a CpuWeight,
    /// The pair, and where its `down: [T, r]` goes.
    pub pair: Option<(LoraShape, &'a mut [f32])>,
    pub y: &'a mut [f32],
}

/// One layer on the way back.
pub(super) struct Backward<'a> {
    pub weight: &'a CpuWeight,
    /// The pair, and its `down: [T, r]`.
    pub pair: Option<(LoraShape, &'a [f32])>,
    pub dy: &'a [f32],
}

/// `y_i (+)= x W_i^T + scale_i down_i B_i^T`, and every `down_i`.
pub(super) fn forward(arena: &Arc<Arena>, x: &[f32], params: &[f32], layers: &mut [Forward<'_>], add: bool) {
    let Some(input) = layers.first().map(|layer| layer.weight.columns) else { return };
    let m = x.len() / input;
    for layer in &*layers {
        let [rows, columns] = [layer.weight.rows, layer.weight.columns];
        assert_eq!((x.len(), layer.y.len()), (m * columns, m * rows), "x is [{m}, in] and y [{m}, out]");
    }
    downs(arena, x, params, layers);
    let ups: Vec<Option<CpuBuffer>> =
        layers.iter().map(|layer| layer.pair.as_ref().map(|(shape, _)| packed_up(arena, params, shape))).collect();
    let mut sums = Vec::with_capacity(layers.len());
    for (layer, up) in layers.iter_mut().zip(&ups) {
        let Forward { weight, pair, y } = layer;
        let low = pair.as_ref().zip(up.as_ref()).map(|((shape, down), up)| Term {
            a: Left::rows(down, shape.r),
            b: Right::packed(up, shape.r),
            k: shape.r,
        });
        match weight.panels() {
            Some(panels) => {
                let whole = Term { a: Left::rows(x, input), b: Right::packed(panels, input), k: input };
                let shape = Shape { m, n: weight.rows, stride: weight.rows, add };
                sums.push(Sum { shape, terms: std::iter::once(whole).chain(low).collect(), c: y });
            }
            None => widened(arena, x, weight, low, y, add),
        }
    }
    gemm::all(&mut sums);
}

/// `down_i = x A_i^T` of every pair.
fn downs(arena: &Arc<Arena>, x: &[f32], params: &[f32], layers: &mut [Forward<'_>]) {
    let packed: Vec<Option<CpuBuffer>> =
        layers.iter().map(|layer| layer.pair.as_ref().map(|(shape, _)| packed_down(arena, params, shape))).collect();
    let mut sums = Vec::with_capacity(layers.len());
    for (layer, panels) in layers.iter_mut().zip(&packed) {
        if let (Some((shape, down)), Some(panels)) = (&mut layer.pair, panels) {
            let LoraShape { r, input, .. } = *shape;
            let m = x.len() / input;
            assert_eq!(down.len(), m * r, "down is [{m}, r]");
            let term = Term { a: Left::rows(x, input), b: Right::packed(panels, input), k: input };
            sums.push(Sum { shape: Shape { m, n: r, stride: r, add: false }, terms: vec![term], c: down });
        }
    }
    gemm::all(&mut sums);
}

/// A layer whose panels are not at hand in float32: some columns of y at a time.
fn widened(arena: &Arc<Arena>, x: &[f32], weight: &CpuWeight, low: Option<Term<'_>>, y: &mut [f32], add: bool) {
    let (k, m) = (weight.columns, x.len() / weight.columns);
    for rows in pieces(weight) {
        let mut panels = arena.take(packed_len(k, rows.len()));
        weight.widen(&rows, &mut panels);
        let whole = Term { a: Left::rows(x, k), b: Right::packed(&panels, k), k };
        let low = low.map(|term| Term {
            b: Right { data: &term.b.data[rows.start / PANEL * term.b.panel..], ..term.b },
            ..term
        });
        let shape = Shape { m, n: rows.len(), stride: weight.rows, add };
        let terms = std::iter::once(whole).chain(low).collect();
        gemm::all(&mut [Sum { shape, terms, c: &mut y[rows.start..] }]);
    }
}

/// Runs of a weight's rows, in whole panels, of at most [`UNPACKED_MAX`] floats each (but at least a panel).
fn pieces(weight: &CpuWeight) -> impl Iterator<Item = Range<usize>> + use<> {
    let (rows, columns) = (weight.rows, weight.columns);
    let step = (UNPACKED_MAX / columns / PANEL).max(1) * PANEL;
    (0..rows).step_by(step).map(move |from| from..rows.min(from + step))
}

/// `dx (+)= sum_i dy_i W_i + ddown_i A_i` where asked for, and the pairs' gradients added into `grads`.
///
/// `x` is needed where a layer has a pair.
pub(super) fn backward(
    arena: &Arc<Arena>,
    x: Option<&[f32]>,
    params: &[f32],
    layers: &[Backward<'_>],
    grads: &mut [f32],
    dx: Option<(&mut [f32], bool)>,
) {
    for layer in layers {
        assert!(layer.dy.len().is_multiple_of(layer.weight.rows), "dy is [T, out]");
    }
    let ddowns = ddowns(arena, params, layers);
    let mut pairs = Vec::new();
    for (layer, ddown) in layers.iter().zip(&ddowns) {
        if let (Some((shape, down)), Some(ddown)) = (&layer.pair, ddown) {
            let down = scaled_down(arena, shape, down);
            pairs.push(Pair { shape: *shape, dy: layer.dy, ddown, down });
        }
    }
    let input = x.zip(pairs.first()).map(|(x, pair)| Rows::new(arena, x, pair.shape.input));
    let sums = match &input {
        Some(input) => gradients(input, &pairs, grads),
        None => Vec::new(),
    };
    match dx {
        Some((dx, add)) => input_gradient(arena, params, layers, &pairs, dx, add, sums),
        None => {
            let mut sums = sums;
            gemm::all(&mut sums);
        }
    }
}

/// What a pair's gradients are made of.
struct Pair<'a> {
    shape: LoraShape,
    dy: &'a [f32],
    ddown: &'a [f32],
    /// `scale * down`, packed as `[T, r]`.
    down: CpuBuffer,
}

/// A row-major matrix as a right operand: as it lies where its columns are whole panels, else packed.
enum Rows<'a> {
    AsTheyLie(&'a [f32], usize),
    Packed(CpuBuffer, usize),
}

impl<'a> Rows<'a> {
    fn new(arena: &Arc<Arena>, x: &'a [f32], width: usize) -> Self {
        if width.is_multiple_of(PANEL) {
            return Self::AsTheyLie(x, width);
        }
        let rows = x.len() / width;
        let mut panels = arena.take(packed_len(rows, width));
        pack::straight(x, rows, width, &mut panels);
        Self::Packed(panels, rows)
    }

    fn right(&self) -> Right<'_> {
        match self {
            Self::AsTheyLie(x, width) => Right::rows(x, *width),
            Self::Packed(panels, rows) => Right::packed(panels, *rows),
        }
    }
}

/// `ddown_i = dy_i (s B_i)` of every pair.
fn ddowns(arena: &Arc<Arena>, params: &[f32], layers: &[Backward<'_>]) -> Vec<Option<CpuBuffer>> {
    let pairs = || layers.iter().filter_map(|layer| layer.pair.as_ref().map(|(shape, _)| (layer.dy, shape)));
    let packed: Vec<CpuBuffer> = pairs().map(|(_, shape)| packed_scaled_b(arena, params, shape)).collect();
    let mut ddowns: Vec<Option<CpuBuffer>> = layers
        .iter()
        .map(|layer| layer.pair.as_ref().map(|(shape, _)| arena.take(layer.dy.len() / layer.weight.rows * shape.r)))
        .collect();
    let outputs = ddowns.iter_mut().flatten();
    let mut sums: Vec<Sum<'_>> = pairs()
        .zip(&packed)
        .zip(outputs)
        .map(|(((dy, shape), panels), c)| {
            let LoraShape { r, output, .. } = *shape;
            let term = Term { a: Left::rows(dy, output), b: Right::packed(panels, output), k: output };
            Sum { shape: Shape { m: dy.len() / output, n: r, stride: r, add: false }, terms: vec![term], c }
        })
        .collect();
    gemm::all(&mut sums);
    drop(sums);
    ddowns
}

/// `dA += ddown^T x` and `dB += dy^T (s down)` of every pair, each into its place in `grads`.
fn gradients<'a>(x: &'a Rows<'_>, pairs: &'a [Pair<'_>], grads: &'a mut [f32]) -> Vec<Sum<'a>> {
    let mut places = Vec::with_capacity(2 * pairs.len());
    for Pair { shape, dy, ddown, down } in pairs {
        let LoraShape { r, input, output, .. } = *shape;
        let m = ddown.len() / r;
        let of_a = Term { a: Left::transposed(ddown, r), b: x.right(), k: m };
        places.push((shape.a, Shape { m: r, n: input, stride: input, add: true }, of_a));
        let of_b = Term { a: Left::transposed(dy, output), b: Right::packed(down, m), k: m };
        places.push((shape.b, Shape { m: output, n: r, stride: r, add: true }, of_b));
    }
    places.sort_by_key(|(at, ..)| *at);
    let (mut rest, mut passed) = (grads, 0);
    let mut sums = Vec::with_capacity(places.len());
    for (at, shape, term) in places {
        let (c, after) = rest.split_at_mut(at - passed).1.split_at_mut(shape.m * shape.n);
        (rest, passed) = (after, at + shape.m * shape.n);
        sums.push(Sum { shape, terms: vec![term], c });
    }
    sums
}

/// `dx (+)= sum_i dy_i W_i + ddown_i A_i`, the weights turned a few pieces at a time; `beside` is computed with the last.
fn input_gradient(
    arena: &Arc<Arena>,
    params: &[f32],
    layers: &[Backward<'_>],
    pairs: &[Pair<'_>],
    dx: &mut [f32],
    add: bool,
    mut beside: Vec<Sum<'_>>,
) {
    let Some(input) = layers.first().map(|layer| layer.weight.columns) else { return };
    let m = dx.len() / input;
    let shape = Shape { m, n: input, stride: input, add };
    let factors: Vec<Rows<'_>> = pairs.iter().map(|pair| Rows::new(arena, a(params, &pair.shape), input)).collect();
    let all: Vec<(&Backward<'_>, Range<usize>)> =
        layers.iter().flat_map(|layer| pieces(layer.weight).map(move |rows| (layer, rows))).collect();
    let mut rest = all.as_slice();
    while !rest.is_empty() {
        let (batch, after) = rest.split_at(fitting(rest, input));
        let turned: Vec<CpuBuffer> = batch
            .iter()
            .map(|(layer, rows)| {
                let mut panels = arena.take(packed_len(rows.len(), input));
                layer.weight.turn(rows, &mut panels);
                panels
            })
            .collect();
        let mut terms: Vec<Term<'_>> = batch
            .iter()
            .zip(&turned)
            .map(|((layer, rows), panels)| Term {
                a: Left::rows(&layer.dy[rows.start..], layer.weight.rows),
                b: Right::packed(panels, rows.len()),
                k: rows.len(),
            })
            .collect();
        let mut sums = Vec::new();
        if after.is_empty() {
            terms.extend(pairs.iter().zip(&factors).map(|(pair, a)| Term {
                a: Left::rows(pair.ddown, pair.shape.r),
                b: a.right(),
                k: pair.shape.r,
            }));
            sums = std::mem::take(&mut beside);
        }
        let shape = Shape { add: add || rest.len() < all.len(), ..shape };
        sums.insert(0, Sum { shape, terms, c: &mut *dx });
        gemm::all(&mut sums);
        rest = after;
    }
}

/// `grads += dy^T x` for `x: [T, input]`, `dy: [T, output]`.
pub(super) fn weight_gradient(
    arena: &Arc<Arena>,
    x: &[f32],
    dy: &[f32],
    [output, input]: [usize; 2],
    grads: &mut [f32],
) {
    let m = dy.len() / output;
    assert_eq!((x.len(), dy.len()), (m * input, m * output), "x is [{m}, in] and dy [{m}, out]");
    if m == 0 {
        return;
    }
    let x = Rows::new(arena, x, input);
    let term = Term { a: Left::transposed(dy, output), b: x.right(), k: m };
    let shape = Shape { m: output, n: input, stride: input, add: true };
    gemm::all(&mut [Sum { shape, terms: vec![term], c: grads }]);
}

/// `W + scale * B A`, in float32.
pub(super) fn merged(arena: &Arc<Arena>, weight: &CpuWeight, params: &[f32], pair: &LoraShape) -> CpuWeight {
    let (rows, columns) = (weight.rows, weight.columns);
    let mut values = vec![0.0; rows * columns];
    values.par_chunks_mut(columns).enumerate().for_each(|(row, out)| weight.read_row(row, out));
    let mut up = arena.take(rows * pair.r);
    up.copy_from_slice(b(params, pair));
    math::scale(&mut up, pair.scale);
    let down = Rows::new(arena, a(params, pair), columns);
    let term = Term { a: Left::rows(&up, pair.r), b: down.right(), k: pair.r };
    let shape = Shape { m: rows, n: columns, stride: columns, add: true };
    gemm::all(&mut [Sum { shape, terms: vec![term], c: &mut values }]);
    CpuWeight::new([rows, columns], &values, Precision::F32)
}

/// How many of the pieces are turned at a time: as many as fit, at least one.
fn fitting(pieces: &[(&Backward<'_>, Range<usize>)], input: usize) -> usize {
    let mut floats = 0;
    let fits = |(_, rows): &&(&Backward<'_>, Range<usize>)| {
        floats += rows.len() * input;
        floats <= UNPACKED_MAX
    };
    pieces.iter().take_while(fits).count().max(1)
}

/// A's transpose, `[input, r]`.
fn packed_down(arena: &Arc<Arena>, params: &[f32], shape: &LoraShape) -> CpuBuffer {
    let mut panels = arena.take(packed_len(shape.input, shape.r));
    pack::transposed(a(params, shape), shape.r, shape.input, &mut panels);
    panels
}

/// `scale * B^T`, `[r, output]`.
fn packed_up(arena: &Arc<Arena>, params: &[f32], shape: &LoraShape) -> CpuBuffer {
    let mut panels = arena.take(packed_len(shape.r, shape.output));
    pack::transposed(b(params, shape), shape.output, shape.r, &mut panels);
    math::scale(&mut panels, shape.scale);
    panels
}

/// `scale * B`, `[output, r]`.
fn packed_scaled_b(arena: &Arc<Arena>, params: &[f32], shape: &LoraShape) -> CpuBuffer {
    let mut panels = arena.take(packed_len(shape.output, shape.r));
    pack::straight(b(params, shape), shape.output, shape.r, &mut panels);
    math::scale(&mut panels, shape.scale);
    panels
}

/// `scale * down`, `[T, r]`.
fn scaled_down(arena: &Arc<Arena>, shape: &LoraShape, down: &[f32]) -> CpuBuffer {
    let rows = down.len() / shape.r;
    let mut panels = arena.take(packed_len(rows, shape.r));
    pack::straight(down, rows, shape.r, &mut panels);
    math::scale(&mut panels, shape.scale);
    panels
}

fn a<'a>(params: &'a [f32], shape: &LoraShape) -> &'a [f32] {
    &params[shape.a..][..shape.r * shape.input]
}

fn b<'a>(params: &'a [f32], shape: &LoraShape) -> &'a [f32] {
    &params[shape.b..][..shape.output * shape.r]
}
