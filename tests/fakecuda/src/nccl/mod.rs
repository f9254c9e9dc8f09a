//! NCCL over loopback TCP.
//!
//! ```text
//! id.rs      what rank 0 gives to the others: the address of the meeting point
//! mesh.rs    every rank connected with every other; reads and writes that end at an abort
//! reduce.rs  sums, products, extremes and means of element types; pure
//! comm.rs    a communicator: how it comes about, and its collectives on a stream
//! group.rs   calls between ncclGroupStart and ncclGroupEnd
//! ```

pub mod comm;
pub mod group;
pub mod id;
pub mod mesh;
pub mod reduce;
