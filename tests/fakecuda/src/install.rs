//! For tests: a folder that stands in for a CUDA installation.
//!
//! ```text
//! let folder = insula_fakecuda::install(&temporary)?;
//! Command::new(program).env("LD_LIBRARY_PATH", &folder).env("INSULA_FAKECUDA_DEVICES", "2")
//! ```
#![expect(clippy::disallowed_methods, reason = "tests call this to make a folder of links")]

use std::io;
use std::path::{Path, PathBuf};

/// The cdylib's file name.
const LIBRARY: &str = "libinsula_fakecuda.so";

/// The names that programs look for: cudarc's, in the order of its search, and those of NVIDIA's packages.
const NAMES: [&str; 6] =
    ["libcuda.so", "libcuda.so.1", "libcublasLt.so", "libcublasLt.so.12", "libnccl.so", "libnccl.so.2"];

/// Makes `folder` (with its parents) hold the three libraries, and returns it, to be the `LD_LIBRARY_PATH` of a process.
/// The names are links to one file, so one process loads it once and all three share their state.
///
/// # Errors
/// The cdylib is not beside the running test, or the folder cannot be written.
pub fn install(folder: &Path) -> io::Result<PathBuf> {
    let library = library()?;
    std::fs::create_dir_all(folder)?;
    for name in NAMES {
        match std::os::unix::fs::symlink(&library, folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(folder.to_owned())
}

/// The cdylib that cargo built with the running test: in the same folder (a dependency's place) or the one above.
///
/// # Errors
/// It is in neither.
pub fn library() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let found = program.ancestors().skip(1).take(2).map(|folder| folder.join(LIBRARY)).find(|path| path.exists());
    let missing = || {
        let message = format!("{LIBRARY} is not beside {}; build insula-fakecuda first", program.display());
        io::Error::new(io::ErrorKind::NotFound, message)
    };
    found.ok_or_else(missing)
}
