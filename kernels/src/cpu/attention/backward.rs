//! Attention backward: probabilities again from the saved log-sum-exp, every score computed once.
//!
//! A task is one head and one chunk of keys: it owns dk and dv of that head and chunk, and a partial dq. The partial
//! sums are added in the order of chunks and heads, so no sum depends on who computed what: no atomics, no dependence
//! on threads.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::{Head, Panels, Run, Seen, Turned, Upright, columns, scale, tiles};
use crate::backend::Attention;
use crate::cpu::buffer::{Arena, CpuBuffer};
use crate::cpu::simd::gemm::{self, Left, PANEL, Right, Shape, Term};
use crate::cpu::simd::math;

/// Keys in a chunk, and most chunks: enough tasks for many threads, while the partial dq stay a few times dq.
const CHUNK: usize = 1024;
const CHUNKS_MAX: usize = 4;

/// What the forward pass read and wrote, and the gradient coming back.
pub(in crate::cpu) struct Saved<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
    pub dout: &'a [f32],
}

/// `dq`, `dk` and `dv`, overwritten.
pub(in crate::cpu) fn backward(
    arena: &Arc<Arena>,
    shape: Attention,
    seen: Seen<'_>,
    saved: &Saved<'_>,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let Attention { heads, kv_heads, head_dim } = shape;
    let (queries, keys) = (seen.query.len(), seen.start.len());
    let width = heads * head_dim;
    assert_eq!((saved.q.len(), saved.dout.len(), dq.len()), (queries * width, queries * width, queries * width));
    assert_eq!((dk.len(), dv.len()), (saved.k.len(), saved.v.len()), "gradients have their operands' shapes");
    assert_eq!(saved.k.len(), keys * kv_heads * head_dim, "k holds {keys} rows");
    let pass = Pass {
        arena,
        shape,
        queries,
        panels: Panels::new(seen),
        along: along(arena, shape, saved),
        k: Turned::new(arena, saved.k, keys, kv_heads, head_dim),
        v: Turned::new(arena, saved.v, keys, kv_heads, head_dim),
        k_rows: Upright::new(arena, saved.k, keys, kv_heads, head_dim),
        q_rows: Upright::new(arena, saved.q, queries, heads, head_dim),
        dout_rows: Upright::new(arena, saved.dout, queries, heads, head_dim),
        saved,
    };
    let chunks: Vec<Range<usize>> = chunks(keys).collect();
    let tasks: Vec<(usize, &Range<usize>)> =
        (0..heads).flat_map(|head| chunks.iter().map(move |keys| (head, keys))).collect();
    let parts: Vec<Part> = tasks.into_par_iter().with_max_len(1).map(|(head, keys)| pass.part(head, keys)).collect();
    gather_queries(shape, &parts, chunks.len(), dq);
    for (c, keys) in chunks.iter().enumerate() {
        let of_heads = || parts.iter().skip(c).step_by(chunks.len());
        let rows = keys.start * kv_heads * head_dim..keys.end * kv_heads * head_dim;
        gather_keys(shape, of_heads().map(|part| &part.dk), &mut dk[rows.clone()]);
        gather_keys(shape, of_heads().map(|part| &part.dv), &mut dv[rows]);
    }
}

fn chunks(keys: usize) -> impl Iterator<Item = Range<usize>> {
    let step = CHUNK.max(keys.div_ceil(CHUNKS_MAX)).next_multiple_of(PANEL);
    (0..keys).step_by(step).map(move |from| from..keys.min(from + step))
}

/// Floats of scratch per token that the backward pass over so many tokens takes, which is more than forward does.
#[must_use]
pub fn scratch_per_token(heads: usize, kv_heads: usize, head_dim: usize, tokens: usize) -> usize {
    let parts = chunks(tokens).count() + 2;
    let turned = 2 * kv_heads;
    (heads * parts + turned) * head_dim + heads
}

/// `sum(dout * out)` per query and head, `[Q, heads]`.
fn along(arena: &Arc<Arena>, shape: Attention, saved: &Saved<'_>) -> CpuBuffer {
    let d = shape.head_dim;
    let mut along = arena.take(saved.dout.len() / d);
    let rows = saved.dout.par_chunks(d * shape.heads).zip(saved.out.par_chunks(d * shape.heads));
    along.par_chunks_mut(shape.heads).zip(rows).for_each(|(along, (dout, out))| {
        for ((along, dout), out) in along.iter_mut().zip(dout.chunks_exact(d)).zip(out.chunks_exact(d)) {
            *along = math::dot(dout, out);
        }
    });
    along
}

/// What every task reads.
struct Pass<'a> {
    arena: &'a Arc<Arena>,
    shape: Attention,
    queries: usize,
    panels: Panels<'a>,
    along: CpuBuffer,
    k: Turned,
    v: Turned,
    k_rows: Upright<'a>,
    q_rows: Upright<'a>,
    dout_rows: Upright<'a>,
    saved: &'a Saved<'a>,
}

/// One task's sums: `dq: [Q, head_dim]`, `dk, dv: [keys of the chunk, head_dim]`.
struct Part {
    dq: CpuBuffer,
    dk: CpuBuffer,
    dv: CpuBuffer,
}

impl Pass<'_> {
    fn part(&self, head: usize, keys: &Range<usize>) -> Part {
        let d = self.shape.head_dim;
        let take = |rows: usize| self.arena.take(rows * d);
        let mut part = Part { dq: take(self.queries), dk: take(keys.len()), dv: take(keys.len()) };
        part.dk.fill(0.0);
        part.dv.fill(0.0);
        for queries in tiles(self.queries) {
            let runs = self.panels.runs(&queries, keys);
            let dq = &mut part.dq[queries.start * d..queries.end * d];
            if runs.is_empty() {
                dq.fill(0.0);
                continue;
            }
            let tile = self.tile(head, &queries, &runs);
            let group = self.group(head);
            let shape = Shape { m: queries.len(), n: d, stride: d, add: false };
            gemm::serial(shape, &self.k_rows.weighted(group, &tile.ds, &runs, tile.stride), dq);
            for run in &runs {
                let rows = (run.keys.start - keys.start) * d..(run.keys.end - keys.start) * d;
                tile.add_turned(
                    &tile.p,
                    run,
                    self.dout_rows.rows_from(head, queries.start),
                    d,
                    &mut part.dv[rows.clone()],
                );
                tile.add_turned(&tile.ds, run, self.q_rows.rows_from(head, queries.start), d, &mut part.dk[rows]);
            }
        }
        part
    }

    /// Probabilities of one head's tile, and the gradient of its scores.
    fn tile(&self, head: usize, queries: &Range<usize>, runs: &[Run]) -> Tile {
        let Attention { heads, head_dim, .. } = self.shape;
        let (m, stride, group) = (queries.len(), columns(runs), self.group(head));
        let mut tile = Tile { p: self.arena.take(m * stride), ds: self.arena.take(m * stride), m, stride };
        let q = Head::new(self.saved.q, heads, head, head_dim).left(queries);
        let dout = Head::new(self.saved.dout, heads, head, head_dim).left(queries);
        self.k.scores(group, q, m, runs, stride, &mut tile.p);
        self.v.scores(group, dout, m, runs, stride, &mut tile.ds);
        runs.iter().for_each(|run| self.panels.mask(queries, run, &mut tile.p, stride));
        let rows = tile.p.chunks_exact_mut(stride).zip(tile.ds.chunks_exact_mut(stride));
        for (query, (p, ds)) in queries.clone().zip(rows) {
            let at = query * heads + head;
            math::softmax_back(p, ds, self.saved.lse[at], self.along[at], scale(head_dim));
        }
        tile
    }

    fn group(&self, head: usize) -> usize {
        head * self.shape.kv_heads / self.shape.heads
    }
}

/// One head's queries against the keys they see, both `[m, stride]`.
struct Tile {
    p: CpuBuffer,
    ds: CpuBuffer,
    m: usize,
    stride: usize,
}

impl Tile {
    /// `out += x[.., run]^T rows`; `rows: [m, head_dim]`, `out: [keys of the run, head_dim]`.
    fn add_turned(&self, x: &[f32], run: &Run, rows: Right<'_>, head_dim: usize, out: &mut [f32]) {
        let term = Term { a: Left::transposed(&x[run.at..], self.stride), b: rows, k: self.m };
        let shape = Shape { m: run.keys.len(), n: head_dim, stride: head_dim, add: true };
        gemm::serial(shape, &[term], out);
    }
}

/// `dq[q, head] = sum over chunks`, in order.
fn gather_queries(shape: Attention, parts: &[Part], chunks: usize, dq: &mut [f32]) {
    let (heads, d) = (shape.heads, shape.head_dim);
    dq.par_chunks_mut(heads * d).enumerate().for_each(|(query, row)| {
        for (out, parts) in row.chunks_exact_mut(d).zip(parts.chunks_exact(chunks)) {
            out.copy_from_slice(&parts[0].dq[query * d..][..d]);
            parts[1..].iter().for_each(|part| math::add(out, &part.dq[query * d..][..d]));
        }
    });
}

/// `out[key, group] = sum over the group's heads`, in order; `parts` come by head.
fn gather_keys<'a>(shape: Attention, parts: impl Iterator<Item = &'a CpuBuffer>, out: &mut [f32]) {
    let Attention { heads, kv_heads, head_dim: d } = shape;
    let parts: Vec<&CpuBuffer> = parts.collect();
    out.par_chunks_mut(kv_heads * d).enumerate().for_each(|(key, row)| {
        for (out, parts) in row.chunks_exact_mut(d).zip(parts.chunks_exact(heads / kv_heads)) {
            out.copy_from_slice(&parts[0][key * d..][..d]);
            parts[1..].iter().for_each(|part| math::add(out, &part[key * d..][..d]));
        }
    });
}
