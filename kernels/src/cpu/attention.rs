//! Forest attention, forward: flash-style tiles with an online softmax.
//!
//! ```text
//!   keys     0.......63 64......127 128.....191
//!   queries  ┌─────────┬───────────┬───────────┐
//!   0..47    │ partial │  skipped  │  skipped  │   a tile no query of which sees a key is skipped,
//!   48..95   │  whole  │  partial  │  skipped  │   one where each sees all needs no mask
//!            └─────────┴───────────┴───────────┘
//! ```
//! A query's own tile limits depend on its neighbours, but the keys it does not see add exact zeros.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::buffer::{Arena, CpuBuffer};
use super::pack;
use super::simd::gemm::{self, Left, PANEL, Product, Right};
use super::simd::math;
use crate::backend::Attention;

/// Queries per tile: eight register tiles.
pub(super) const QUERIES: usize = 48;
/// Keys per tile: four panels.
pub(super) const KEYS: usize = 64;

/// Host view of [`crate::Sight`].
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub query: &'a [u32],
    pub start: &'a [u32],
    pub end: &'a [u32],
}

/// How much of a tile is visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cover {
    None,
    Part,
    Whole,
}

impl Seen<'_> {
    pub(super) fn cover(&self, queries: Range<usize>, keys: Range<usize>) -> Cover {
        let bounds = |x: &[u32]| x.iter().fold((u32::MAX, 0), |(low, high), v| (low.min(*v), high.max(*v)));
        let (first_query, last_query) = bounds(&self.query[queries]);
        let (first_start, last_start) = bounds(&self.start[keys.clone()]);
        let (first_end, last_end) = bounds(&self.end[keys]);
        if first_start > last_query || last_end <= first_query {
            Cover::None
        } else if last_start <= first_query && last_query < first_end {
            Cover::Whole
        } else {
            Cover::Part
        }
    }
}

/// One operand's heads packed both ways a product may need them.
pub(super) struct Heads {
    /// `rows` as columns: panels `[head_dim][16 rows]`.
    across: Vec<CpuBuffer>,
    /// `rows` as depth: panels `[rows][16 of head_dim]`.
    along: Vec<CpuBuffer>,
    rows: usize,
    head_dim: usize,
}

impl Heads {
    pub(super) fn pack(arena: &Arc<Arena>, x: &[f32], rows: usize, heads: usize, d: usize, ways: Ways) -> Self {
        let width = heads * d;
        let mut packed = Self { across: Vec::new(), along: Vec::new(), rows, head_dim: d };
        for h in 0..heads {
            if ways != Ways::Along {
                let mut across = arena.take(gemm::packed_len(d, rows));
                pack::transposed_strided(&x[h * d..], width, rows, d, &mut across);
                packed.across.push(across);
            }
            if ways != Ways::Across {
                let mut along = arena.take(gemm::packed_len(rows, d));
                pack::straight_strided(&x[h * d..], width, rows, d, &mut along);
                packed.along.push(along);
            }
        }
        packed
    }

    /// `tile = left rows^T`: `left: [m, head_dim]` against a range of rows; rows of the tile are `stride` apart.
    pub(super) fn scores(
        &self,
        head: usize,
        rows: &Range<usize>,
        left: Left<'_>,
        m: usize,
        stride: usize,
        tile: &mut [f32],
    ) {
        let panels = &self.across[head][rows.start / PANEL * PANEL * self.head_dim..];
        let product = Product { m, k: self.head_dim, n: rows.len(), stride, add: false };
        gemm::serial(product, left, Right::packed(panels, self.head_dim), tile);
    }

    /// `sums += tile rows`: `tile: [m, rows]` times a range of rows; `sums: [m, head_dim]`.
    pub(super) fn weighted_sum(
        &self,
        head: usize,
        rows: &Range<usize>,
        tile: &[f32],
        m: usize,
        stride: usize,
        sums: &mut [f32],
    ) {
        let panels = Right { data: &self.along[head][rows.start * PANEL..], panel: self.rows * PANEL };
        let product = Product { m, k: rows.len(), n: self.head_dim, stride: self.head_dim, add: true };
        gemm::serial(product, Left::rows(tile, stride), panels, sums);
    }
}

/// Which packings of [`Heads`] are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ways {
    Across,
    Along,
    Both,
}

/// `out` and `lse` from `q`, `k`, `v`.
#[expect(clippy::too_many_arguments, reason = "one per operand")]
pub(super) fn forward(
    arena: &Arc<Arena>,
    shape: Attention,
    seen: Seen<'_>,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let (heads, d) = (shape.heads, shape.head_dim);
    let (queries, keys) = (seen.query.len(), seen.start.len());
    assert_eq!((q.len(), out.len(), lse.len()), (queries * heads * d, queries * heads * d, queries * heads));
    assert!(k.len() >= keys * shape.kv_heads * d && k.len() == v.len(), "k and v hold {keys} rows");
    let k = Heads::pack(arena, k, keys, shape.kv_heads, d, Ways::Across);
    let v = Heads::pack(arena, v, keys, shape.kv_heads, d, Ways::Along);
    let tiles = out.par_chunks_mut(QUERIES * heads * d).zip(lse.par_chunks_mut(QUERIES * heads)).enumerate();
    tiles.for_each(|(tile, (out, lse))| {
        let rows = tile * QUERIES..queries.min((tile + 1) * QUERIES);
        let visible = visible_keys(&seen, &rows);
        let mut online = Online::new(rows.len(), d);
        for head in 0..heads {
            online.reset();
            for (keys, cover) in &visible {
                let left = Left::rows(&q[rows.start * heads * d + head * d..], heads * d);
                k.scores(head * shape.kv_heads / heads, keys, left, rows.len(), KEYS, &mut online.scores);
                if *cover == Cover::Part {
                    mask(&mut online.scores, &seen, rows.clone(), keys);
                }
                online.absorb(keys.len(), (d as f32).sqrt().recip());
                v.weighted_sum(head * shape.kv_heads / heads, keys, &online.scores, rows.len(), KEYS, &mut online.sums);
            }
            online.write(head, heads, out, lse);
        }
    });
}

/// The key tiles that some of the queries see.
pub(super) fn visible_keys(seen: &Seen<'_>, queries: &Range<usize>) -> Vec<(Range<usize>, Cover)> {
    let keys = seen.start.len();
    (0..keys.div_ceil(KEYS))
        .map(|t| t * KEYS..keys.min((t + 1) * KEYS))
        .map(|keys| (keys.clone(), seen.cover(queries.clone(), keys)))
        .filter(|(_, cover)| *cover != Cover::None)
        .collect()
}

/// Hides, in a tile of scores, the keys each query does not see.
pub(super) fn mask(scores: &mut [f32], seen: &Seen<'_>, queries: Range<usize>, keys: &Range<usize>) {
    for (row, query) in scores.chunks_exact_mut(KEYS).zip(&seen.query[queries]) {
        math::hide_keys(&mut row[..keys.len()], &seen.start[keys.clone()], &seen.end[keys.clone()], *query);
    }
}

/// Softmax over key tiles seen one after the other: running greatest score, sum and weighted sum per query.
struct Online {
    scores: Vec<f32>,
    sums: Vec<f32>,
    most: Vec<f32>,
    total: Vec<f32>,
    head_dim: usize,
}

impl Online {
    fn new(rows: usize, head_dim: usize) -> Self {
        Self {
            scores: vec![0.0; rows * KEYS],
            sums: vec![0.0; rows * head_dim],
            most: vec![0.0; rows],
            total: vec![0.0; rows],
            head_dim,
        }
    }

    fn reset(&mut self) {
        self.sums.fill(0.0);
        self.most.fill(f32::NEG_INFINITY);
        self.total.fill(0.0);
    }

    /// Turns the tile's scores into weights under the new maximum, rescaling what was summed under the old one.
    fn absorb(&mut self, keys: usize, scale: f32) {
        let sums = self.sums.chunks_exact_mut(self.head_dim);
        let rows = self.scores.chunks_exact_mut(KEYS).zip(sums).zip(self.most.iter_mut().zip(&mut self.total));
        for ((scores, sums), (most, total)) in rows {
            let scores = &mut scores[..keys];
            let greatest = most.max(scale * math::max(scores));
            if greatest == f32::NEG_INFINITY {
                scores.fill(0.0);
                continue;
            }
            if greatest > *most {
                let shrink = (*most - greatest).exp();
                math::scale(sums, shrink);
                *total *= shrink;
                *most = greatest;
            }
            *total += math::exp_sum(scores, scale, greatest);
        }
    }

    fn write(&self, head: usize, heads: usize, out: &mut [f32], lse: &mut [f32]) {
        let d = self.head_dim;
        for (i, sums) in self.sums.chunks_exact(d).enumerate() {
            let inverse = 1.0 / self.total[i];
            for (out, sum) in out[(i * heads + head) * d..][..d].iter_mut().zip(sums) {
                *out = sum * inverse;
            }
            lse[i * heads + head] = self.most[i] + self.total[i].ln();
        }
    }
}
