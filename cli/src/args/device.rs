//! What can be typed of the device that computes.

use clap::Args;
use insula_worker::device::DeviceChoice;

/// What computes here.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// What to compute on: auto (a GPU where there is one), cpu, cuda or cuda:N; several workers take a GPU each.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
}
