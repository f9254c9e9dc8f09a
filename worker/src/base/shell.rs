//! The one room of the loader that touches the world: it opens, lists, writes and moves files, and decides nothing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::BaseError;
use super::map::MappedFile;

/// Maps a file into memory.
#[expect(clippy::disallowed_methods, reason = "the loader's one way to open a file")]
pub(crate) fn map(path: &Path) -> Result<MappedFile, BaseError> {
    let file = File::open(path).map_err(|cause| BaseError::io(path, cause))?;
    MappedFile::new(&file).map_err(|cause| BaseError::io(path, cause))
}

/// Maps a file, where there is one.
pub(crate) fn map_if_there(path: &Path) -> Result<Option<MappedFile>, BaseError> {
    match map(path) {
        Ok(file) => Ok(Some(file)),
        Err(BaseError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates a folder and those above it.
#[expect(clippy::disallowed_methods, reason = "the loader's one way to make a folder")]
pub(crate) fn create_folder(path: &Path) -> Result<(), BaseError> {
    fs::create_dir_all(path).map_err(|cause| BaseError::io(path, cause))
}

/// Opens a file for reading.
#[expect(clippy::disallowed_methods, reason = "the loader's one way to stream a file")]
pub(crate) fn open(path: &Path) -> Result<File, BaseError> {
    File::open(path).map_err(|cause| BaseError::io(path, cause))
}

/// The paths in a folder, sorted.
#[expect(clippy::disallowed_methods, reason = "the loader's one look into a folder")]
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>, BaseError> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> = entries.map_err(|cause| BaseError::io(folder, cause))?;
    paths.sort();
    Ok(paths)
}

/// Moves a file on one file system, replacing what was there, and creating the folder it goes to.
#[expect(clippy::disallowed_methods, reason = "the loader's one way to put a file in its place")]
pub(crate) fn move_file(from: &Path, to: &Path) -> Result<(), BaseError> {
    to.parent().map_or(Ok(()), create_folder)?;
    fs::rename(from, to).map_err(|cause| BaseError::io(to, cause))
}

/// Writes a file so that a reader sees all of it or none: under a name of its own first, then renamed.
///
/// `write` fills the temporary file, which lies beside `path`, and may return something about what it wrote.
pub(crate) fn write_whole<T>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<T, BaseError>,
) -> Result<T, BaseError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    create_folder(folder)?;
    let mut file = temporary_beside(folder).map_err(|cause| BaseError::io(folder, cause))?;
    let written = write(file.as_file_mut())?;
    let finish = file.as_file_mut().flush().and_then(|()| file.as_file().sync_all());
    finish.map_err(|cause| BaseError::io(file.path(), cause))?;
    file.persist(path).map_err(|failed| BaseError::io(path, failed.error))?;
    Ok(written)
}

/// [`write_whole`] of bytes that are at hand.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), BaseError> {
    write_whole(path, |file| file.write_all(bytes).map_err(|cause| BaseError::io(path, cause)))
}

/// A temporary file that others may read once it is in its place, as with any other file.
fn temporary_beside(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// The folder for fetched bases: `INSULA_CACHE`, else `insula` under `XDG_CACHE_HOME`, else `~/.cache/insula`.
/// `None` where the environment names none of them.
#[expect(clippy::disallowed_methods, reason = "the loader's one look at the environment")]
pub fn default_cache_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("INSULA_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("insula")))
        .or_else(|| set("HOME").map(|home| home.join(".cache").join("insula")))
}
