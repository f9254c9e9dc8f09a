//! All weights of a base in one flat vector of named segments, for training that changes every one of them.
//!
//! As with an adapter's vector, gradients add, optimizers step and bytes travel without knowing what a segment means.
//!
//! ```text
//!   embedding | layer 0: input norm, q, k, v, o, middle norm, gate, up, down | layer 1: ... | last norm | head, if untied
//! ```
//! The embedding lies at 0, so that its rows are found by token id alone.

use crate::adapter::Target;
use crate::base::{BaseError, ModelConfig, TensorSource};
use crate::model::LoadError;

/// Segments of one layer: two norms, and as many matrices as there are targets.
const PER_LAYER: usize = 2 + Target::ALL.len();

/// One tensor inside the flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Hugging Face's name: `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Outermost dimension first; elements are row-major.
    pub shape: Vec<usize>,
    /// Index of the first element.
    pub offset: usize,
}

impl Segment {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The segment's place in the flat vector.
    #[must_use]
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.elements()
    }
}

/// One of the norms of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Norm {
    /// Before attention.
    Input,
    /// Before the MLP.
    Middle,
}

/// The segments of one base, in order, without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// All segments.
    pub segments: Vec<Segment>,
    tied: bool,
}

impl Layout {
    /// The layout of a base of these dimensions.
    #[must_use]
    pub fn new(model: &ModelConfig) -> Self {
        let (table, gain) = (vec![model.vocab, model.hidden], vec![model.hidden]);
        let mut all = vec![("model.embed_tokens.weight".to_owned(), table.clone())];
        for layer in 0..model.layers {
            let norm = |norm: &str| (format!("model.layers.{layer}.{norm}_layernorm.weight"), gain.clone());
            let matrix = |target: Target| (format!("{}.weight", target.path(layer)), target.shape(model).to_vec());
            let [q, k, v, o, gate, up, down] = Target::ALL.map(matrix);
            all.extend([norm("input"), q, k, v, o, norm("post_attention"), gate, up, down]);
        }
        all.push(("model.norm.weight".to_owned(), gain));
        if !model.tied {
            all.push(("lm_head.weight".to_owned(), table));
        }
        let mut offset = 0;
        let mut placed = |(name, shape)| {
            let segment = Segment { name, shape, offset };
            offset += segment.elements();
            segment
        };
        Self { segments: all.into_iter().map(&mut placed).collect(), tied: model.tied }
    }

    /// Length of the flat vector.
    #[must_use]
    pub fn len(&self) -> usize {
        self.segments.last().map_or(0, |segment| segment.range().end)
    }

    /// Whether there is nothing to train, which no base brings about.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Where the segment of this name lies.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.name == name)
    }

    /// First element of a layer's matrix.
    pub(crate) fn matrix(&self, layer: usize, target: Target) -> usize {
        // The middle norm stands between o and gate.
        let place = target as usize + if target > Target::O { 2 } else { 1 };
        self.segments[1 + layer * PER_LAYER + place].offset
    }

    /// First element of a layer's norm.
    pub(crate) fn norm(&self, layer: usize, norm: Norm) -> usize {
        let place = match norm {
            Norm::Input => 0,
            Norm::Middle => 1 + Target::O as usize + 1,
        };
        self.segments[1 + layer * PER_LAYER + place].offset
    }

    /// First element of the last norm.
    pub(crate) fn last_norm(&self) -> usize {
        self.segments[self.segments.len() - if self.tied { 1 } else { 2 }].offset
    }

    /// First element of the head: the embedding's, where they are one.
    pub(crate) fn head(&self) -> usize {
        if self.tied { 0 } else { self.segments[self.segments.len() - 1].offset }
    }
}

/// All weights of a base, at some point of their training.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// Which part of `params` is which.
    pub layout: Layout,
    /// All weights, `[layout.len()]`.
    pub params: Vec<f32>,
}

impl Parameters {
    /// The weights as a base has them, dequantised.
    ///
    /// # Errors
    /// When the base lacks one or has it in another shape, or cannot be read.
    pub fn read(model: &ModelConfig, source: &dyn TensorSource) -> Result<Self, LoadError> {
        let layout = Layout::new(model);
        crate::model::check_tensors(&layout, source)?;
        let mut params = vec![0.0; layout.len()];
        for segment in &layout.segments {
            source.read_f32(&segment.name, &mut params[segment.range()])?;
        }
        Ok(Self { layout, params })
    }
}

/// So that the engine takes trained weights as it takes a base's.
impl TensorSource for Parameters {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.layout.find(name).map(|segment| segment.shape.clone())
    }

    fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<(), BaseError> {
        let segment = self.layout.find(name).ok_or_else(|| BaseError::MissingTensor { name: name.to_owned() })?;
        let (found, expected) = (segment.elements(), out.len());
        if found != expected {
            return Err(BaseError::TensorSize { name: name.to_owned(), found, expected });
        }
        out.copy_from_slice(&self.params[segment.range()]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(tied: bool) -> ModelConfig {
        ModelConfig {
            vocab: 11,
            hidden: 6,
            intermediate: 10,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            rope_theta: 1e4,
            rope_scaling: None,
            rms_eps: 1e-5,
            context: 64,
            tied,
        }
    }

    #[test]
    fn segments_leave_no_gaps_and_are_found_where_they_are() {
        for tied in [true, false] {
            let layout = Layout::new(&model(tied));
            let ends = layout.segments.iter().map(|segment| segment.range().end);
            assert!(layout.segments.iter().skip(1).zip(ends).all(|(next, end)| next.offset == end));
            let at = |name: &str| layout.find(name).unwrap().offset;
            for layer in 0..2 {
                for target in Target::ALL {
                    assert_eq!(layout.matrix(layer, target), at(&format!("{}.weight", target.path(layer))));
                }
                let norm = |norm: &str| at(&format!("model.layers.{layer}.{norm}_layernorm.weight"));
                assert_eq!(layout.norm(layer, Norm::Input), norm("input"));
                assert_eq!(layout.norm(layer, Norm::Middle), norm("post_attention"));
            }
            assert_eq!(layout.last_norm(), at("model.norm.weight"));
            assert_eq!(layout.head(), at(if tied { "model.embed_tokens.weight" } else { "lm_head.weight" }));
            let layer = 2 * 6 + 8 * 6 + 2 * 4 * 6 + 6 * 8 + 3 * 10 * 6;
            assert_eq!(layout.len(), 11 * 6 * if tied { 1 } else { 2 } + 2 * layer + 6);
        }
    }
}
