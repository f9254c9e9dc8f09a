//! What benchmarks compute from what was measured, and how they show it. The clock is read under [`crate::shell`].

pub mod engine;
pub mod fleet;
pub mod given;
