//! What a launch needs: sizes, parameter bytes, a global memory, and which checks are on.

use bytemuck::Pod;

use crate::fault::OutOfBounds;
use crate::module::Kernel;

/// One launch of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// What to run.
    pub kernel: &'a Kernel,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z; at most 1024 together.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory, after the kernel's own.
    pub dynamic_shared: u32,
    /// The parameters' bytes, laid out as [`Kernel::params`] says; exactly [`Kernel::param_bytes`] of them.
    pub params: &'a [u8],
    /// What is looked for.
    pub checks: Checks,
}

/// When the data of a cp.async lands in shared memory. Hardware may do either, so a right kernel works under both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Copies {
    /// At once.
    Eager,
    /// Not before the wait: what is read too early is what was there before.
    #[default]
    Lazy,
}

/// Which checks run. Bounds, alignment, barriers and convergence are always checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// Races in shared and in global memory, and use of shared memory that a cp.async is still filling.
    pub races: bool,
    /// When cp.async data lands.
    pub copies: Copies,
    /// Reads of shared and local memory that nothing has written.
    pub uninitialised: bool,
}

impl Default for Checks {
    fn default() -> Checks {
        Checks { races: true, copies: Copies::Lazy, uninitialised: true }
    }
}

impl Checks {
    /// No optional check, eager copies: the quickest.
    pub const OFF: Checks = Checks { races: false, copies: Copies::Eager, uninitialised: false };
}

/// Global memory. Lanes with neighbouring addresses are served by one call.
pub trait Memory {
    /// Fills `into` from `address` on.
    ///
    /// # Errors
    /// When the bytes are not all within one live allocation.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), OutOfBounds>;

    /// Writes `from` to `address` on.
    ///
    /// # Errors
    /// When the bytes are not all within one live allocation; nothing is written then.
    fn write(&self, address: u64, from: &[u8]) -> Result<(), OutOfBounds>;
}

/// Builds parameter bytes: each value aligned to its size, as PTX lays out scalar parameters.
///
/// ```
/// let params = insula_ptxsim::Params::new().push(0x7000_0000_0000_u64).push(3_u32).push(0.5_f32);
/// assert_eq!(params.bytes().len(), 16);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Params {
    bytes: Vec<u8>,
}

impl Params {
    /// No parameters yet.
    pub fn new() -> Params {
        Params::default()
    }

    /// Appends one scalar: a pointer as `u64`, any number as itself.
    #[must_use]
    pub fn push<T: Pod>(mut self, value: T) -> Params {
        let size = size_of::<T>();
        self.bytes.resize(self.bytes.len().next_multiple_of(size.max(1)), 0);
        self.bytes.extend_from_slice(bytemuck::bytes_of(&value));
        self
    }

    /// The bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
