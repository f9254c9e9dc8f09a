//! From text to the token ids that BERT reads: `[CLS] ... [SEP]`, cut to the longest it may have.

use std::path::Path;

use serde_json::Value;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, PostProcessor, Tokenizer, TruncationParams};

use super::settings::Settings;
use crate::base::{BaseError, Folder, Refusal};
use crate::tokenize::{TokenizeError, read_json};

/// An encoder's tokenizer.
pub(super) struct Words {
    inner: Tokenizer,
    lower_case: bool,
}

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Words").field("lower_case", &self.lower_case).finish_non_exhaustive()
    }
}

impl Words {
    /// The tokenizer of a `tokenizer.json`, else of a `vocab.txt`.
    pub(super) fn read(folder: &Folder, path: &Path, settings: &Settings) -> Result<Words, BaseError> {
        let (name, built) = match (folder.tokenizer.as_deref(), folder.settings.get("vocab.txt")) {
            (Some(json), _) => ("tokenizer.json", read_json(json)),
            (None, Some(vocabulary)) => {
                let config = folder.settings.get("tokenizer_config.json").map(|bytes| &**bytes);
                ("vocab.txt", from_vocabulary(vocabulary, config))
            }
            (None, None) => ("", Refusal::unsupported("has neither tokenizer.json nor vocab.txt")),
        };
        let inner = built.and_then(|inner| cut_to(inner, settings.max_tokens));
        let inner = inner.map_err(|refusal| refusal.about(&path.join(name)))?;
        Ok(Words { inner, lower_case: settings.lower_case })
    }

    /// Token ids of a text, with the special ones around it.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizeError> {
        let lower = self.lower_case.then(|| text.to_lowercase());
        match self.inner.encode_fast(lower.as_deref().unwrap_or(text).trim(), true) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(TokenizeError::Text { start: text.chars().take(40).collect(), why: error.to_string() }),
        }
    }
}

/// No padding, and the longest text as the settings have it, whatever the file says.
fn cut_to(mut inner: Tokenizer, max_tokens: usize) -> Result<Tokenizer, Refusal> {
    let special = inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
    if special > max_tokens {
        return Refusal::malformed(format!("adds {special} tokens to a text, which may have {max_tokens} in all"));
    }
    inner.with_padding(None);
    let truncation = TruncationParams { max_length: max_tokens, stride: 0, ..TruncationParams::default() };
    inner.with_truncation(Some(truncation)).map_err(|error| Refusal::Malformed(error.to_string()))?;
    Ok(inner)
}

/// BERT's own tokenizer over a list of words, one a line; `tokenizer_config.json` may say that case matters.
fn from_vocabulary(vocabulary: &[u8], config: Option<&[u8]>) -> Result<Tokenizer, Refusal> {
    let malformed = |error: &dyn std::fmt::Display| Refusal::Malformed(error.to_string());
    let text = std::str::from_utf8(vocabulary).map_err(|error| malformed(&error))?;
    let config: Value = config.map_or(Ok(Value::Null), serde_json::from_slice).map_err(|error| malformed(&error))?;
    let flag = |key: &str| config.get(key).and_then(Value::as_bool);
    let ids: tokenizers::models::bpe::Vocab = text.lines().map(|line| line.trim_end().to_owned()).zip(0..).collect();
    let id_of = |token: &str| match ids.get(token) {
        Some(&id) => Ok((token.to_owned(), id)),
        None => Refusal::malformed(format!("has no {token}, which every text needs")),
    };
    let (first, last, unknown) = (id_of("[CLS]")?, id_of("[SEP]")?, id_of("[UNK]")?);
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].into_iter().filter(|token| ids.contains_key(*token));
    let special: Vec<AddedToken> = special.map(|token| AddedToken::from(token, true)).collect();
    let model = WordPiece::builder().vocab(ids).unk_token(unknown.0).build().map_err(|error| malformed(&error))?;
    let mut inner = Tokenizer::new(model);
    let lower_case = flag("do_lower_case").unwrap_or(true);
    let chinese = flag("tokenize_chinese_chars").unwrap_or(true);
    let normalizer = BertNormalizer::new(true, chinese, flag("strip_accents"), lower_case);
    inner.with_normalizer(Some(normalizer)).map_err(|error| malformed(&error))?;
    inner.with_pre_tokenizer(Some(BertPreTokenizer));
    inner.with_post_processor(Some(BertProcessing::new(last, first)));
    inner.add_special_tokens(special).map_err(|error| malformed(&error))?;
    Ok(inner)
}
