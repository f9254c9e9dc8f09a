//! Trains and evaluates: what one worker process does with a lease.
//!
//! In the order the data travels: [`base`] opens the frozen model; [`prompt`] renders a dialogue's turn and
//! [`tokenize`] makes it token ids; [`tokens`] is their form in the fleet's cache; [`plan`] says which samples form which update and slot; [`forest`] merges a slot's
//! sequences into a tree; [`model`] runs forward and backward over it and [`engine`] is its front; [`reduce`] adds slot
//! gradients; [`optimizer`] steps the [`adapter`]; [`train`] and [`checkpoint`] are the run; [`evaluate`], with
//! [`trie`] and [`answer`], turns dialogues into tallies, [`external`] does with a model that is asked elsewhere, and
//! [`predict`] labels dialogues that have no gold; [`peft`] is the adapter's form on disk. [`seed`] is the only
//! source of chance, [`memory`] says beforehand what a job will take. All of that is plain functions and states; [`shell`] talks to the coordinator.

pub mod adapter;
pub mod answer;
pub mod base;
pub mod checkpoint;
pub mod engine;
pub mod evaluate;
pub mod external;
pub mod forest;
pub mod memory;
pub mod model;
pub mod optimizer;
pub mod peft;
pub mod plan;
pub mod predict;
pub mod prompt;
pub mod reduce;
pub mod seed;
pub mod shell;
pub mod tokenize;
pub mod tokens;
pub mod train;
pub mod trie;
