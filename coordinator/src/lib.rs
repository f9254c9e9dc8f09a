//! The coordinator: decides what is computed, by whom and when, and keeps what came of it.
//!
//! In the order the data travels: [`corpus`] reads bytes into dialogues, [`shard`] deals them into files, [`schedule`]
//! grants leases and takes in reports, [`metric`] turns tallies into numbers, [`report`] into what a paper prints;
//! [`study`] sets many jobs side by side.
//! All of these are pure; [`shell`] is the only room that opens files, asks the time, or speaks to the network.

pub mod corpus;
pub mod metric;
pub mod report;
pub mod schedule;
pub mod shard;
pub mod shell;
pub mod study;
