//! Attention forward: a tile's scores over all the keys it sees, one softmax, one sum of values.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::{Head, Panels, QUERIES, Seen, Turned, Upright, columns, scale};
use crate::backend::Attention;
use crate::cpu::buffer::Arena;
use crate::cpu::simd::gemm::{self, Shape};
use crate::cpu::simd::math;

/// `out` and `lse` from `q`, `k`, `v`.
#[expect(clippy::too_many_arguments, reason = "one per operand")]
pub(in crate::cpu) fn forward(
    arena: &Arc<Arena>,
    shape: Attention,
    seen: Seen<'_>,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let Attention { heads, kv_heads, head_dim } = shape;
    let (queries, keys) = (seen.query.len(), seen.start.len());
    let width = heads * head_dim;
    assert_eq!((q.len(), out.len(), lse.len()), (queries * width, queries * width, queries * heads));
    assert!(k.len() >= keys * kv_heads * head_dim && k.len() == v.len(), "k and v hold {keys} rows");
    let pass = Pass {
        arena,
        shape,
        panels: Panels::new(seen),
        keys,
        q,
        k: Turned::new(arena, k, keys, kv_heads, head_dim),
        v: Upright::new(arena, v, keys, kv_heads, head_dim),
    };
    let tiles = out.par_chunks_mut(QUERIES * width).zip(lse.par_chunks_mut(QUERIES * heads)).enumerate();
    tiles.for_each(|(tile, (out, lse))| pass.tile(tile * QUERIES..queries.min((tile + 1) * QUERIES), out, lse));
}

/// What every tile reads.
struct Pass<'a> {
    arena: &'a Arc<Arena>,
    shape: Attention,
    panels: Panels<'a>,
    keys: usize,
    q: &'a [f32],
    k: Turned,
    v: Upright<'a>,
}

impl Pass<'_> {
    /// All heads of some queries.
    fn tile(&self, queries: Range<usize>, out: &mut [f32], lse: &mut [f32]) {
        let Attention { heads, kv_heads, head_dim } = self.shape;
        let runs = self.panels.runs(&queries, &(0..self.keys));
        let (m, stride) = (queries.len(), columns(&runs));
        let mut scores = self.arena.take(m * stride);
        for head in 0..heads {
            let group = head * kv_heads / heads;
            let left = Head::new(self.q, heads, head, head_dim).left(&queries);
            self.k.scores(group, left, m, &runs, stride, &mut scores);
            runs.iter().for_each(|run| self.panels.mask(&queries, run, &mut scores, stride));
            let mut inverse = [0.0; QUERIES];
            for (i, row) in scores.chunks_exact_mut(stride).enumerate() {
                let most = scale(head_dim) * math::max(row);
                let total = math::exp_sum(row, scale(head_dim), most);
                inverse[i] = total.recip();
                lse[i * heads + head] = most + total.ln();
            }
            let sum = Shape { m, n: head_dim, stride: heads * head_dim, add: false };
            let out = &mut out[head * head_dim..];
            gemm::serial(sum, &self.v.weighted(group, &scores, &runs, stride), out);
            for (row, inverse) in out.chunks_mut(heads * head_dim).zip(inverse) {
                math::scale(&mut row[..head_dim], inverse);
            }
        }
    }
}
