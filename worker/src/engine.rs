//! The engine: a model on a backend, and the two things a worker asks of it: the gradient of a slot, and the answers to
//! prompts.
//!
//! Both merge their sequences into one [`Forest`] first. What comes back depends on the weights and the sequences alone:
//! not on their order, nor on the number of threads.

mod evaluate;

use insula_kernels::{Backend, KernelError, Precision};
use insula_proto::job;

pub use evaluate::{EvalMode, Scored};

use crate::adapter::Adapter;
use crate::base::{ModelConfig, TensorSource};
use crate::forest::{Forest, Supervision, count_tree_tokens};
use crate::model::{Adapted, Keep, Llama, LoadError, Scene};
use crate::parameters;
use crate::trie::LabelTrie;

/// Why the engine cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The base does not fit its configuration, or could not be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// There is nothing to compute.
    #[error("{what}: none given, at least one expected")]
    Nothing {
        /// What was missing.
        what: &'static str,
    },
    /// An example supervises nothing, or has no prompt to predict the first target from.
    #[error(
        "example {example}: {prompt_tokens} of {tokens} tokens are prompt, expected at least one and fewer than all"
    )]
    Unsupervised {
        /// Index of the example.
        example: usize,
        /// Its prompt's tokens.
        prompt_tokens: usize,
        /// All its tokens.
        tokens: usize,
    },
    /// An example whose weight is not one.
    #[error("example {example}: weight {weight}, expected a finite number, 0 or more")]
    Weight {
        /// Index of the example.
        example: usize,
        /// Its weight.
        weight: f32,
    },
    /// Weights that are held in fewer bits than training them takes.
    #[error("all weights are to be trained, but the base is held as {precision:?}; expected F32")]
    Frozen {
        /// How they are held.
        precision: Precision,
    },
    /// A token id the embedding has no row for.
    #[error("{what} {index}: token {token} is outside the vocabulary of {vocab}")]
    Token {
        /// What kind of sequence.
        what: &'static str,
        /// Index of the sequence.
        index: usize,
        /// The token id.
        token: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// A prompt without tokens.
    #[error("prompt {prompt}: no tokens, at least one expected")]
    EmptyPrompt {
        /// Index of the prompt.
        prompt: usize,
    },
    /// An adapter made for other dimensions.
    #[error("adapter: {found} parameters do not match {expected}, which its configuration calls for on this base")]
    Adapter {
        /// Parameters given.
        found: usize,
        /// Parameters expected.
        expected: usize,
    },
}

/// The backend's word for how a job wants its base held.
#[must_use]
pub fn precision_of(asked: job::Precision) -> Precision {
    match asked {
        job::Precision::F32 => Precision::F32,
        job::Precision::Bf16 => Precision::Bf16,
        job::Precision::Q8 => Precision::Q8,
        job::Precision::Q4 => Precision::Q4,
    }
}

/// A training sequence: a prompt and the answer to learn.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// All token ids: prompt, answer, end of sequence.
    pub ids: Vec<u32>,
    /// How many of them are prompt; the loss covers `ids[prompt_tokens..]`.
    pub prompt_tokens: usize,
    /// How much the loss of each of its supervised tokens counts: 1 as it is, 0 not at all.
    pub weight: f32,
}

/// What one slot adds to an update. Sums, so that slots add.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotGradient {
    /// Cross entropy summed over the supervised tokens, each times its example's weight.
    pub loss_sum: f64,
    /// Supervised tokens, with multiplicity.
    pub supervised_tokens: u64,
    /// Weights of the supervised tokens, summed; their number where every example weighs 1.
    pub weight_sum: f64,
    /// Distinct tree tokens of the slot's sequences.
    pub tree_tokens: u64,
    /// Gradient of `loss_sum`, laid out as what is trained.
    pub gradient: Vec<f32>,
}

/// A model ready to compute.
pub struct Engine<B: Backend> {
    model: Llama<B>,
    recompute: bool,
    merge: bool,
    /// The adapter merged last, and its weights.
    merged: Option<(Adapter, Adapted<B>)>,
}

/// An engine on whatever device: what training and evaluation ask of it.
pub trait Compute: Send {
    /// The base's dimensions.
    #[must_use]
    fn config(&self) -> &ModelConfig;

    /// Whether the backward pass computes each layer's activations again instead of keeping them: a third more
    /// arithmetic for a fraction of the memory, and the same bits.
    fn set_recompute(&mut self, recompute: bool);

    /// Says how many tree tokens the longest slot or forest will have: buffers are planned for it.
    fn expect_tokens(&self, tokens: usize);

    /// Whether evaluation merges an adapter into float32 copies of the weights it adapts: fewer operations for the copies'
    /// memory, and the same answers up to rounding.
    fn set_merge(&mut self, merge: bool);

    /// Loss and gradient of a slot, all its examples computed together as one forest.
    ///
    /// # Errors
    /// When there are no examples, one supervises nothing or has a token outside the vocabulary, the adapter does not
    /// fit the base, or the device refuses.
    fn slot_gradient(&mut self, adapter: &Adapter, examples: &[Example]) -> Result<SlotGradient, EngineError>;

    /// Loss and gradient of a slot where all weights of the base are trained: the gradient of all of them, laid out as
    /// [`parameters::Layout`].
    ///
    /// # Errors
    /// When the base is not held in float32, or as [`Engine::slot_gradient`].
    fn full_gradient(&mut self, examples: &[Example]) -> Result<SlotGradient, EngineError>;

    /// Takes other weights in the place of the base's: trained [`parameters::Parameters`], or the base again.
    ///
    /// # Errors
    /// When a weight is missing or of another shape, and nothing was changed; when the source cannot be read or the device
    /// refuses, and the weights are partly old and partly new.
    fn set_weights(&mut self, source: &dyn TensorSource) -> Result<(), EngineError>;

    /// Scores every label and finds the greedy continuation of each prompt, all prompts computed together as one forest.
    ///
    /// # Errors
    /// When there are no prompts, one is empty or has a token outside the vocabulary, the adapter does not fit the base,
    /// or the device refuses.
    fn evaluate(
        &mut self,
        adapter: Option<&Adapter>,
        prompts: &[Vec<u32>],
        trie: &LabelTrie,
        mode: EvalMode,
        max_new_tokens: usize,
    ) -> Result<Vec<Scored>, EngineError>;

    /// Logits after every token of every sequence, `[tokens, vocab]` each: for inspection and tests, not for a loop.
    ///
    /// # Errors
    /// As [`Engine::evaluate`].
    fn logits(&mut self, adapter: Option<&Adapter>, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError>;
}

impl<B: Backend> Engine<B> {
    /// Loads a base, having checked every tensor's presence and shape.
    ///
    /// # Errors
    /// [`EngineError::Load`] when the base does not fit its configuration; [`EngineError::Kernel`] when the device
    /// refuses.
    pub fn load(
        backend: B,
        config: &ModelConfig,
        source: &dyn TensorSource,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        let model = Llama::load(backend, config, source, precision)?;
        Ok(Self { model, recompute: false, merge: false, merged: None })
    }

    /// A slot's sums, and the gradient still on the device.
    fn gradient(
        &self,
        adapted: &Adapted<B>,
        len: usize,
        examples: &[Example],
    ) -> Result<(SlotGradient, B::Buffer), EngineError> {
        let (forest, supervision) = plant(examples);
        let backend = &self.model.backend;
        let scene = Scene::upload(backend, &self.model.config, &forest, &supervision.rows)?;
        let keep = if self.recompute { Keep::Inputs } else { Keep::All };
        let passed = self.model.forward(&scene, adapted, keep)?;
        let mut grads = backend.alloc([1, len])?;
        backend.zero(&mut grads)?;
        let (loss_sum, dlast) = self.model.loss(&passed, &supervision, adapted, &mut grads)?;
        self.model.backward(&scene, adapted, passed, dlast, &mut grads)?;
        let sequences: Vec<&[u32]> = examples.iter().map(|example| example.ids.as_slice()).collect();
        let counted = SlotGradient {
            loss_sum,
            supervised_tokens: supervision.tokens,
            weight_sum: supervision.weight_sum,
            tree_tokens: count_tree_tokens(&sequences),
            gradient: Vec::new(),
        };
        Ok((counted, grads))
    }

    fn merge_if_asked(&mut self, adapter: Option<&Adapter>) -> Result<(), EngineError> {
        let Some(adapter) = adapter.filter(|_| self.merge) else { return Ok(()) };
        if self.merged.as_ref().is_none_or(|(merged, _)| merged != adapter) {
            self.check_adapter(adapter)?;
            self.merged = None; // its memory first
            self.merged = Some((adapter.clone(), Adapted::merge(&self.model, adapter)?));
        }
        Ok(())
    }

    fn adapted(&self, adapter: Option<&Adapter>) -> Result<Adapted<B>, EngineError> {
        let Some(adapter) = adapter else { return Ok(Adapted::nothing(&self.model.backend)?) };
        self.check_adapter(adapter)?;
        Ok(Adapted::upload(&self.model.backend, adapter)?)
    }

    fn check_adapter(&self, adapter: &Adapter) -> Result<(), EngineError> {
        let expected = crate::adapter::Layout::new(&adapter.config, &self.model.config);
        if adapter.layout != expected || adapter.params.len() != expected.len() {
            return Err(EngineError::Adapter { found: adapter.params.len(), expected: expected.len() });
        }
        Ok(())
    }
}

impl<B> Compute for Engine<B>
where
    B: Backend + Send,
    B::Buffer: Send,
    B::Weight: Send,
{
    fn config(&self) -> &ModelConfig {
        &self.model.config
    }

    fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    fn expect_tokens(&self, tokens: usize) {
        self.model.backend.expect_rows(tokens);
    }

    fn set_merge(&mut self, merge: bool) {
        self.merge = merge;
        self.merged = None;
    }

    fn slot_gradient(&mut self, adapter: &Adapter, examples: &[Example]) -> Result<SlotGradient, EngineError> {
        self.merged = None; // its memory is wanted here
        self.check_adapter(adapter)?;
        check_examples(examples, self.model.config.vocab)?;
        let adapted = Adapted::upload(&self.model.backend, adapter)?;
        let (counted, grads) = self.gradient(&adapted, adapter.params.len(), examples)?;
        // Its buffer goes back to the backend, which has it ready for the next slot.
        Ok(SlotGradient { gradient: self.model.backend.download(&grads)?, ..counted })
    }

    fn full_gradient(&mut self, examples: &[Example]) -> Result<SlotGradient, EngineError> {
        self.merged = None;
        if self.model.precision != Precision::F32 {
            return Err(EngineError::Frozen { precision: self.model.precision });
        }
        check_examples(examples, self.model.config.vocab)?;
        let layout = parameters::Layout::new(&self.model.config);
        let len = layout.len();
        let adapted = Adapted::everything(&self.model.backend, layout)?;
        let (counted, grads) = self.gradient(&adapted, len, examples)?;
        Ok(SlotGradient { gradient: self.model.backend.take(grads)?, ..counted })
    }

    fn set_weights(&mut self, source: &dyn TensorSource) -> Result<(), EngineError> {
        self.merged = None;
        Ok(self.model.reload(source)?)
    }

    fn evaluate(
        &mut self,
        adapter: Option<&Adapter>,
        prompts: &[Vec<u32>],
        trie: &LabelTrie,
        mode: EvalMode,
        max_new_tokens: usize,
    ) -> Result<Vec<Scored>, EngineError> {
        self.merge_if_asked(adapter)?;
        check_tokens("prompt", prompts, self.model.config.vocab)?;
        check_tokens("label", trie.labels(), self.model.config.vocab)?;
        if let Some(prompt) = prompts.iter().position(Vec::is_empty) {
            return Err(EngineError::EmptyPrompt { prompt });
        }
        match &self.merged {
            Some((_, merged)) if adapter.is_some() => {
                evaluate::evaluate(&self.model, merged, prompts, trie, mode, max_new_tokens)
            }
            _ => evaluate::evaluate(&self.model, &self.adapted(adapter)?, prompts, trie, mode, max_new_tokens),
        }
    }

    fn logits(&mut self, adapter: Option<&Adapter>, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError> {
        let adapted = self.adapted(adapter)?;
        check_tokens("sequence", sequences, self.model.config.vocab)?;
        let forest = Forest::build(sequences);
        let rows: Vec<u32> = (0..forest.len() as u32).collect();
        let scene = Scene::upload(&self.model.backend, &self.model.config, &forest, &rows)?;
        let passed = self.model.forward(&scene, &adapted, Keep::Nothing)?;
        let (logits, vocab) = (self.model.logits(&passed, rows.len())?, self.model.config.vocab);
        let of_row = |row: &u32| logits[*row as usize * vocab..][..vocab].iter().copied();
        Ok(forest.paths.iter().map(|path| path.iter().flat_map(of_row).collect()).collect())
    }
}

/// The forest of a slot and what it supervises. Last tokens predict nothing, so they are not computed.
fn plant(examples: &[Example]) -> (Forest, Supervision) {
    let sequences: Vec<&[u32]> = examples.iter().map(|example| &example.ids[..example.ids.len() - 1]).collect();
    let forest = Forest::build(&sequences);
    let pairs = examples
        .iter()
        .zip(&forest.paths)
        .flat_map(|(e, path)| (e.prompt_tokens..e.ids.len()).map(|i| (path[i - 1], e.ids[i], e.weight)));
    let supervision = Supervision::gather(pairs.collect());
    (forest, supervision)
}

fn check_examples(examples: &[Example], vocab: usize) -> Result<(), EngineError> {
    let sequences: Vec<&[u32]> = examples.iter().map(|example| example.ids.as_slice()).collect();
    check_tokens("example", &sequences, vocab)?;
    if let Some(example) = examples.iter().position(|e| !(e.weight.is_finite() && e.weight >= 0.0)) {
        return Err(EngineError::Weight { example, weight: examples[example].weight });
    }
    match examples.iter().position(|e| e.prompt_tokens == 0 || e.prompt_tokens >= e.ids.len()) {
        None => Ok(()),
        Some(example) => Err(EngineError::Unsupervised {
            example,
            prompt_tokens: examples[example].prompt_tokens,
            tokens: examples[example].ids.len(),
        }),
    }
}

fn check_tokens<S: AsRef<[u32]>>(what: &'static str, sequences: &[S], vocab: usize) -> Result<(), EngineError> {
    if sequences.is_empty() {
        return Err(EngineError::Nothing { what });
    }
    for (index, sequence) in sequences.iter().enumerate() {
        if let Some(token) = sequence.as_ref().iter().find(|token| **token as usize >= vocab) {
            return Err(EngineError::Token { what, index, token: *token, vocab });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(ids: &[u32], prompt_tokens: usize) -> Example {
        Example { ids: ids.to_vec(), prompt_tokens, weight: 1.0 }
    }

    #[test]
    fn last_tokens_are_not_computed_and_repeated_examples_count_twice() {
        let (forest, supervision) =
            plant(&[example(&[1, 2, 3, 9], 2), example(&[1, 2, 3, 9], 2), example(&[1, 2, 4], 2)]);
        assert_eq!(forest.tokens, [1, 2, 3]);
        assert_eq!((supervision.rows.as_slice(), supervision.ids.as_slice()), (&[1, 2][..], &[3, 4, 9][..]));
        assert_eq!((supervision.weights.as_slice(), supervision.tokens), (&[2.0, 1.0, 2.0][..], 5));
    }

    #[test]
    fn examples_that_supervise_nothing_are_refused() {
        for prompt_tokens in [0, 3, 4] {
            let refused = check_examples(&[example(&[1, 2], 1), example(&[1, 2, 3], prompt_tokens)], 10);
            assert!(matches!(refused, Err(EngineError::Unsupervised { example: 1, .. })), "{refused:?}");
        }
        let refused = check_examples(&[Example { weight: -1.5, ..example(&[1, 2], 1) }], 10).unwrap_err().to_string();
        assert_eq!(refused, "example 0: weight -1.5, expected a finite number, 0 or more");
        let refused = check_examples(&[example(&[1, 12], 1)], 10).unwrap_err().to_string();
        assert_eq!(refused, "example 0: token 12 is outside the vocabulary of 10");
    }
}
