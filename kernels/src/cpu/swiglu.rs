//! SwiGLU: `silu(gate) * up`.

use rayon::prelude::*;

use super::simd::math;

/// Elements per task: three streams of 32 KB.
const CHUNK: usize = 8192;

/// `out = silu(gate) * up`.
pub(super) fn forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert_eq!((gate.len(), up.len()), (out.len(), out.len()), "gate, up and out have one shape");
    let chunks = out.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
    chunks.for_each(|((out, gate), up)| math::swiglu(gate, up, out));
}

/// `dout` becomes gate's gradient, `dup` up's.
pub(super) fn backward(gate: &[f32], up: &[f32], dout: &mut [f32], dup: &mut [f32]) {
    assert_eq!((gate.len(), up.len(), dup.len()), (dout.len(), dout.len(), dout.len()), "all four have one shape");
    let chunks = dout.par_chunks_mut(CHUNK).zip(dup.par_chunks_mut(CHUNK));
    let chunks = chunks.zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
    chunks.for_each(|(((dout, dup), gate), up)| math::swiglu_back(gate, up, dout, dup));
}
