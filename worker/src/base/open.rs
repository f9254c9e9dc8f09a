//! Opening a base, whichever format it is in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::Refusal;
use super::folder::Folder;
use super::map::MappedFile;
use super::tensors::{self, Stored};
use super::{BaseError, ModelConfig, TensorSource, digest, gguf, hf, shell};
use crate::tokenize::Tokenizer;

/// A frozen pretrained model: its configuration, and its tensors, which stay in their files until they are read.
#[derive(Debug)]
pub struct Base {
    /// Dimensions and constants; checked against the tensors.
    pub config: ModelConfig,
    /// `sha256:<hex>`: of the bytes of a `.gguf` file; of the `sha256sum` listing of `config.json`, `tokenizer.json` and
    /// the weight files of a folder, sorted by name.
    pub digest: String,
    /// What the file calls itself, or the name of the file or folder.
    pub name: String,
    path: PathBuf,
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Stored>,
    vocabulary: Vocabulary,
}

/// Where the tokenizer comes from; it is built when it is asked for.
#[derive(Debug)]
enum Vocabulary {
    /// The base's one file.
    Gguf,
    /// A folder's `tokenizer.json`, with its end-of-sequence token by text or number as other files there name it.
    Json { json: MappedFile, eos_text: Option<String>, eos: Option<u32> },
    /// The folder has no `tokenizer.json`.
    Absent,
}

impl Base {
    /// Opens a `.gguf` file, or a Hugging Face folder with `config.json` and `model.safetensors` (or its shards and
    /// `model.safetensors.index.json`). Reads all of it once, for the digest.
    ///
    /// # Errors
    /// When files are missing, damaged or hostile, or the model is not of the plain Llama architecture.
    pub fn open(path: impl AsRef<Path>) -> Result<Base, BaseError> {
        let path = path.as_ref();
        if path.is_dir() { open_folder(path) } else { open_gguf(path) }
    }

    /// Builds the base's tokenizer.
    ///
    /// # Errors
    /// When the base has none, or one that is damaged or not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer, BaseError> {
        let (path, built) = match &self.vocabulary {
            Vocabulary::Gguf => {
                (self.path.clone(), gguf::parse_vocabulary(&self.files[0]).and_then(Tokenizer::from_gguf))
            }
            Vocabulary::Json { json, eos_text, eos } => {
                (self.path.join("tokenizer.json"), Tokenizer::from_json(json, eos_text.as_deref(), *eos))
            }
            Vocabulary::Absent => (self.path.clone(), Refusal::unsupported("has no tokenizer.json")),
        };
        let tokenizer = built.map_err(|refusal| refusal.about(&path))?;
        if tokenizer.vocab() > self.config.vocab {
            let (tokens, rows) = (tokenizer.vocab(), self.config.vocab);
            return Err(BaseError::malformed(
                &path,
                format!("{tokens} tokens, but the embedding table has {rows} rows"),
            ));
        }
        Ok(tokenizer)
    }

    /// Size of its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len() as u64).sum()
    }

    /// The names of the tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

impl TensorSource for Base {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|tensor| tensor.shape.clone())
    }

    fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<(), BaseError> {
        let tensor = self.tensors.get(name).ok_or_else(|| BaseError::MissingTensor { name: name.to_owned() })?;
        let (found, expected) = (tensor.elements(), out.len());
        if found != expected {
            return Err(BaseError::TensorSize { name: name.to_owned(), found, expected });
        }
        tensor.decode(&self.files[tensor.file], out);
        Ok(())
    }
}

/// The digest that [`Base::open`] would find, without reading the files' meaning.
pub(crate) fn digest_of(path: &Path) -> Result<String, BaseError> {
    if path.is_dir() {
        return Ok(Folder::map(path)?.digest());
    }
    Ok(digest::of_file(&shell::map(path)?))
}

fn open_gguf(path: &Path) -> Result<Base, BaseError> {
    let file = shell::map(path)?;
    let contents = gguf::parse(&file).map_err(|refusal| refusal.about(path))?;
    check(&contents.config, &contents.tensors).map_err(|refusal| refusal.about(path))?;
    Ok(Base {
        config: contents.config,
        digest: digest::of_file(&file),
        name: contents.name.unwrap_or_else(|| file_name(path)),
        path: path.to_owned(),
        files: vec![file],
        tensors: contents.tensors,
        vocabulary: Vocabulary::Gguf,
    })
}

fn open_folder(path: &Path) -> Result<Base, BaseError> {
    let mut folder = Folder::map(path)?;
    let config_path = path.join("config.json");
    let config = hf::parse_config(&folder.config).map_err(|refusal| refusal.about(&config_path))?;
    let digest = folder.digest();
    let tokenizer_config = folder.settings.remove("tokenizer_config.json");
    let vocabulary = folder_vocabulary(&folder.config, folder.tokenizer.take(), tokenizer_config.as_deref());
    let mut tensors = folder.tensors(path)?;
    if config.tied {
        tensors.remove("lm_head.weight");
    }
    check(&config, &tensors).map_err(|refusal| refusal.about(path))?;
    let files = folder.weights.into_iter().map(|weights| weights.bytes).collect();
    Ok(Base { config, digest, name: file_name(path), path: path.to_owned(), files, tensors, vocabulary })
}

fn folder_vocabulary(config: &[u8], json: Option<MappedFile>, tokenizer_config: Option<&[u8]>) -> Vocabulary {
    let Some(json) = json else { return Vocabulary::Absent };
    Vocabulary::Json { json, eos_text: tokenizer_config.and_then(hf::parse_eos_text), eos: hf::parse_eos(config) }
}

/// Checks the configuration by itself, then against the tensors.
fn check(config: &ModelConfig, tensors: &BTreeMap<String, Stored>) -> Result<(), Refusal> {
    let ModelConfig { heads, kv_heads, head_dim, .. } = *config;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Refusal::malformed(format!("{kv_heads} key/value heads do not divide {heads} query heads"));
    }
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Refusal::malformed(format!("a head's width is {head_dim}, expected an even number above 0"));
    }
    let positive = [("layers", config.layers), ("context", config.context), ("vocabulary", config.vocab)];
    if let Some((what, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return Refusal::malformed(format!("{what} is 0, expected at least 1"));
    }
    if !(config.rope_theta.is_finite() && config.rope_theta > 0.0) {
        return Refusal::malformed(format!("rope theta is {}, expected a finite number above 0", config.rope_theta));
    }
    if !(config.rms_eps.is_finite() && config.rms_eps >= 0.0) {
        return Refusal::malformed(format!(
            "rms epsilon is {}, expected a finite number of at least 0",
            config.rms_eps
        ));
    }
    tensors::check(config, tensors)
}

fn file_name(path: &Path) -> String {
    let path = if path.file_name().is_some() { path.to_owned() } else { path.canonicalize().unwrap_or_default() };
    path.file_name().map_or_else(|| "base".into(), |name| name.to_string_lossy().into_owned())
}
