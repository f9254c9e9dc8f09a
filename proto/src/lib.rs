//! The shared language of insula: what coordinator, worker and command line must agree on.
//!
//! In the order the data travels: [`ids`] name things, [`corpus`] is what is learnt from, [`job`] is what a person
//! asks for ([`endpoint`]: of a model that is asked elsewhere; [`settings`] layers it from defaults, file, environment and command line), [`tally`] is what evaluation
//! counts. [`access`] is what they show one another. [`v1`] is the generated wire form and [`convert`] the only place that maps between the two.

pub mod access;
pub mod convert;
pub mod corpus;
pub mod endpoint;
pub mod ids;
pub mod job;
pub mod settings;
pub mod shard;
pub mod tally;

/// The generated messages and services of `insula.v1`.
#[expect(missing_docs, clippy::all, reason = "generated from schema/, which carries the documentation")]
pub mod v1 {
    tonic::include_proto!("insula.v1");
}

/// The compiled schema, for gRPC reflection.
pub const SCHEMA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/insula.bin"));

/// The compiled schema of the service that labels dialogues, which only `insula serve` offers.
pub const PREDICT_SCHEMA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/predict.bin"));

/// The version that coordinator and workers compare when they meet.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
