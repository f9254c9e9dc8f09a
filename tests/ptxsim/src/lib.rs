//! Runs the PTX of insula's CUDA kernels on a CPU, one lane at a time as far as anyone can tell, and finds what a GPU
//! would hide: accesses out of bounds, races, missing barriers, memory read before it is written.
//!
//! ```text
//! text -> parse -> Module, Kernel (program: decoded instructions over register rows)
//!                     |
//! Launch + Memory -> exec: blocks one after another
//!                       warp: groups of lanes, the one with the lowest instruction first
//!                         alu, convert, tensor: registers to registers
//!                         access: lanes' addresses to bytes; shared and global keep who wrote and read what
//!                     -> Counts, or the first Fault
//! ```
//!
//! What this models and what it cannot show is in the crate's README.

mod arena;
mod counts;
mod exec;
mod fault;
mod launch;
mod module;
mod parse;
mod program;
mod types;

pub use arena::Arena;
pub use counts::{Counts, Traffic};
pub use exec::run;
pub use fault::{Access, Fault, FaultKind, MemorySpace, OutOfBounds};
pub use launch::{Checks, Copies, Launch, Memory, Params};
pub use module::{Kernel, Module, Param};
pub use parse::ParseError;
