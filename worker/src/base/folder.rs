//! A Hugging Face folder: which files of it matter, mapped.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::Refusal;
use super::map::MappedFile;
use super::tensors::Stored;
use super::{BaseError, digest, safe, shell};

/// The list of a model's shards.
const INDEX: &str = "model.safetensors.index.json";

/// Small files that some models have, by their path in the folder: of tokenizers, and of sentence encoders.
const SETTINGS: [&str; 5] =
    ["tokenizer_config.json", "vocab.txt", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"];

/// Whether a file, by its path in a folder, may be a part of the model there.
pub(crate) fn is_part(name: &str) -> bool {
    let weights = name.ends_with(".safetensors") && safe::is_plain_file_name(name);
    ["config.json", "tokenizer.json", INDEX].contains(&name) || SETTINGS.contains(&name) || weights
}

/// Whether files, by their paths in a folder, make a model.
pub(crate) fn is_model(names: &[&str]) -> bool {
    let has = |wanted: &str| names.contains(&wanted);
    has("config.json") && (has("model.safetensors") || has(INDEX))
}

/// One file of weights.
pub(crate) struct Weights {
    pub(crate) name: String,
    pub(crate) bytes: MappedFile,
    /// The tensors that an index expects in it.
    expected: Option<Vec<String>>,
}

/// The files of a Hugging Face folder that matter, mapped.
pub(crate) struct Folder {
    pub(crate) config: MappedFile,
    pub(crate) tokenizer: Option<MappedFile>,
    /// Those of [`SETTINGS`] that are there.
    pub(crate) settings: BTreeMap<&'static str, MappedFile>,
    pub(crate) weights: Vec<Weights>,
    /// Whether an index says which weight files there are.
    indexed: bool,
}

impl Folder {
    pub(crate) fn map(path: &Path) -> Result<Folder, BaseError> {
        let not_a_base = || BaseError::NotABase { path: path.to_owned() };
        let config = shell::map_if_there(&path.join("config.json"))?.ok_or_else(not_a_base)?;
        let tokenizer = shell::map_if_there(&path.join("tokenizer.json"))?;
        let index_path = path.join(INDEX);
        let index = shell::map_if_there(&index_path)?;
        let indexed = index.is_some();
        let weights = match index {
            None => {
                let bytes = shell::map_if_there(&path.join("model.safetensors"))?.ok_or_else(not_a_base)?;
                vec![Weights { name: "model.safetensors".to_owned(), bytes, expected: None }]
            }
            Some(index) => {
                let index = safe::parse_index(&index).map_err(|refusal| refusal.about(&index_path))?;
                let map = |(name, tensors): (String, _)| {
                    Ok(Weights { bytes: shell::map(&path.join(&name))?, name, expected: Some(tensors) })
                };
                index.into_iter().map(map).collect::<Result<_, BaseError>>()?
            }
        };
        let mut settings = BTreeMap::new();
        for name in SETTINGS {
            settings.extend(shell::map_if_there(&path.join(name))?.map(|bytes| (name, bytes)));
        }
        Ok(Folder { config, tokenizer, settings, weights, indexed })
    }

    /// The digest of the files that [count](digest::counts).
    pub(crate) fn digest(&self) -> String {
        let mut files: Vec<(&str, &[u8])> = vec![("config.json", &self.config)];
        files.extend(self.tokenizer.as_deref().map(|bytes| ("tokenizer.json", bytes)));
        files.extend(self.settings.iter().map(|(name, bytes)| (*name, &**bytes)));
        let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        files.retain(|(name, _)| digest::counts(name, &names));
        files.extend(self.weights.iter().map(|weights| (weights.name.as_str(), &*weights.bytes)));
        digest::of_files(&files)
    }

    /// The paths, in the folder, of the files that are used.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let tokenizer = self.tokenizer.as_ref().map(|_| "tokenizer.json");
        let index = self.indexed.then_some(INDEX);
        let settings = self.settings.keys().copied();
        let weights = self.weights.iter().map(|weights| weights.name.as_str());
        ["config.json"].into_iter().chain(tokenizer).chain(index).chain(settings).chain(weights)
    }

    /// The tensors of all weight files; [`Stored::file`] is the place in [`Folder::weights`].
    pub(crate) fn tensors(&self, path: &Path) -> Result<BTreeMap<String, Stored>, BaseError> {
        let mut tensors = BTreeMap::new();
        for (index, weights) in self.weights.iter().enumerate() {
            let part = safe::parse(&weights.bytes, index);
            let part = part.and_then(|part| add_part(&mut tensors, part, weights.expected.as_deref()));
            part.map_err(|refusal| refusal.about(&path.join(&weights.name)))?;
        }
        Ok(tensors)
    }
}

/// Adds one file's tensors to those of the files before it.
fn add_part(
    tensors: &mut BTreeMap<String, Stored>,
    part: BTreeMap<String, Stored>,
    expected: Option<&[String]>,
) -> Result<(), Refusal> {
    if let Some(absent) = expected.into_iter().flatten().find(|name| !part.contains_key(*name)) {
        return Refusal::malformed(format!("tensor {absent} is missing, which the index places here"));
    }
    for (name, tensor) in part {
        if tensors.contains_key(&name) {
            return Refusal::malformed(format!("tensor {name} is also in another shard"));
        }
        tensors.insert(name, tensor);
    }
    Ok(())
}
