//! Text to token ids and back, exactly as the base's makers have it.
//!
//! The work is done by the `tokenizers` library, the same code that stands behind Hugging Face's fast tokenizers, set
//! up either from a folder's `tokenizer.json` or from the vocabulary and merges inside a GGUF file. Special tokens are
//! never added, but where their text occurs in a prompt (`<|im_end|>`) it is read as that token, as the peers do.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, PreTokenizerWrapper};

use crate::base::Refusal;
use crate::base::hex;

/// Text that can't be tokenised as the job needs it.
#[derive(Debug, Error, PartialEq)]
pub enum TokenizeError {
    /// The library refused a text.
    #[error("tokenizing {start:?}...: {why}")]
    Text {
        /// The text's first characters.
        start: String,
        /// What the library said.
        why: String,
    },
    /// A label is empty, or only spaces.
    #[error("label {index} is empty, expected a word")]
    EmptyLabel {
        /// Its place in the label set.
        index: usize,
    },
    /// A label could never be read back from the model's text.
    #[error("label {label:?} becomes {back:?} when tokenized and read back, so no answer could ever equal it")]
    UnreadableLabel {
        /// The label.
        label: String,
        /// What its tokens say.
        back: String,
    },
    /// Two labels are the same to the model.
    #[error("labels {first:?} and {second:?} have the same tokens {tokens:?}, so no answer could tell them apart")]
    CollidingLabels {
        /// The earlier label.
        first: String,
        /// The later label.
        second: String,
        /// Their token ids, with the end of the sequence.
        tokens: Vec<u32>,
    },
}

/// What a token of a GGUF vocabulary is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// A piece of text.
    Normal,
    /// A special token: found whole in text, left out when ids become text.
    Control,
    /// Found whole in text, and kept.
    UserDefined,
}

/// The tokenizer of a GGUF file, as it is written there.
#[derive(Debug)]
pub(crate) struct GgufVocabulary {
    /// Text of every token, in byte-level BPE's alphabet; its index is its id.
    pub(crate) tokens: Vec<String>,
    /// As many as `tokens`.
    pub(crate) kinds: Vec<TokenKind>,
    /// Pairs of tokens with a space between, most urgent first.
    pub(crate) merges: Vec<String>,
    /// llama.cpp's name for the way text is split before merging.
    pub(crate) pre: String,
    /// Id of the end-of-sequence token; below `tokens.len()`.
    pub(crate) eos: u32,
}

/// A base's tokenizer.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    eos: u32,
    digest: String,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("digest", &self.digest).field("eos", &self.eos).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer of a `tokenizer.json`. The end of a sequence is the token named `eos_text`, else number `eos`.
    pub(crate) fn from_json(json: &[u8], eos_text: Option<&str>, eos: Option<u32>) -> Result<Tokenizer, Refusal> {
        let mut inner = read_json(json)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| Refusal::Malformed(error.to_string()))?;
        let eos = eos_text.and_then(|text| inner.token_to_id(text)).or(eos);
        let eos = eos.filter(|&eos| inner.id_to_token(eos).is_some()).ok_or_else(|| {
            Refusal::Malformed(
                "no end-of-sequence token: expected eos_token in tokenizer_config.json or config.json".into(),
            )
        })?;
        Ok(Tokenizer { inner, eos, digest: digest([json, &eos.to_le_bytes()]) })
    }

    /// Builds the tokenizer that a GGUF file describes.
    pub(crate) fn from_gguf(vocabulary: GgufVocabulary) -> Result<Tokenizer, Refusal> {
        let pre_tokenizer = pre_tokenizer(&vocabulary.pre)?;
        let digest = vocabulary_digest(&vocabulary);
        let added = added_tokens(&vocabulary);
        let eos = vocabulary.eos;
        let mut inner = tokenizers::Tokenizer::new(byte_pairs(vocabulary)?);
        inner.with_pre_tokenizer(Some(pre_tokenizer));
        inner.with_decoder(Some(ByteLevelDecoder::default()));
        inner.add_tokens(added).map_err(|error| Refusal::Malformed(error.to_string()))?;
        Ok(Tokenizer { inner, eos, digest })
    }

    /// Token ids of `text`; no special tokens are added, those written out in it are read as such.
    ///
    /// # Errors
    /// When the library refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizeError> {
        match self.inner.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(TokenizeError::Text { start: text.chars().take(40).collect(), why: error.to_string() }),
        }
    }

    /// [`Tokenizer::encode`] of many texts, in parallel, in their order.
    ///
    /// # Errors
    /// When the library refuses one of the texts.
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>, TokenizeError> {
        texts.par_iter().map(|text| self.encode(text.as_ref())).collect()
    }

    /// The text of token ids, without the special ones. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        // The byte-level decoder can't fail; a tokenizer.json with a decoder that does has said nothing readable.
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// Id of the token that ends a sequence.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The text of the token that ends a sequence.
    pub fn eos_text(&self) -> Option<String> {
        self.inner.id_to_token(self.eos)
    }

    /// The tokenizer as a `tokenizer.json`, which [`crate::base::Base`] reads as well as transformers does.
    ///
    /// # Errors
    /// What the library says where it can't write it.
    pub fn to_json(&self) -> Result<Vec<u8>, String> {
        self.inner.to_string(false).map(String::into_bytes).map_err(|error| error.to_string())
    }

    /// Number of tokens, added ones included.
    pub fn vocab(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// `sha256:<hex>` of what the tokenizer was built from: equal digests, equal token ids.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// A label's supervised tokens: the bare label, tokenised apart, then the end of the sequence.
    ///
    /// # Errors
    /// When the library refuses the text.
    pub fn target(&self, label: &str) -> Result<Vec<u32>, TokenizeError> {
        let mut ids = self.encode(label)?;
        ids.push(self.eos);
        Ok(ids)
    }

    /// [`Tokenizer::target`] of every label of a set, refusing a set that the model could not answer from.
    ///
    /// # Errors
    /// When a label is empty, does not survive being tokenised, or has the tokens of another.
    pub fn label_tokens<S: AsRef<str>>(&self, labels: &[S]) -> Result<Vec<Vec<u32>>, TokenizeError> {
        let mut owners = BTreeMap::new();
        let mut all = Vec::with_capacity(labels.len());
        for (index, label) in labels.iter().map(AsRef::as_ref).enumerate() {
            let tokens = self.label_target(index, label)?;
            if let Some(first) = owners.insert(tokens.clone(), label) {
                return Err(TokenizeError::CollidingLabels { first: first.into(), second: label.into(), tokens });
            }
            all.push(tokens);
        }
        Ok(all)
    }

    fn label_target(&self, index: usize, label: &str) -> Result<Vec<u32>, TokenizeError> {
        if label.trim().is_empty() {
            return Err(TokenizeError::EmptyLabel { index });
        }
        let tokens = self.target(label)?;
        // Answers are trimmed before they are compared, and a label that holds a special token loses it.
        let back = self.decode(&tokens).trim().to_owned();
        if back == label { Ok(tokens) } else { Err(TokenizeError::UnreadableLabel { label: label.into(), back }) }
    }
}

/// Reads a `tokenizer.json`.
pub(crate) fn read_json(json: &[u8]) -> Result<tokenizers::Tokenizer, Refusal> {
    // The library slices without checks while it reads merges that are longer than any token, so a hostile file can
    // make it panic; nothing is shared with the closure but the bytes.
    match catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(json))) {
        Ok(Ok(tokenizer)) => Ok(tokenizer),
        Ok(Err(error)) => Refusal::malformed(error.to_string()),
        Err(_) => Refusal::malformed("the tokenizer's merges contradict its vocabulary"),
    }
}

/// How llama.cpp's pre-tokenizer names split text, in Hugging Face's terms: what transformers makes of the same file.
///
/// SmolLM's own tokenizer.json also puts every digit apart before GPT-2's pattern is applied. Its merges never join
/// digits, so this changes one thing only: of two or more spaces before a digit, the last stands alone without that
/// step and with its fellows with it. The peers, and the goldens, read the GGUF file without it, and so do we.
fn pre_tokenizer(name: &str) -> Result<PreTokenizerWrapper, Refusal> {
    match name {
        "default" | "gpt-2" | "smollm" => Ok(ByteLevel::new(false, true, true).into()),
        other => Refusal::unsupported(format!(
            "tokenizer.ggml.pre {other:?} is not supported, only gpt-2 and smollm; \
             a Hugging Face folder with tokenizer.json works"
        )),
    }
}

fn added_tokens(vocabulary: &GgufVocabulary) -> Vec<AddedToken> {
    let whole = vocabulary.tokens.iter().zip(&vocabulary.kinds).filter(|(_, kind)| **kind != TokenKind::Normal);
    whole.map(|(text, kind)| AddedToken::from(text.clone(), *kind == TokenKind::Control).normalized(false)).collect()
}

fn byte_pairs(vocabulary: GgufVocabulary) -> Result<BPE, Refusal> {
    let count = vocabulary.tokens.len();
    let ids: Vocab = vocabulary.tokens.into_iter().zip(0..).collect();
    if ids.len() != count {
        return Refusal::malformed(format!("tokenizer.ggml.tokens has {count} tokens, {} of them distinct", ids.len()));
    }
    let mut merges = Vec::with_capacity(vocabulary.merges.len());
    for merge in vocabulary.merges {
        // A token never contains a plain space: byte-level BPE writes it as another letter.
        let pair = merge
            .split_once(' ')
            .filter(|(a, b)| ids.contains_key(*a) && ids.contains_key(*b) && ids.contains_key(&format!("{a}{b}")));
        match pair {
            Some((a, b)) => merges.push((a.to_owned(), b.to_owned())),
            None => return Refusal::malformed(format!("merge {merge:?} is not two tokens that make a third")),
        }
    }
    let bpe = BPE::builder().vocab_and_merges(ids, merges).build();
    bpe.map_err(|error| Refusal::Malformed(format!("tokenizer: {error}")))
}

fn vocabulary_digest(vocabulary: &GgufVocabulary) -> String {
    let lines = |lines: &[String]| serde_json::to_vec(lines).unwrap_or_default();
    let kinds: Vec<u8> = vocabulary.kinds.iter().map(|&kind| kind as u8).collect();
    let eos = vocabulary.eos.to_le_bytes();
    digest([vocabulary.pre.as_bytes(), &lines(&vocabulary.tokens), &lines(&vocabulary.merges), &kinds, &eos])
}

/// SHA-256 of parts, each with its length before it, so that no two lists of parts look alike.
fn digest<const N: usize>(parts: [&[u8]; N]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    format!("sha256:{}", hex(hash.finalize().as_slice()))
}
