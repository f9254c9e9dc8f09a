//! What can go wrong on a device.

/// Trouble of the device itself; a wrong shape is a broken invariant and panics instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The pool of compute threads could not be started.
    #[error("compute threads: {threads} asked for, none started: {reason}")]
    Threads {
        /// How many threads were asked for.
        threads: usize,
        /// What the operating system said.
        reason: String,
    },
    /// The device refused an operation.
    #[error("{operation}: refused by the device: {reason}")]
    Device {
        /// The operation refused.
        operation: &'static str,
        /// What the device said.
        reason: String,
    },
}
