//! What can go wrong on a device.

/// Trouble of the device itself; a wrong shape is a broken invariant and panics instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// No kernel takes the shape.
    #[error(transparent)]
    Shape(#[from] crate::cuda::launch::LaunchError),
    /// The pool of compute threads could not be started.
    #[error("compute threads: {threads} asked for, none started: {reason}")]
    Threads {
        /// How many threads were asked for.
        threads: usize,
        /// What the operating system said.
        reason: String,
    },
    /// The device has no room.
    #[error("{device}: {wanted} bytes wanted, {free} free of {total}")]
    NoRoom {
        /// Which device.
        device: String,
        /// Bytes asked for at once.
        wanted: usize,
        /// Bytes free when it was refused.
        free: usize,
        /// Bytes the device has.
        total: usize,
    },
    /// There is no such device, or what drives it is missing.
    #[error("{device}: {reason}")]
    Absent {
        /// Which device was asked for.
        device: String,
        /// What is missing.
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
