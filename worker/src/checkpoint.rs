//! A training run's state at the end of an update, as files that can be trusted or refused.
//!
//! Two files: `state.safetensors` (what is trained, both AdamW moments) and the manifest, JSON, which names the first by digest
//! and is stored last. A checkpoint exists only when its manifest does. The manifest says which recipe, corpus and base
//! it belongs to; a run resumes only from its own.

use insula_proto::ids::Digest;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::base::safe;

/// The manifest's version; another one is refused.
const VERSION: u32 = 1;

/// What a run must share with a checkpoint to continue from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Digest of the job's settings.
    pub spec: Digest,
    /// Digest of the corpus.
    pub corpus: Digest,
    /// Digest of the base.
    pub base: Digest,
}

/// What has been computed so far; sums over all runs of the trial.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Finished updates.
    pub update: u32,
    /// Samples computed.
    pub samples: u64,
    /// Tokens of the separate sequences.
    pub tokens: u64,
    /// Tokens computed.
    pub tree_tokens: u64,
    /// Time spent in updates.
    pub seconds: f64,
    /// Mean loss of each update, nat per supervised token.
    pub losses: Vec<f32>,
}

/// The vectors of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// What is trained: the adapter's parameters, or all of the base's.
    pub params: Vec<f32>,
    /// AdamW's first moments.
    pub first: Vec<f32>,
    /// AdamW's second moments.
    pub second: Vec<f32>,
}

/// The file that makes a checkpoint exist.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    version: u32,
    /// Whose checkpoint it is.
    pub origin: Origin,
    /// How far it got.
    pub progress: Progress,
    /// Digest of `state.safetensors`.
    pub state: Digest,
}

/// Why bytes are not a checkpoint this run can continue from.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The manifest is not JSON of the expected form.
    #[error("checkpoint manifest: {0}")]
    Manifest(#[from] serde_json::Error),
    /// The manifest is of another version of insula.
    #[error("checkpoint manifest version {0}, expected {VERSION}")]
    Version(u32),
    /// The checkpoint belongs to another recipe, corpus or base.
    #[error("checkpoint is of {what} {got}, this run's is {expected}")]
    Foreign {
        /// Which of the three differs.
        what: &'static str,
        /// The checkpoint's.
        got: Digest,
        /// This run's.
        expected: Digest,
    },
    /// The state file does not hold what it should.
    #[error("checkpoint state: {0}")]
    State(String),
}

impl Manifest {
    /// The manifest of a state whose file has the digest `state`.
    pub fn new(origin: Origin, progress: Progress, state: Digest) -> Self {
        Self { version: VERSION, origin, progress, state }
    }

    /// The manifest's bytes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a manifest is plain data")
    }

    /// Reads a manifest and checks that it belongs to `origin`.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn decode(bytes: &[u8], origin: &Origin) -> Result<Self, CheckpointError> {
        let manifest: Manifest = serde_json::from_slice(bytes)?;
        if manifest.version != VERSION {
            return Err(CheckpointError::Version(manifest.version));
        }
        let pairs = [
            ("settings", &manifest.origin.spec, &origin.spec),
            ("corpus", &manifest.origin.corpus, &origin.corpus),
            ("base", &manifest.origin.base, &origin.base),
        ];
        for (what, got, expected) in pairs {
            if got != expected {
                return Err(CheckpointError::Foreign { what, got: got.clone(), expected: expected.clone() });
            }
        }
        Ok(manifest)
    }
}

/// The bytes of `state.safetensors`: what is trained, and AdamW's moments.
///
/// The first vector is called `adapter` there, whatever it is.
pub fn encode_state(params: &[f32], first: &[f32], second: &[f32]) -> Vec<u8> {
    let shape = [params.len()];
    let tensors = [("adapter", params), ("first", first), ("second", second)];
    let tensors = tensors.map(|(name, values)| (name, shape.as_slice(), values));
    safe::encode(&tensors, None).expect("three vectors of one length serialise")
}

impl State {
    /// Reads a state of `len` parameters.
    ///
    /// # Errors
    /// When a vector is missing, of another type, or of another length.
    pub fn decode(bytes: &[u8], len: usize) -> Result<Self, CheckpointError> {
        let wrong = |problem: String| CheckpointError::State(problem);
        let file = SafeTensors::deserialize(bytes).map_err(|e| wrong(e.to_string()))?;
        let read = |name: &str| -> Result<Vec<f32>, CheckpointError> {
            let tensor = file.tensor(name).map_err(|e| wrong(format!("{name}: {e}")))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != [len] {
                let (dtype, shape) = (tensor.dtype(), tensor.shape());
                return Err(wrong(format!("{name} is {dtype:?} {shape:?}, expected F32 [{len}]")));
            }
            Ok(tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        Ok(Self { params: read("adapter")?, first: read("first")?, second: read("second")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(base: &[u8]) -> Origin {
        Origin { spec: Digest::of(b"spec"), corpus: Digest::of(b"corpus"), base: Digest::of(base) }
    }

    #[test]
    fn a_checkpoint_reads_back_bit_for_bit() {
        let state = State { params: vec![0.1, -0.0, 3e-40], first: vec![1.0; 3], second: vec![f32::MIN_POSITIVE; 3] };
        let bytes = encode_state(&state.params, &state.first, &state.second);
        assert_eq!(State::decode(&bytes, 3).unwrap(), state);
        let progress = Progress { update: 3, losses: vec![0.1, 0.7, 1e-9], seconds: 1.25, ..Progress::default() };
        let manifest = Manifest::new(origin(b"base"), progress, Digest::of(b"state"));
        assert_eq!(Manifest::decode(&manifest.encode(), &origin(b"base")).unwrap(), manifest);
    }

    #[test]
    fn a_checkpoint_of_another_base_is_refused_by_name() {
        let manifest = Manifest::new(origin(b"base"), Progress::default(), Digest::of(b"state"));
        let error = Manifest::decode(&manifest.encode(), &origin(b"other")).unwrap_err().to_string();
        assert!(error.starts_with("checkpoint is of base sha256:"), "{error}");
    }

    #[test]
    fn damaged_files_are_refused() {
        let bytes = encode_state(&[1.0; 4], &[0.0; 4], &[0.0; 4]);
        assert!(State::decode(&bytes[..bytes.len() - 1], 4).is_err());
        assert!(State::decode(&bytes, 5).is_err());
        assert!(Manifest::decode(b"{", &origin(b"base")).is_err());
    }
}
