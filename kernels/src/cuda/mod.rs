//! The CUDA backend: kernels of our own, kept as PTX, and cuBLASLt for the products.
//!
//! ```text
//!   cu/*.cu  --kernels/regenerate-->  ptx/*.ptx  --ptx.rs-->  embedded text
//!   shapes   --launch.rs-->           grid, block, shared memory  --device.rs-->  the driver
//! ```
//!
//! Weights and activations are bfloat16, sums float32; the residual stream, norms' inputs, gradients of what is trained
//! and logits are float32. One stream issues everything in order, nothing is added with atomics and every product's
//! algorithm is chosen by its form alone, so a slot's gradient has the same bits on every device of a kind.
//! Errors of what was issued surface where values are read.

mod backend;
mod blas;
pub mod device;
pub mod launch;
pub mod measure;
mod memory;
pub mod nccl;
mod project;
pub mod ptx;
mod weight;

use std::sync::Arc;

pub use device::Facts;
pub use memory::{CudaBuffer, CudaIndices};
pub use weight::CudaWeight;

use crate::error::KernelError;
use blas::Blas;
use cudarc::{cublaslt, driver};
use device::Device;
use memory::Pool;

/// One GPU.
#[derive(Debug, Clone)]
pub struct Cuda {
    device: Arc<Device>,
    pool: Arc<Pool>,
    blas: Arc<Blas>,
}

impl Cuda {
    /// Opens the GPU of this number.
    ///
    /// # Errors
    /// [`KernelError::Absent`] when there is none, it is too old, or the driver's or cuBLASLt's library is missing;
    /// [`KernelError::NoRoom`] when it has no room for a workspace.
    pub fn open(ordinal: usize) -> Result<Self, KernelError> {
        let device = Arc::new(Device::open(ordinal)?);
        let pool = Arc::new(Pool::new(Arc::clone(&device)));
        let blas = Arc::new(Blas::new(Arc::clone(&device), &pool)?);
        Ok(Self { device, pool, blas })
    }

    /// How many GPUs this machine has: 0 where there is no driver.
    ///
    /// # Errors
    /// When there is a driver that does not start.
    pub fn count() -> Result<usize, KernelError> {
        device::count()
    }

    /// Whether the driver's library and cuBLASLt's are on this machine.
    #[must_use]
    pub fn has_libraries() -> bool {
        device::has_library(driver::sys::is_culib_present) && device::has_library(cublaslt::sys::is_culib_present)
    }

    /// What computes the same bits: GPUs of one name, under one driver (which compiles the kernels) and one cuBLASLt
    /// (which chooses how products are computed).
    ///
    /// # Errors
    /// When the device refuses.
    pub fn kind(&self) -> Result<String, KernelError> {
        let (Facts { name, driver, .. }, blas) = (self.device.facts()?, self.blas.version());
        Ok(format!("{name}, driver {}.{}, cuBLASLt {blas}", driver / 1000, driver % 1000 / 10))
    }

    /// What a GPU is, without anything but its driver.
    ///
    /// # Errors
    /// When there is none of this number.
    pub fn facts_of(ordinal: usize) -> Result<Facts, KernelError> {
        Device::open(ordinal)?.facts()
    }

    /// What it is, and how much of its memory is free, buffers that wait to be used again included.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn facts(&self) -> Result<Facts, KernelError> {
        let facts = self.device.facts()?;
        Ok(Facts { free: facts.free + self.pool.idle_bytes(), ..facts })
    }

    /// The GPU's own number, the same in every process and on no other GPU.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn uuid(&self) -> Result<[u8; 16], KernelError> {
        self.device.uuid()
    }

    /// How many buffers were taken from the driver so far: in a loop over slots of a known size, none.
    #[must_use]
    pub fn fresh_buffers(&self) -> u64 {
        self.pool.fresh_buffers()
    }
}
