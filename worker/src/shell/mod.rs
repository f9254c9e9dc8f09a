//! The worker's shell: talks to the coordinator, asks the clock, holds the base; decides nothing about training.
//!
//! ```text
//!  register -> lease --heartbeats--------------------------------> report -> lease ...
//!                 `-> [blocking thread] base, shards, training or evaluation, durable reports
//! ```
//!
//! One lease at a time. The computing thread learns through [`link::Link`] when its lease is gone, when the job was
//! cancelled, or when this process is asked to stop; it looks between updates and between forests. A training's lease is a seat in a gang:
//! [`updates`] computes with the others, [`sync`] reaches them.

pub mod channel;
mod demonstrations;
mod embedding;
mod evaluating;
mod external;
pub mod failure;
pub mod link;
mod loaded;
pub mod predictor;
mod process;
mod shards;
pub mod sync;
mod tokens;
mod training;
pub mod updates;
pub mod work;

pub use channel::{Access, AccessError, Channel, ConnectError, Trouble};
pub use process::peak_rss_bytes;
pub use work::{WorkerConfig, WorkerError, work};
