//! A sentence encoder small enough to embed a corpus in no time: the one the worker's own tests are made with.

#![allow(
    dead_code,
    missing_docs,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "each test uses its part; tests touch the world"
)]

use std::path::{Path, PathBuf};

pub use bert::{Bert, Settings};

#[path = "../../worker/tests/common/bert.rs"]
mod bert;
#[path = "../../worker/tests/common/made.rs"]
mod made;

/// What the worker's modules expect beside them.
fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Writes a random BERT of two layers as a Hugging Face folder.
pub fn tiny_encoder(folder: &Path) -> PathBuf {
    let folder = folder.join("encoder");
    std::fs::create_dir_all(&folder).unwrap();
    Bert::random(7).write(&folder, &Settings::default());
    folder
}
