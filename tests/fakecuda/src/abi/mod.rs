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

/// Whether the stand-in has an entry point of this name.
pub fn is_entry_point(symbol: &str) -> bool {
    let files = [device::NAMES, event::NAMES, launch::NAMES, lt::NAMES, memory::NAMES, nccl::NAMES, stream::NAMES];
    files.iter().any(|names| names.contains(&symbol))
}
