//! `insula bench`: the clock and the machine around what is measured.

pub mod data;
pub mod engine;
pub mod fleet;
mod gemm_peak;
