//! Kept answers on disk: `<cache>/external/<digest>.jsonl`, appended to as they come.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write as _},
    path::Path,
};

use insula_proto::ids::Digest;

use crate::external::{self, Answered, Kept};

/// A file of kept answers, open for more.
pub struct KeptFile {
    file: File,
}

impl KeptFile {
    /// Opens `folder/name`, making both where they are missing, and reads what it holds.
    #[expect(clippy::disallowed_methods, reason = "the room that keeps answers on disk")]
    pub fn open(folder: &Path, name: &str) -> std::io::Result<(Self, Kept)> {
        fs::create_dir_all(folder)?;
        let path = folder.join(name);
        let kept = match fs::read(&path) {
            Ok(bytes) => external::read(&bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error),
        };
        let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
        if kept.torn {
            file.write_all(b"\n")?;
        }
        Ok((Self { file }, kept))
    }

    /// Adds an answer in one write: lines of workers that share the file do not tangle, and a killed worker's answers
    /// are kept.
    pub fn keep(&mut self, prompt: &Digest, answered: &Answered) -> std::io::Result<()> {
        self.file.write_all(&external::line(prompt, answered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "tears a file as a crash would")]
    fn a_torn_file_goes_on_after_its_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("external");
        let answered = |text: &str| Answered { text: text.into(), input_tokens: 1, output_tokens: 1 };
        let [one, two, three] = [b"1", b"2", b"3"].map(|prompt| Digest::of(prompt));
        let (mut file, kept) = KeptFile::open(&folder, "a.jsonl").unwrap();
        assert_eq!(kept, Kept::default());
        file.keep(&one, &answered("joyful")).unwrap();
        file.keep(&two, &answered("sad")).unwrap();
        let bytes = fs::read(folder.join("a.jsonl")).unwrap();
        fs::write(folder.join("a.jsonl"), &bytes[..bytes.len() - 5]).unwrap();
        let (mut file, kept) = KeptFile::open(&folder, "a.jsonl").unwrap();
        assert_eq!(kept.answers.keys().collect::<Vec<_>>(), [&one]);
        file.keep(&three, &answered("angry")).unwrap();
        let (_, kept) = KeptFile::open(&folder, "a.jsonl").unwrap();
        assert_eq!((kept.answers.len(), kept.damaged), (2, 1));
        assert_eq!(kept.answers[&three], answered("angry"));
    }
}
