//! Rows by index: embedding, gather, scatter.

use rayon::prelude::*;

use super::simd::math;
use super::weight::CpuWeight;

/// Elements per copying task: 128 KB.
const CHUNK: usize = 32 * 1024;

/// `to = from`.
pub(super) fn copy(from: &[f32], to: &mut [f32]) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| to.copy_from_slice(from));
}

/// `out[t] = table[ids[t]]`.
pub(super) fn embed(table: &CpuWeight, ids: &[u32], out: &mut [f32]) {
    assert_eq!(out.len(), ids.len() * table.columns, "out has a row per id");
    out.par_chunks_mut(table.columns).zip(ids).for_each(|(out, id)| table.read_row(*id as usize, out));
}

/// `out[i] = x[rows[i]]`.
pub(super) fn gather(x: &[f32], rows: &[u32], width: usize, out: &mut [f32]) {
    assert_eq!(out.len(), rows.len() * width, "out has a row per index");
    for (out, row) in out.chunks_exact_mut(width).zip(rows) {
        out.copy_from_slice(&x[*row as usize * width..][..width]);
    }
}

/// `out[rows[i]] += x[i]`, in order.
pub(super) fn scatter_add(x: &[f32], rows: &[u32], width: usize, out: &mut [f32]) {
    assert_eq!(x.len(), rows.len() * width, "x has a row per index");
    for (x, row) in x.chunks_exact(width).zip(rows) {
        math::add(&mut out[*row as usize * width..][..width], x);
    }
}
