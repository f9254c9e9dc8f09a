//! Every CUDA kernel, as it is shipped, run by an interpreter of PTX against the CPU's meaning of its operation.
//!
//! No GPU is needed: `insula-ptxsim` runs the text that the CUDA backend loads, with the launches of `cuda::launch`, and
//! stops at an access out of bounds, a race, a missing barrier, memory that nobody wrote. Inputs a kernel takes in
//! bfloat16 are rounded before both sides see them, so what differs is rounding inside and at the end; each tolerance
//! says where it comes from. `planted` breaks the kernels on purpose and demands that each break is seen.

mod attention;
mod device;
mod elementwise;
mod forest;
mod logits;
mod norm;
mod planted;
mod rows;
mod traffic;
