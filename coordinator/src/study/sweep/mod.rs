//! From one job to many: a sweep's file, and the trials it asks for.
//!
//! ```toml
//! name = "windows"
//! job = "../jobs/meld.toml"     # relative to this file
//! seeds = [1, 2, 3]             # a dimension of its own: runs of one arm differ in nothing else
//! match = "epochs"              # or "updates": see `equal_updates`
//! [set]                         # the same for every trial
//! train.epochs = 2
//! [grid]                        # every combination
//! data.window = [1, 5, 12, 20]
//! [random]                      # so many draws, the same ones at every point of the grid
//! trials = 4
//! seed = 7
//! [random.keys]
//! train.lr = { log = [1e-5, 1e-3] }      # also uniform = [a, b], integer = [a, b], choice = [...]
//! [halving]                     # trials pause after these epochs, and one in eta of them goes on
//! rungs = [1, 3]
//! eta = 3
//! replicate = [2, 3]            # what reaches its end is run again with these seeds
//! [median]                      # trials below the median of the others are stopped, after this epoch
//! after = 1
//! ```
//!
//! Expansion is pure: the same sweep gives the same trials in the same order, whatever the order of the file's lines.
//! Keys are taken by the alphabet, values in the file's order; the last key varies fastest, and seeds faster still.

mod draw;
mod expand;
mod file;

use std::path::PathBuf;

pub use draw::Range;
pub use expand::{Trial, arms, equal_updates, expand};
use insula_proto::settings::SettingsError;

use super::halving::Early;

/// Trials of one sweep, at most: chosen so that a slip of the pen is not queued for a year.
pub const TRIALS_MAX: u64 = 10_000;

/// A sweep's file, its keys known to be settings and no key given twice.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// What people call it; its trials' names begin with it.
    pub name: String,
    /// The job file, relative to the sweep's file.
    pub job: PathBuf,
    /// What is made equal between trials.
    pub matching: Match,
    /// Seeds; empty: the job's own, and no dimension.
    pub seeds: Vec<u64>,
    /// Key and value that all trials share.
    pub set: Vec<(String, toml::Value)>,
    /// Key and values, of which every combination is tried.
    pub grid: Vec<(String, Vec<toml::Value>)>,
    /// Draws at every point of the grid.
    pub random: Option<Random>,
    /// Which trials are given up early.
    pub early: Early,
}

/// Random search.
#[derive(Debug, Clone, PartialEq)]
pub struct Random {
    /// How many draws; no two are the same.
    pub trials: u32,
    /// Their source of chance. Each key has a stream of its own, so that another key beside it changes no draw.
    pub seed: u64,
    /// Key and what it is drawn from.
    pub keys: Vec<(String, Range)>,
}

/// What is made equal between trials of different shares or mixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Match {
    /// Passes over the data: a smaller share takes fewer updates.
    #[default]
    Epochs,
    /// Updates: a smaller share is passed over more often.
    Updates,
}

/// A sweep that cannot be expanded.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Text that is no sweep.
    #[error("{}: {problem}", .file.display())]
    File {
        /// The sweep's file.
        file: PathBuf,
        /// What stands there, and what was expected.
        problem: String,
    },
    /// A key or value that no setting takes; says which part of the sweep it stands in.
    #[error("{}: {problem}", .file.display())]
    Setting {
        /// The sweep's file.
        file: PathBuf,
        /// Why the settings refuse it.
        problem: SettingsError,
    },
    /// Settings that are refused together with the job's file.
    #[error("trial '{trial}': {problem}")]
    Trial {
        /// The trial's name.
        trial: String,
        /// Why the settings refuse it.
        problem: SettingsError,
    },
    /// More trials than a sweep may have.
    #[error("sweep '{sweep}' asks for {count} trials: expected at most {TRIALS_MAX}")]
    TooMany {
        /// The sweep's name.
        sweep: String,
        /// How many it asks for.
        count: u64,
    },
    /// Fewer different draws than trials.
    #[error(
        "sweep '{sweep}': [random] asks for {trials} trials, but only {found} different ones were drawn: ask for fewer, or try all in [grid]"
    )]
    TooFewDraws {
        /// The sweep's name.
        sweep: String,
        /// How many it asks for.
        trials: u32,
        /// How many were found.
        found: usize,
    },
    /// Two trials that would compute the same.
    #[error("trials '{first}' and '{second}' are the same job: expected every value of a key to be another setting")]
    Duplicate {
        /// The earlier one's name.
        first: String,
        /// The later one's name.
        second: String,
    },
}

#[cfg(test)]
mod tests;
