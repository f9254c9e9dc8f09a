//! The arithmetic of a transformer's forward and backward pass, one operation at a time.
//!
//! [`Backend`] names the operations and the buffers they work on; [`Cpu`] is the first-class implementation, and the
//! meaning of every operation is what `cpu/<operation>.rs` computes. A model is written once over the trait, and never
//! sees where a buffer lives.
//!
//! Invariants every backend keeps:
//! - results do not depend on the number of threads, bit for bit;
//! - a row of a matrix product does not depend on which other rows are in the batch beyond rounding (on the CPU: at
//!   all);
//! - no operation reads what [`Backend::alloc`] left in a buffer unless it says "adds to".

mod backend;
pub mod cpu;
pub mod cuda;
mod error;
pub mod timed;

pub use backend::{
    AdamW, Attention, Backend, Direction, LoraShape, Precision, Projection, ProjectionBack, Readout, Sight, Targets,
    Wanted, Write,
};
pub use cpu::Cpu;
pub use error::KernelError;
