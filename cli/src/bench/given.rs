//! Updates that were written down elsewhere, computed as they stand: how insula and another trainer are compared on the
//! same samples.
//!
//! A line of the file is an update: a JSON list of `{"prompt": ..., "target": ...}`, each a text or a list of token ids. A
//! target's text gets the end-of-sequence token behind it; ids are taken as they are. The optimizer is torch's AdamW with
//! its defaults, without decay and with a constant learning rate; gradients are clipped to a norm of 1.

use insula_worker::{
    adapter::Adapter,
    engine::{Compute, EngineError, Example},
    optimizer::{AdamWConfig, AdamWState, clip_coefficient, gradient_norm},
    plan,
    reduce::TreeSum,
    tokenize::{TokenizeError, Tokenizer},
};
use serde::Deserialize;

/// The gradient's greatest norm.
const CLIP_NORM: f64 = 1.0;

/// A file of updates that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GivenError {
    /// A line that is no list of prompts and targets.
    #[error("line {line}: {problem}; expected a list of {{\"prompt\": ..., \"target\": ...}}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What the parser said.
        problem: String,
    },
    /// An update without samples.
    #[error("line {line}: no samples, at least one expected")]
    Empty {
        /// Its number, from 1.
        line: usize,
    },
    /// The tokenizer refused a text.
    #[error(transparent)]
    Tokenize(#[from] TokenizeError),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    prompt: Tokens,
    target: Tokens,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Tokens {
    Ids(Vec<u32>),
    Text(String),
}

/// The updates of a file, one for each line that is not blank.
///
/// # Errors
/// See [`GivenError`].
pub fn parse(text: &str, tokenizer: &Tokenizer) -> Result<Vec<Vec<Example>>, GivenError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(place, line)| update(place + 1, line, tokenizer)).collect()
}

fn update(line: usize, text: &str, tokenizer: &Tokenizer) -> Result<Vec<Example>, GivenError> {
    let samples: Vec<Sample> =
        serde_json::from_str(text).map_err(|e| GivenError::Line { line, problem: e.to_string() })?;
    if samples.is_empty() {
        return Err(GivenError::Empty { line });
    }
    samples.into_iter().map(|sample| example(sample, tokenizer)).collect()
}

fn example(sample: Sample, tokenizer: &Tokenizer) -> Result<Example, GivenError> {
    let prompt = match sample.prompt {
        Tokens::Ids(ids) => ids,
        Tokens::Text(text) => tokenizer.encode(&text)?,
    };
    let target = match sample.target {
        Tokens::Ids(ids) => ids,
        Tokens::Text(text) => tokenizer.target(&text)?,
    };
    Ok(Example { prompt_tokens: prompt.len(), ids: [prompt, target].concat(), weight: 1.0 })
}

/// A training over given updates.
pub struct GivenTraining {
    /// The adapter as it stands.
    pub adapter: Adapter,
    state: AdamWState,
    lr: f32,
    slot_tokens: usize,
}

impl GivenTraining {
    /// A training before its first update, at the constant learning rate `lr`.
    pub fn new(adapter: Adapter, lr: f64, slot_tokens: usize) -> Self {
        let state = AdamWState::new(adapter.params.len());
        Self { adapter, state, lr: lr as f32, slot_tokens }
    }

    /// Computes one update; returns the mean loss over its supervised tokens before the step, and its tree tokens.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn advance(&mut self, engine: &mut dyn Compute, update: &[Example]) -> Result<(f64, u64), EngineError> {
        let sequences: Vec<&[u32]> = update.iter().map(|example| example.ids.as_slice()).collect();
        let mut sum = TreeSum::default();
        let (mut loss_sum, mut supervised, mut tree_tokens) = (0.0, 0, 0);
        for slot in plan::slots(&sequences, self.slot_tokens) {
            let slot = engine.slot_gradient(&self.adapter, &update[slot])?;
            loss_sum += slot.loss_sum;
            supervised += slot.supervised_tokens;
            tree_tokens += slot.tree_tokens;
            sum.push(slot.gradient);
        }
        let gradient = sum.finish().expect("an update has at least one sample");
        let scale = clip_coefficient(gradient_norm(&gradient) / supervised as f64, CLIP_NORM) / supervised as f64;
        self.state.update(&AdamWConfig::default(), self.lr, &gradient, scale as f32, &mut self.adapter.params);
        Ok((loss_sum / supervised as f64, tree_tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_texts_or_token_ids() {
        let line = r#"[{"prompt": [1, 2], "target": [3]}, {"prompt": "Hi", "target": "joyful"}]"#;
        let samples: Vec<Sample> = serde_json::from_str(line).unwrap();
        assert!(matches!(&samples[0].prompt, Tokens::Ids(ids) if *ids == [1, 2]));
        assert!(matches!(&samples[1].target, Tokens::Text(text) if text == "joyful"));
        assert!(serde_json::from_str::<Vec<Sample>>(r#"[{"prompt": "Hi"}]"#).is_err());
    }
}
