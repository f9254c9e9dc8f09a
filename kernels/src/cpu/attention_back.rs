//! Forest attention, backward: probabilities again from the saved log-sum-exp, in two passes.
//!
//! The first owns tiles of queries and sums dq over keys; the second owns tiles of keys and sums dk and dv over the
//! group's queries. Scores are computed twice, and in return every sum has one owner and one order: no atomics, no
//! dependence on threads.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::attention::{Cover, Heads, KEYS, QUERIES, Seen, Ways, mask, visible_keys};
use super::buffer::Arena;
use super::simd::gemm::Left;
use super::simd::math;
use crate::backend::Attention;

/// What the forward pass read and wrote, and the gradient coming back.
pub(super) struct Saved<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
    pub dout: &'a [f32],
}

/// `dq`, `dk` and `dv`, overwritten.
pub(super) fn backward(
    arena: &Arc<Arena>,
    shape: Attention,
    seen: Seen<'_>,
    saved: &Saved<'_>,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let (queries, keys) = (seen.query.len(), seen.start.len());
    let width = shape.heads * shape.head_dim;
    assert_eq!((saved.q.len(), saved.dout.len(), dq.len()), (queries * width, queries * width, queries * width));
    assert_eq!((dk.len(), dv.len()), (saved.k.len(), saved.v.len()), "gradients have their operands' shapes");
    assert_eq!(saved.k.len(), keys * shape.kv_heads * shape.head_dim, "k holds {keys} rows");
    let along = gradient_along_output(shape, saved);
    query_pass(arena, shape, seen, saved, &along, dq);
    key_pass(arena, shape, seen, saved, &along, dk, dv);
}

/// `sum(dout * out)` per query and head, `[Q, heads]`.
fn gradient_along_output(shape: Attention, saved: &Saved<'_>) -> Vec<f32> {
    let d = shape.head_dim;
    saved.dout.par_chunks(d).zip(saved.out.par_chunks(d)).map(|(dout, out)| math::dot(dout, out)).collect()
}

fn query_pass(arena: &Arc<Arena>, shape: Attention, seen: Seen<'_>, saved: &Saved<'_>, along: &[f32], dq: &mut [f32]) {
    let (heads, d, queries, keys) = (shape.heads, shape.head_dim, seen.query.len(), seen.start.len());
    let k = Heads::pack(arena, saved.k, keys, shape.kv_heads, d, Ways::Both);
    let v = Heads::pack(arena, saved.v, keys, shape.kv_heads, d, Ways::Across);
    dq.par_chunks_mut(QUERIES * heads * d).enumerate().for_each(|(tile, dq)| {
        let rows = tile * QUERIES..queries.min((tile + 1) * QUERIES);
        let visible = visible_keys(&seen, &rows);
        let mut work = Work::new(rows.len(), KEYS, d);
        for head in 0..heads {
            let (group, first) = (head * shape.kv_heads / heads, rows.start * heads * d + head * d);
            work.first.fill(0.0);
            for (keys, cover) in &visible {
                k.scores(group, keys, Left::rows(&saved.q[first..], heads * d), rows.len(), KEYS, &mut work.scores);
                v.scores(group, keys, Left::rows(&saved.dout[first..], heads * d), rows.len(), KEYS, &mut work.dp);
                if *cover == Cover::Part {
                    mask(&mut work.scores, &seen, rows.clone(), keys);
                }
                for i in 0..rows.len() {
                    let at = (rows.start + i) * heads + head;
                    let (scores, dp) = work.row(i, KEYS, keys.len());
                    math::softmax_back_row(scores, dp, saved.lse[at], along[at], scale(d));
                }
                k.weighted_sum(group, keys, &work.dp, rows.len(), KEYS, &mut work.first);
            }
            write_head(&work.first, head, heads, d, dq);
        }
    });
}

fn key_pass(
    arena: &Arc<Arena>,
    shape: Attention,
    seen: Seen<'_>,
    saved: &Saved<'_>,
    along: &[f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let (heads, kv_heads, d) = (shape.heads, shape.kv_heads, shape.head_dim);
    let (queries, keys) = (seen.query.len(), seen.start.len());
    let q = Heads::pack(arena, saved.q, queries, heads, d, Ways::Both);
    let dout = Heads::pack(arena, saved.dout, queries, heads, d, Ways::Both);
    let (lse, along) = (by_head(saved.lse, heads), by_head(along, heads));
    let tiles = dk.par_chunks_mut(KEYS * kv_heads * d).zip(dv.par_chunks_mut(KEYS * kv_heads * d)).enumerate();
    tiles.for_each(|(tile, (dk, dv))| {
        let rows = tile * KEYS..keys.min((tile + 1) * KEYS);
        let watching = watching_queries(&seen, &rows);
        let mut work = Work::new(rows.len(), QUERIES, d);
        for group in 0..kv_heads {
            let first = rows.start * kv_heads * d + group * d;
            work.first.fill(0.0);
            work.second.fill(0.0);
            for head in group * heads / kv_heads..(group + 1) * heads / kv_heads {
                for (tile, cover) in &watching {
                    let n = rows.len();
                    q.scores(head, tile, Left::rows(&saved.k[first..], kv_heads * d), n, QUERIES, &mut work.scores);
                    dout.scores(head, tile, Left::rows(&saved.v[first..], kv_heads * d), n, QUERIES, &mut work.dp);
                    let at = head * queries + tile.start..head * queries + tile.end;
                    for (i, key) in rows.clone().enumerate() {
                        let (scores, dp) = work.row(i, QUERIES, tile.len());
                        if *cover == Cover::Part {
                            math::hide_queries(scores, &seen.query[tile.clone()], seen.start[key], seen.end[key]);
                        }
                        math::softmax_back_column(scores, dp, &lse[at.clone()], &along[at.clone()], scale(d));
                    }
                    dout.weighted_sum(head, tile, &work.scores, n, QUERIES, &mut work.second);
                    q.weighted_sum(head, tile, &work.dp, n, QUERIES, &mut work.first);
                }
            }
            write_head(&work.first, group, kv_heads, d, dk);
            write_head(&work.second, group, kv_heads, d, dv);
        }
    });
}

/// The query tiles of which some query sees some of the keys.
fn watching_queries(seen: &Seen<'_>, keys: &Range<usize>) -> Vec<(Range<usize>, Cover)> {
    let queries = seen.query.len();
    (0..queries.div_ceil(QUERIES))
        .map(|t| t * QUERIES..queries.min((t + 1) * QUERIES))
        .map(|tile| (tile.clone(), seen.cover(tile, keys.clone())))
        .filter(|(_, cover)| *cover != Cover::None)
        .collect()
}

/// Scratch of one task.
struct Work {
    scores: Vec<f32>,
    dp: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Work {
    fn new(rows: usize, columns: usize, d: usize) -> Self {
        let tile = vec![0.0; rows * columns];
        Self { scores: tile.clone(), dp: tile, first: vec![0.0; rows * d], second: vec![0.0; rows * d] }
    }

    fn row(&mut self, i: usize, stride: usize, len: usize) -> (&mut [f32], &mut [f32]) {
        (&mut self.scores[i * stride..][..len], &mut self.dp[i * stride..][..len])
    }
}

fn scale(head_dim: usize) -> f32 {
    (head_dim as f32).sqrt().recip()
}

/// `[rows, heads]` to `[heads, rows]`.
fn by_head(x: &[f32], heads: usize) -> Vec<f32> {
    (0..heads).flat_map(|h| x.iter().skip(h).step_by(heads).copied()).collect()
}

fn write_head(sums: &[f32], head: usize, heads: usize, d: usize, out: &mut [f32]) {
    for (i, row) in sums.chunks_exact(d).enumerate() {
        out[(i * heads + head) * d..][..d].copy_from_slice(row);
    }
}
