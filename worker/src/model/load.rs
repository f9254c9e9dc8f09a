//! A base's tensors onto a backend, every one checked for presence and shape first.

use insula_kernels::{Backend, KernelError, Precision};

use super::{Layer, Llama};
use crate::adapter::Target;
use crate::base::{BaseError, ModelConfig, TensorSource};
use crate::parameters::{Layout, Segment};

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
        check_tensors(&Layout::new(config), source)?;
        let mut reader = Reader { backend: &backend, source, precision: of_tables(precision), scratch: Vec::new() };
        let embedding = reader.weight("model.embed_tokens.weight", [config.vocab, config.hidden])?;
        let head = match config.tied {
            true => None,
            false => Some(reader.weight("lm_head.weight", [config.vocab, config.hidden])?),
        };
        reader.precision = precision;
        let norm = reader.vector("model.norm.weight", config.hidden)?;
        let layers = (0..config.layers).map(|layer| reader.layer(config, layer)).collect::<Result<_, _>>()?;
        Ok(Self { config: config.clone(), precision, embedding, head, norm, layers, backend })
    }

    /// Takes other weights of the same shapes, one tensor after the other; after an error some of both are there.
    pub(crate) fn reload(&mut self, source: &dyn TensorSource) -> Result<(), LoadError> {
        let (config, precision) = (&self.config, self.precision);
        check_tensors(&Layout::new(config), source)?;
        let mut reader =
            Reader { backend: &self.backend, source, precision: of_tables(precision), scratch: Vec::new() };
        let table = [config.vocab, config.hidden];
        self.embedding = reader.weight("model.embed_tokens.weight", table)?;
        if let Some(head) = &mut self.head {
            *head = reader.weight("lm_head.weight", table)?;
        }
        reader.precision = precision;
        self.norm = reader.vector("model.norm.weight", config.hidden)?;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let [attention, mlp] = norm_names(index);
            layer.attention_norm = reader.vector(&attention, config.hidden)?;
            layer.mlp_norm = reader.vector(&mlp, config.hidden)?;
            for target in Target::ALL {
                let name = format!("{}.weight", target.path(index));
                layer.weights[target as usize] = reader.weight(&name, target.shape(config))?;
            }
        }
        Ok(())
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

/// Whether the source has every tensor of the layout, in its shape.
pub(crate) fn check_tensors(layout: &Layout, source: &dyn TensorSource) -> Result<(), LoadError> {
    for Segment { name, shape, .. } in &layout.segments {
        let (name, expected) = (name.clone(), shape.clone());
        match source.shape(&name) {
            None => return Err(LoadError::Missing { name, expected }),
            Some(found) if found != expected => return Err(LoadError::Shape { name, found, expected }),
            Some(_) => {}
        }
    }
    Ok(())
}

fn norm_names(layer: usize) -> [String; 2] {
    ["input_layernorm", "post_attention_layernorm"].map(|norm| format!("model.layers.{layer}.{norm}.weight"))
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
