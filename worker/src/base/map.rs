//! A file's bytes as memory, without reading them all at once.
//!
//! A base is larger than anything else in the process and is read tensor by tensor, so its file is mapped, not
//! copied: the system may drop pages that were converted already.
#![expect(unsafe_code, reason = "memory-mapping a base is this module's one purpose")]

use std::fs::File;
use std::io;
use std::ops::Deref;

use memmap2::Mmap;

/// The read-only bytes of a whole file.
#[derive(Debug)]
pub(crate) struct MappedFile(Option<Mmap>);

impl MappedFile {
    /// Maps the whole of `file`; an empty file maps to no bytes.
    pub(crate) fn new(file: &File) -> io::Result<MappedFile> {
        if file.metadata()?.len() == 0 {
            return Ok(MappedFile(None));
        }
        // SAFETY: the map is private and read-only, its length is the file's, and its bytes are only ever read as
        // plain bytes, for which every bit pattern is valid. Nobody in this program writes to a base after it is
        // opened: the cache replaces files by rename, which leaves the mapped ones alone. Another program that
        // truncates the file under us ends the process with SIGBUS; that risk is accepted, as in every mmap loader.
        let map = unsafe { Mmap::map(file)? };
        Ok(MappedFile(Some(map)))
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}
