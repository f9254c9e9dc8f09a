//! The base a worker holds in memory, ready to compute.

use std::path::PathBuf;

use insula_kernels::{Cuda, Precision};
use insula_proto::{
    ids::Digest,
    job::{self, JobSpec},
    v1::{FailureClass, Lease},
};

use super::{failure::Unfinished, link::Link, work::WorkerConfig};
use crate::{
    base::{Base, ModelConfig, fetch},
    device::Device,
    engine::{Compute, EngineError, precision_of},
    memory,
    parameters::Parameters,
    tokenize::Tokenizer,
    tuned,
};

/// A base with its tokenizer and the engine that computes with it.
pub struct Loaded {
    /// Where it was asked for.
    pub source: String,
    /// What it is.
    pub digest: Digest,
    /// How its weights are held.
    pub precision: job::Precision,
    /// Its dimensions.
    pub config: ModelConfig,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Weights and kernels.
    pub engine: Box<dyn Compute>,
    /// The GPU it computes on, if it is one.
    pub gpu: Option<Cuda>,
    path: PathBuf,
    held: Held,
}

/// Whose weights the engine holds.
#[derive(Debug, PartialEq, Eq)]
enum Held {
    /// The base's.
    Base,
    /// Those of the artifact of this digest.
    Tuned(String),
    /// Some that were being trained, or a mixture.
    Other,
}

impl Loaded {
    /// The base a lease needs: the one at hand where it is the same, or else read anew.
    pub fn for_lease(
        at_hand: Option<Box<Loaded>>,
        config: &WorkerConfig,
        device: &Device,
        lease: &Lease,
        link: &Link,
    ) -> Result<Box<Loaded>, Unfinished> {
        let spec = spec_of(lease)?;
        let cache = config.cache.as_ref().ok_or_else(|| {
            Unfinished::bad_data("no folder to keep bases in: set INSULA_CACHE, XDG_CACHE_HOME or HOME")
        })?;
        let expected = spec.base.digest.as_ref().map(Digest::as_str);
        let resolved = fetch::resolve(&spec.base.source, expected, cache).map_err(Unfinished::bad_data)?;
        let digest: Digest = resolved.digest.parse().map_err(Unfinished::bug)?;
        if !lease.base_digest.is_empty() && lease.base_digest != digest.as_str() {
            let source = &spec.base.source;
            return Err(Unfinished::bad_data(format!(
                "base {source} is {digest} on this worker, but the job was begun with {}",
                lease.base_digest
            )));
        }
        if let Some(at_hand) = at_hand
            && at_hand.digest == digest
            && at_hand.precision == spec.base.precision
        {
            return Ok(at_hand);
        }
        // The base before is gone from memory before the next one is read.
        let base = Base::open(&resolved.path).map_err(Unfinished::bad_data)?;
        let precision = precision_of(spec.base.precision);
        let tokenizer = base.tokenizer().map_err(Unfinished::bad_data)?;
        if let Some(gpu) = device.gpu() {
            has_room(gpu, &base.config, precision)?;
        }
        let engine = device.load(&base.config, &base, precision)?;
        link.log(&format!("base {} ({digest}) in memory", resolved.source));
        let (source, precision) = (resolved.source, spec.base.precision);
        let (config, path) = (base.config.clone(), resolved.path);
        let gpu = device.gpu().cloned();
        Ok(Box::new(Loaded { source, digest, precision, config, tokenizer, engine, gpu, path, held: Held::Base }))
    }

    /// The base's weights as they are in its files, to be trained; from here on the engine's are the training's.
    pub fn weights_to_train(&mut self) -> Result<Parameters, Unfinished> {
        self.held = Held::Other;
        Parameters::read(&self.config, &self.base()?).map_err(Unfinished::bad_data)
    }

    /// The weights of this artifact, a tuned base's `model.safetensors`, to be trained further.
    pub fn tuned_to_train(&mut self, digest: &str, link: &Link) -> Result<Parameters, Unfinished> {
        self.held = Held::Other;
        tuned::from_bytes(&link.get(digest)?, &self.config).map_err(Unfinished::bug)
    }

    /// Sees to it that the engine holds the base's weights.
    pub fn hold_base(&mut self) -> Result<(), Unfinished> {
        if self.held != Held::Base {
            let base = self.base()?;
            self.held = Held::Other;
            self.engine.set_weights(&base)?;
            self.held = Held::Base;
        }
        Ok(())
    }

    /// Sees to it that the engine holds the weights of this artifact, a tuned base's `model.safetensors`.
    pub fn hold_tuned(&mut self, digest: &str, link: &Link) -> Result<(), Unfinished> {
        if matches!(&self.held, Held::Tuned(held) if held == digest) {
            return Ok(());
        }
        let bytes = link.get(digest)?;
        let parameters = tuned::from_bytes(&bytes, &self.config).map_err(Unfinished::bug)?;
        drop(bytes); // as large as the base
        self.held = Held::Other;
        self.engine.set_weights(&parameters)?;
        self.held = Held::Tuned(digest.to_owned());
        Ok(())
    }

    /// The base's files, opened again; refused where they are no longer what they were.
    fn base(&self) -> Result<Base, Unfinished> {
        let base = Base::open(&self.path).map_err(Unfinished::bad_data)?;
        if base.digest == self.digest.as_str() {
            return Ok(base);
        }
        let (path, found) = (self.path.display(), &base.digest);
        Err(Unfinished::bad_data(format!("base {path} is {found} now, but the job was begun with {}", self.digest)))
    }
}

/// Refuses a base that the GPU has no room for before it is read.
fn has_room(gpu: &Cuda, config: &ModelConfig, precision: Precision) -> Result<(), Unfinished> {
    let (wanted, facts) = (memory::gpu::weights(config, precision), gpu.facts().map_err(EngineError::from)?);
    if wanted <= facts.free as u64 {
        return Ok(());
    }
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    let (name, wanted, free) = (facts.name, gigabytes(wanted), gigabytes(facts.free as u64));
    let message =
        format!("{name}: the base takes {wanted:.2} GB, {free:.2} GB are free: hold it in fewer bits (base.precision)");
    Err(Unfinished::Failed { class: FailureClass::OutOfMemory, message })
}

/// The lease's job, parsed.
pub fn spec_of(lease: &Lease) -> Result<JobSpec, Unfinished> {
    insula_proto::convert::job_spec(lease.spec.clone().unwrap_or_default()).map_err(|violations| {
        let text = violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect::<Vec<_>>();
        Unfinished::bad_data(text.join("; "))
    })
}
