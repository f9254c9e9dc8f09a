//! The room that touches the world: files, SQLite, the clock, the network. Decides nothing.
//!
//! ```text
//! grpc services --Request--> owner --events--> store (SQLite, synced) --then--> board, stories, answers
//!      |                      '-- the one task that holds the state
//!      '-- reads: board (jobs as last committed), store (stories), artifacts, logs
//! ```

pub mod artifacts;
pub mod board;
pub mod clock;
pub mod corpora;
pub mod gauges;
pub mod grpc;
pub mod guard;
pub mod imports;
pub mod logs;
pub mod owner;
pub mod pruning;
pub mod secret;
pub mod server;
pub mod sharding;
pub mod store;
