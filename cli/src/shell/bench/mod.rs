//! `insula bench`: the clock and the machine around [`crate::bench`]'s figures.

pub mod engine;
mod gemm_peak;
