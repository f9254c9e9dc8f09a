//! The base a worker holds in memory, ready to compute.

use insula_kernels::cpu::Cpu;
use insula_proto::{
    ids::Digest,
    job::{self, JobSpec},
    v1::Lease,
};

use super::{failure::Unfinished, link::Link, work::WorkerConfig};
use crate::{
    base::{Base, ModelConfig, fetch},
    engine::{Engine, precision_of},
    tokenize::Tokenizer,
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
    /// Its weights and kernels.
    pub engine: Engine<Cpu>,
}

impl Loaded {
    /// The base a lease needs: the one at hand where it is the same, or else read anew.
    pub fn for_lease(
        at_hand: Option<Box<Loaded>>,
        config: &WorkerConfig,
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
        let backend = Cpu::new(config.threads).map_err(Unfinished::bug)?;
        let engine = Engine::load(backend, &base.config, &base, precision).map_err(Unfinished::bad_data)?;
        link.log(&format!("base {} ({digest}) in memory", resolved.source));
        let (source, precision) = (resolved.source, spec.base.precision);
        Ok(Box::new(Loaded { source, digest, precision, config: base.config.clone(), tokenizer, engine }))
    }
}

/// The lease's job, parsed.
pub fn spec_of(lease: &Lease) -> Result<JobSpec, Unfinished> {
    insula_proto::convert::job_spec(lease.spec.clone().unwrap_or_default()).map_err(|violations| {
        let text = violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect::<Vec<_>>();
        Unfinished::bad_data(text.join("; "))
    })
}
