//! The CUDA backend: kernels of our own, kept as PTX.
//!
//! ```text
//!   cu/*.cu  --kernels/regenerate-->  ptx/*.ptx  --ptx.rs-->  embedded text
//!   shapes   --launch.rs-->           grid, block, shared memory
//! ```

pub mod launch;
pub mod ptx;
