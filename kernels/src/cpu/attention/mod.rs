//! Forest attention: who sees whom, tile by tile.
//!
//! ```text
//!   keys          0..15 16..31 32..47 48..63 64..79          a tile of queries looks at runs of key panels:
//!   queries  ┌─────────────────────┬────────────┬──────┐     consecutive panels that are all seen by every
//!   48..71   │    whole run        │  skipped   │ part │     query (no mask), or by some (masked); a panel
//!            └─────────────────────┴────────────┴──────┘     none of them sees is not computed at all
//! ```
//! A tile's runs depend on its neighbours, but the keys a query does not see add exact zeros.

mod backward;
mod forward;

use std::ops::Range;
use std::sync::Arc;

pub use backward::scratch_per_token;
pub(super) use backward::{Saved, backward};
pub(super) use forward::forward;

use super::buffer::{Arena, CpuBuffer};
use super::pack;
use super::simd::gemm::{self, Left, PANEL, Right, Shape, Term};
use super::simd::math;

/// Queries per tile: two register tiles. More would see more keys that only their neighbours need.
const QUERIES: usize = 24;

/// Host view of [`crate::Sight`].
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub query: &'a [u32],
    pub start: &'a [u32],
    pub end: &'a [u32],
}

/// How much of a panel a tile of queries sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cover {
    Part,
    Whole,
}

/// Neighbouring key panels that a tile of queries sees.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    /// From a panel's first key on.
    keys: Range<usize>,
    cover: Cover,
    /// Column of the first key in the tile's scores.
    at: usize,
}

impl Run {
    /// Columns of the scores: the keys in whole panels.
    fn columns(&self) -> Range<usize> {
        self.at..self.at + self.keys.len().next_multiple_of(PANEL)
    }
}

/// Least and greatest start and end of a panel of keys.
struct Bounds {
    start: (u32, u32),
    end: (u32, u32),
}

/// The keys' panels, looked at once.
struct Panels<'a> {
    seen: Seen<'a>,
    bounds: Vec<Bounds>,
}

impl<'a> Panels<'a> {
    fn new(seen: Seen<'a>) -> Self {
        let panels = seen.start.chunks(PANEL).zip(seen.end.chunks(PANEL));
        let bounds = panels.map(|(start, end)| Bounds { start: extremes(start), end: extremes(end) }).collect();
        Self { seen, bounds }
    }

    /// The runs of `keys` (from a panel's first key on) that a tile of queries sees.
    fn runs(&self, queries: &Range<usize>, keys: &Range<usize>) -> Vec<Run> {
        let (first, last) = extremes(&self.seen.query[queries.clone()]);
        let mut runs: Vec<Run> = Vec::new();
        for panel in keys.start / PANEL..keys.end.div_ceil(PANEL) {
            let Bounds { start, end } = &self.bounds[panel];
            if start.0 > last || end.1 <= first {
                continue;
            }
            let cover = if start.1 <= first && last < end.0 { Cover::Whole } else { Cover::Part };
            let here = panel * PANEL..keys.end.min((panel + 1) * PANEL);
            match runs.last_mut() {
                Some(run) if run.keys.end == here.start && run.cover == cover => run.keys.end = here.end,
                previous => {
                    let at = previous.map_or(0, |run| run.columns().end);
                    runs.push(Run { keys: here, cover, at });
                }
            }
        }
        runs
    }

    /// Hides, in the scores of a tile, the keys each query does not see.
    fn mask(&self, queries: &Range<usize>, run: &Run, scores: &mut [f32], stride: usize) {
        let Seen { query, start, end } = self.seen;
        let ragged = run.columns().len() > run.keys.len();
        if run.cover == Cover::Whole && !ragged {
            return;
        }
        for (row, query) in scores.chunks_exact_mut(stride).zip(&query[queries.clone()]) {
            let (real, padding) = row[run.columns()].split_at_mut(run.keys.len());
            math::hide_keys(real, &start[run.keys.clone()], &end[run.keys.clone()], *query);
            padding.fill(f32::NEG_INFINITY);
        }
    }
}

fn extremes(x: &[u32]) -> (u32, u32) {
    x.iter().fold((u32::MAX, 0), |(low, high), v| (low.min(*v), high.max(*v)))
}

/// Tiles of the queries.
fn tiles(queries: usize) -> impl Iterator<Item = Range<usize>> {
    (0..queries).step_by(QUERIES).map(move |from| from..queries.min(from + QUERIES))
}

/// Columns of a tile's scores.
fn columns(runs: &[Run]) -> usize {
    runs.last().map_or(0, |run| run.columns().end)
}

/// One head of a matrix `[rows, heads * head_dim]`.
#[derive(Clone, Copy)]
struct Head<'a> {
    /// From the head's first value on.
    data: &'a [f32],
    /// Distance between rows.
    row: usize,
}

impl<'a> Head<'a> {
    fn new(x: &'a [f32], heads: usize, head: usize, head_dim: usize) -> Self {
        Self { data: &x[head * head_dim..], row: heads * head_dim }
    }

    fn left(&self, rows: &Range<usize>) -> Left<'a> {
        Left::rows(&self.data[rows.start * self.row..], self.row)
    }
}

/// The heads of a matrix turned: its rows as columns of a right operand.
struct Turned {
    heads: Vec<CpuBuffer>,
    head_dim: usize,
}

impl Turned {
    fn new(arena: &Arc<Arena>, x: &[f32], rows: usize, heads: usize, head_dim: usize) -> Self {
        let turn = |head| {
            let mut panels = arena.take(gemm::packed_len(head_dim, rows));
            let Head { data, row } = Head::new(x, heads, head, head_dim);
            pack::transposed_strided(data, row, rows, head_dim, &mut panels);
            panels
        };
        Self { heads: (0..heads).map(turn).collect(), head_dim }
    }

    /// `tile[.., run] = left rows^T` for every run; `left: [m, head_dim]`, `tile: [m, stride]`.
    fn scores(&self, head: usize, left: Left<'_>, m: usize, runs: &[Run], stride: usize, tile: &mut [f32]) {
        for run in runs {
            let panels = &self.heads[head][run.keys.start * self.head_dim..];
            let term = Term { a: left, b: Right::packed(panels, self.head_dim), k: self.head_dim };
            let shape = Shape { m, n: run.columns().len(), stride, add: false };
            gemm::serial(shape, &[term], &mut tile[run.at..]);
        }
    }
}

/// The heads of a matrix as they lie: its rows as depth of a right operand.
enum Upright<'a> {
    /// Heads of whole panels need no packing.
    AsTheyLie { x: &'a [f32], heads: usize, head_dim: usize },
    /// The others are packed one by one.
    Packed { panels: Vec<CpuBuffer>, rows: usize },
}

impl<'a> Upright<'a> {
    fn new(arena: &Arc<Arena>, x: &'a [f32], rows: usize, heads: usize, head_dim: usize) -> Self {
        if head_dim.is_multiple_of(PANEL) {
            return Self::AsTheyLie { x, heads, head_dim };
        }
        let pack = |head| {
            let mut panels = arena.take(gemm::packed_len(rows, head_dim));
            let Head { data, row } = Head::new(x, heads, head, head_dim);
            pack::straight_strided(data, row, rows, head_dim, &mut panels);
            panels
        };
        Self::Packed { panels: (0..heads).map(pack).collect(), rows }
    }

    /// One head's rows from `from` on.
    fn rows_from(&self, head: usize, from: usize) -> Right<'_> {
        match self {
            Self::AsTheyLie { x, heads, head_dim } => {
                let Head { data, row } = Head::new(x, *heads, head, *head_dim);
                Right::rows(&data[from * row..], row)
            }
            Self::Packed { panels, rows } => {
                Right { data: &panels[head][from * PANEL..], panel: rows * PANEL, row: PANEL }
            }
        }
    }

    /// The terms of `tile rows`: `tile: [m, stride]` times every run's rows.
    fn weighted<'b>(&'b self, head: usize, tile: &'b [f32], runs: &'b [Run], stride: usize) -> Vec<Term<'b>> {
        let term = |run: &Run| Term {
            a: Left::rows(&tile[run.at..], stride),
            b: self.rows_from(head, run.keys.start),
            k: run.keys.len(),
        };
        runs.iter().map(term).collect()
    }
}

fn scale(head_dim: usize) -> f32 {
    (head_dim as f32).sqrt().recip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_looks_at_runs_of_panels_and_skips_the_rest() {
        // A trunk of 40 rows, then branches of 20.
        let end: Vec<u32> = (0..100).map(|i| if i < 40 { 100 } else { 40 + (i - 40) / 20 * 20 + 20 }).collect();
        let order: Vec<u32> = (0..100).collect();
        let panels = Panels::new(Seen { query: &order, start: &order, end: &end });
        let run = |keys, cover, at| Run { keys, cover, at };
        let (part, whole) = (Cover::Part, Cover::Whole);
        assert_eq!(
            panels.runs(&(80..100), &(0..100)),
            [run(0..32, whole, 0), run(32..48, part, 32), run(80..100, part, 48)]
        );
        assert_eq!(panels.runs(&(0..24), &(0..100)), [run(0..32, part, 0)]);
        assert_eq!(panels.runs(&(80..100), &(48..80)), []);
    }
}
