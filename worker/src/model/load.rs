//! A base's tensors onto a backend, every one checked for presence and shape first.

use insula_kernels::{Backend, KernelError, Precision};

use super::{Layer, Llama};
use crate::adapter::Target;
use crate::base::{BaseError, ModelConfig, TensorSource};

/// Why a base cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The base lacks a tensor its configuration calls for.
    #[error("tensor {name}: absent from the base, expected shape {expected:?}")]
    Missing {
        /// Tensor name.
        name: String,
        /// Shape the configuration calls for.
        expected: Vec<usize>,
    },
    /// A tensor's shape contradicts the configuration.
    #[error("tensor {name}: shape {found:?} does not match {expected:?}, which the configuration calls for")]
    Shape {
        /// Tensor name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape the configuration calls for.
        expected: Vec<usize>,
    },
    /// The dimensions themselves do not fit together.
    #[error("model configuration: {field} is {value}, expected {expected}")]
    Config {
        /// Which field.
        field: &'static str,
        /// What it says.
        value: usize,
        /// What it would have to be.
        expected: &'static str,
    },
    /// The base could not be read.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The device refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl<B: Backend> Llama<B> {
    /// Reads, checks and uploads all weights.
    pub(crate) fn load(
        backend: B,
        config: &ModelConfig,
        source: &dyn TensorSource,
        precision: Precision,
    ) -> Result<Self, LoadError> {
        check_config(config)?;
        check_tensors(config, source)?;
        let mut reader = Reader { backend: &backend, source, precision: of_tables(precision), scratch: Vec::new() };
        let embedding = reader.weight("model.embed_tokens.weight", [config.vocab, config.hidden])?;
        let head = match config.tied {
            true => None,
            false => Some(reader.weight("lm_head.weight", [config.vocab, config.hidden])?),
        };
        reader.precision = precision;
        let norm = reader.vector("model.norm.weight", config.hidden)?;
        let layers = (0..config.layers).map(|layer| reader.layer(config, layer)).collect::<Result<_, _>>()?;
        Ok(Self { config: config.clone(), embedding, head, norm, layers, backend })
    }
}

/// How the embedding table and the head are held: in four bits they would cost more accuracy than all layers together.
pub(crate) fn of_tables(precision: Precision) -> Precision {
    if precision == Precision::Q4 { Precision::Q8 } else { precision }
}

fn check_config(config: &ModelConfig) -> Result<(), LoadError> {
    let refuse = |field, value, expected| Err(LoadError::Config { field, value, expected });
    if config.layers == 0 {
        return refuse("layers", 0, "at least one");
    }
    if config.kv_heads == 0 || !config.heads.is_multiple_of(config.kv_heads) {
        return refuse("kv_heads", config.kv_heads, "a divisor of heads");
    }
    if config.head_dim == 0 || !config.head_dim.is_multiple_of(2) {
        return refuse("head_dim", config.head_dim, "an even number");
    }
    Ok(())
}

/// Names and shapes of all tensors the configuration calls for.
fn expected(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab, config.hidden]),
        ("model.norm.weight".to_owned(), vec![config.hidden]),
    ];
    if !config.tied {
        all.push(("lm_head.weight".to_owned(), vec![config.vocab, config.hidden]));
    }
    for layer in 0..config.layers {
        all.extend(norm_names(layer).map(|name| (name, vec![config.hidden])));
        all.extend(Target::ALL.map(|t| (format!("{}.weight", t.path(layer)), t.shape(config).to_vec())));
    }
    all
}

fn norm_names(layer: usize) -> [String; 2] {
    ["input_layernorm", "post_attention_layernorm"].map(|norm| format!("model.layers.{layer}.{norm}.weight"))
}

fn check_tensors(config: &ModelConfig, source: &dyn TensorSource) -> Result<(), LoadError> {
    for (name, expected) in expected(config) {
        match source.shape(&name) {
            None => return Err(LoadError::Missing { name, expected }),
            Some(found) if found != expected => return Err(LoadError::Shape { name, found, expected }),
            Some(_) => {}
        }
    }
    Ok(())
}

struct Reader<'a, B: Backend> {
    backend: &'a B,
    source: &'a dyn TensorSource,
    precision: Precision,
    scratch: Vec<f32>,
}

impl<B: Backend> Reader<'_, B> {
    fn read(&mut self, name: &str, len: usize) -> Result<(), LoadError> {
        self.scratch.resize(len, 0.0);
        Ok(self.source.read_f32(name, &mut self.scratch)?)
    }

    fn weight(&mut self, name: &str, shape: [usize; 2]) -> Result<B::Weight, LoadError> {
        self.read(name, shape[0] * shape[1])?;
        Ok(self.backend.weight(shape, &self.scratch, self.precision)?)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<B::Buffer, LoadError> {
        self.read(name, len)?;
        Ok(self.backend.upload(&self.scratch)?)
    }

    fn layer(&mut self, config: &ModelConfig, layer: usize) -> Result<Layer<B>, LoadError> {
        let [attention, mlp] = norm_names(layer);
        let mut weight = |t: Target| self.weight(&format!("{}.weight", t.path(layer)), t.shape(config));
        let [q, k, v, o, gate, up, down] = Target::ALL;
        let weights = [weight(q)?, weight(k)?, weight(v)?, weight(o)?, weight(gate)?, weight(up)?, weight(down)?];
        let attention_norm = self.vector(&attention, config.hidden)?;
        Ok(Layer { attention_norm, mlp_norm: self.vector(&mlp, config.hidden)?, weights })
    }
}
