//! Opening a base, whichever format it is in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::Refusal;
use super::map::MappedFile;
use super::tensors::{self, Stored};
use super::{BaseError, ModelConfig, TensorSource, digest, gguf, hf, safe, shell};
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

/// The files of a Hugging Face folder that matter, mapped.
struct Folder {
    config: MappedFile,
    tokenizer: Option<MappedFile>,
    /// Name, bytes, and the tensors that an index expects in it.
    weights: Vec<(String, MappedFile, Option<Vec<String>>)>,
}

impl Folder {
    fn map(path: &Path) -> Result<Folder, BaseError> {
        let not_a_base = || BaseError::NotABase { path: path.to_owned() };
        let config = shell::map_if_there(&path.join("config.json"))?.ok_or_else(not_a_base)?;
        let tokenizer = shell::map_if_there(&path.join("tokenizer.json"))?;
        let index_path = path.join("model.safetensors.index.json");
        let weights = match shell::map_if_there(&index_path)? {
            None => {
                let whole = shell::map_if_there(&path.join("model.safetensors"))?.ok_or_else(not_a_base)?;
                vec![("model.safetensors".to_owned(), whole, None)]
            }
            Some(index) => {
                let index = safe::parse_index(&index).map_err(|refusal| refusal.about(&index_path))?;
                let map =
                    |(name, tensors): (String, _)| Ok((name.clone(), shell::map(&path.join(name))?, Some(tensors)));
                index.into_iter().map(map).collect::<Result<_, BaseError>>()?
            }
        };
        Ok(Folder { config, tokenizer, weights })
    }

    fn digest(&self) -> String {
        let mut files: Vec<(&str, &[u8])> = vec![("config.json", &self.config)];
        files.extend(self.tokenizer.as_deref().map(|bytes| ("tokenizer.json", bytes)));
        files.extend(self.weights.iter().map(|(name, bytes, _)| (name.as_str(), &**bytes)));
        digest::of_files(&files)
    }
}

fn open_folder(path: &Path) -> Result<Base, BaseError> {
    let folder = Folder::map(path)?;
    let config_path = path.join("config.json");
    let config = hf::parse_config(&folder.config).map_err(|refusal| refusal.about(&config_path))?;
    let digest = folder.digest();
    let vocabulary = folder_vocabulary(path, &folder.config, folder.tokenizer)?;
    let mut tensors = BTreeMap::new();
    let mut files = Vec::new();
    for (index, (name, file, expected)) in folder.weights.into_iter().enumerate() {
        let part = safe::parse(&file, index).and_then(|part| add_part(&mut tensors, part, expected));
        part.map_err(|refusal| refusal.about(&path.join(name)))?;
        files.push(file);
    }
    if config.tied {
        tensors.remove("lm_head.weight");
    }
    check(&config, &tensors).map_err(|refusal| refusal.about(path))?;
    Ok(Base { config, digest, name: file_name(path), path: path.to_owned(), files, tensors, vocabulary })
}

/// Adds one file's tensors to those of the files before it.
fn add_part(
    tensors: &mut BTreeMap<String, Stored>,
    part: BTreeMap<String, Stored>,
    expected: Option<Vec<String>>,
) -> Result<(), Refusal> {
    if let Some(absent) = expected.iter().flatten().find(|name| !part.contains_key(*name)) {
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

fn folder_vocabulary(path: &Path, config: &[u8], json: Option<MappedFile>) -> Result<Vocabulary, BaseError> {
    let Some(json) = json else { return Ok(Vocabulary::Absent) };
    let tokenizer_config = shell::map_if_there(&path.join("tokenizer_config.json"))?;
    let eos_text = tokenizer_config.and_then(|bytes| hf::parse_eos_text(&bytes));
    Ok(Vocabulary::Json { json, eos_text, eos: hf::parse_eos(config) })
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
