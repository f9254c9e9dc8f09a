//! What can be wrong with a base, said so that a person can mend it.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A base that cannot be fetched, opened or read.
#[derive(Debug, Error)]
pub enum BaseError {
    /// The operating system refused a file or folder.
    #[error("{path}: {cause}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The path is neither a `.gguf` file nor a Hugging Face folder.
    #[error("{path}: not a base: expected a .gguf file, or a folder with config.json and model.safetensors")]
    NotABase {
        /// The path as given.
        path: PathBuf,
    },
    /// The file contradicts its own format: truncated, damaged or hostile.
    #[error("{path}: {what}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The thing, its value and the expectation.
        what: String,
    },
    /// The file is sound, but asks for something that insula does not compute.
    #[error("{path}: {what}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The thing, its value and what is supported.
        what: String,
    },
    /// The base has no tensor of this name.
    #[error("base has no tensor {name}")]
    MissingTensor {
        /// The tensor's Hugging Face name.
        name: String,
    },
    /// The tensor is there, but not in the size that was asked for.
    #[error("tensor {name} has {found} elements, expected {expected}")]
    TensorSize {
        /// The tensor's Hugging Face name.
        name: String,
        /// Elements in the file.
        found: usize,
        /// Elements the caller has room for.
        expected: usize,
    },
    /// The base's bytes are not the ones that were asked for.
    #[error("{base}: digest {found} does not match the expected {expected}")]
    Digest {
        /// Path or source of the base.
        base: String,
        /// Digest of what is there.
        found: String,
        /// Digest that was asked for.
        expected: String,
    },
    /// A base source that names nothing that can be fetched.
    #[error("base source {given:?}: {why}")]
    Source {
        /// The source as given.
        given: String,
        /// Why it can't be used, and what can.
        why: String,
    },
    /// Fetching failed.
    #[error("fetching {given}: {why}")]
    Fetch {
        /// The source as given.
        given: String,
        /// What happened, with the last words of the tool that failed.
        why: String,
    },
}

impl BaseError {
    pub(crate) fn io(path: &Path, cause: io::Error) -> BaseError {
        BaseError::Io { path: path.to_path_buf(), cause }
    }

    pub(crate) fn malformed(path: &Path, what: impl Into<String>) -> BaseError {
        BaseError::Malformed { path: path.to_path_buf(), what: what.into() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>) -> BaseError {
        BaseError::Unsupported { path: path.to_path_buf(), what: what.into() }
    }
}

/// A parser's complaint, before it is known which file it is about.
#[derive(Debug, PartialEq, Error)]
pub(crate) enum Refusal {
    /// The bytes contradict their own format.
    #[error("{0}")]
    Malformed(String),
    /// The bytes are sound, but ask for something that insula does not compute.
    #[error("{0}")]
    Unsupported(String),
}

impl Refusal {
    pub(crate) fn malformed<T>(what: impl Into<String>) -> Result<T, Refusal> {
        Err(Refusal::Malformed(what.into()))
    }

    pub(crate) fn unsupported<T>(what: impl Into<String>) -> Result<T, Refusal> {
        Err(Refusal::Unsupported(what.into()))
    }

    pub(crate) fn about(self, path: &Path) -> BaseError {
        match self {
            Refusal::Malformed(what) => BaseError::malformed(path, what),
            Refusal::Unsupported(what) => BaseError::unsupported(path, what),
        }
    }
}
