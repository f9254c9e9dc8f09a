//! The C entry points. Each is a few lines over the safe modules; every pointer of a C caller goes through
//! `pointers.rs`, the only file of this crate with `unsafe` blocks.

pub mod call;
pub mod device;
pub mod event;
pub mod launch;
pub mod lt;
pub mod memory;
pub mod nccl;
pub mod pointers;
pub mod stream;
