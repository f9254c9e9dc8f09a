//! Trains and evaluates: what one worker process does with a lease.
//!
//! In the order the data travels: [`base`] opens the frozen model; [`prompt`] renders a dialogue's turn and
//! [`tokenize`] makes it token ids; [`tokens`] is their form in the fleet's cache; [`encoder`] makes utterances vectors,
//! [`embeddings`] is their form in that cache and [`retrieve`] finds demonstrations by them; [`plan`] says which samples
//! form which update and slot; [`forest`] merges a slot's sequences into a tree; [`model`] runs forward and backward over
//! it and [`engine`] is its front, on whatever [`device`] the worker has; [`weights`] say how much each sample counts, [`reduce`] adds slot gradients;
//! [`sync`] makes one sum of several members' parts; [`optimizer`] steps the [`adapter`], or all [`parameters`] of the base; [`train`] and [`checkpoint`] are the run, [`ledger`] says who computed what of it;
//! [`evaluate`], with [`trie`] and [`answer`], turns dialogues into tallies, [`external`] does with a model that is asked
//! elsewhere, and [`predict`] labels dialogues that have no gold; [`peft`] is the adapter's form on disk, [`tuned`] that of a base whose weights were all trained. [`seed`] is the only
//! source of chance, [`memory`] says beforehand what a job will take. All of that is plain functions and states; [`shell`] talks to the coordinator.

pub mod adapter;
pub mod answer;
pub mod base;
pub mod checkpoint;
pub mod device;
pub mod embeddings;
pub mod encoder;
pub mod engine;
pub mod evaluate;
pub mod external;
pub mod forest;
pub mod ledger;
pub mod memory;
pub mod model;
pub mod optimizer;
pub mod parameters;
pub mod peft;
pub mod plan;
pub mod predict;
pub mod prompt;
pub mod reduce;
pub mod retrieve;
pub mod seed;
pub mod shell;
pub mod sync;
pub mod tokenize;
pub mod tokens;
pub mod train;
pub mod trie;
pub mod tuned;
pub mod weights;
