//! A stand-in for `libcuda.so.1`, `libcublasLt.so.12` and `libnccl.so`: one shared library that runs the CUDA workers
//! unchanged on a machine without a GPU. What it models and what it cannot show: `README.md`.
//!
//! ```text
//! abi/        the C entry points: pointers in, status numbers out
//!   call          planned faults (faults), the log (journal), status numbers (codes)
//! context     which device a thread works with; handles (table)
//! device      memory, streams, health
//!   memory        allocations at addresses of their own
//!   stream        a thread that does work in order; event, capture; health: the failure that sticks
//! kernel      PTX through insula_ptxsim
//! lt, gemm    matrix products
//! nccl/       collectives over loopback TCP
//! install     for tests: the folder of links
//! ```

pub mod abi;
pub mod capture;
pub mod codes;
pub mod context;
pub mod device;
pub mod event;
pub mod faults;
pub mod gemm;
pub mod health;
mod install;
pub mod journal;
pub mod kernel;
pub mod lt;
pub mod memory;
pub mod nccl;
pub mod settings;
pub mod stream;
pub mod table;

pub use install::{install, library};
