//! Strict CSV, streamed: every quote closes, every record knows its line, and no more is held than one record.
//!
//! ```text
//!            .--other--> Bare ---comma, line break---.
//! FieldStart              '-quote--> refused          '--> FieldStart of the next field or record
//!            '--quote--> Quoted --quote--> QuoteSeen -comma, line break-'
//!                          ^-----quote--------'  '-other--> refused
//! ```
//! The rule is RFC 4180's: a field begins with a quote or has none inside, and a closing quote ends the field. The
//! `csv` crate forgives broken quotes by swallowing what follows them; where none is broken, this reads what it reads
//! (tested). A line ends with `\n`, `\r\n` or `\r`; empty lines are passed over.

use std::io::Read;

use super::CorpusError;

/// Bytes read at a time: a system call per 600 rows of MELD, and still in a core's cache (not tuned).
const CHUNK_BYTES: usize = 64 << 10;

/// Longest record. No utterance is a thousandth of it; a quote left open makes everything after it one record.
const RECORD_BYTES_MAX: usize = 16 << 20;

const BYTE_ORDER_MARK: char = '\u{feff}';

/// The records of one file, one at a time.
pub(super) struct Records<R> {
    file: String,
    source: R,
    /// What was read and is valid UTF-8.
    chunk: String,
    /// How much of the chunk was consumed.
    at: usize,
    /// The beginning of a character that the next read ends.
    torn: Vec<u8>,
    /// Bytes of the file before the chunk.
    offset: u64,
    /// Line of the next byte; the first is 1.
    line: u64,
    /// Line on which the field at hand begins.
    field_line: u64,
    record: Record,
}

/// One record: the header's, or a row.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Line on which it begins; the header's is mostly 1.
    pub(super) line: u64,
    text: String,
    ends: Vec<usize>,
    /// Whether it is longer than a record may be, and so is not all here.
    cut: bool,
}

/// Where the walk over the bytes stands.
#[derive(Clone, Copy)]
enum Place {
    FieldStart,
    Bare,
    Quoted,
    /// After a quote inside a quoted field: it ends the field, unless another quote follows.
    QuoteSeen,
}

impl Record {
    /// Number of fields.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// A field, by its place.
    pub(super) fn field(&self, place: usize) -> &str {
        let start = if place == 0 { 0 } else { self.ends[place - 1] };
        &self.text[start..self.ends[place]]
    }

    /// All fields.
    pub(super) fn fields(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).map(|place| self.field(place))
    }

    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        self.cut = false;
    }

    fn push(&mut self, text: &str) {
        self.cut |= self.text.len() + text.len() > RECORD_BYTES_MAX;
        if !self.cut {
            self.text.push_str(text);
        }
    }

    fn end_field(&mut self) {
        // A field takes a byte at least, its comma.
        self.cut |= self.ends.len() >= RECORD_BYTES_MAX;
        if !self.cut || self.ends.is_empty() {
            self.ends.push(self.text.len());
        }
    }
}

impl<R: Read> Records<R> {
    /// The records of `source`; a byte order mark in front is passed over. `file` is its name in messages.
    pub(super) fn new(file: &str, source: R) -> Self {
        let (chunk, torn, record) = (String::new(), Vec::new(), Record::default());
        Self { file: file.into(), source, chunk, at: 0, torn, offset: 0, line: 1, field_line: 1, record }
    }

    /// The file's name.
    pub(super) fn file(&self) -> &str {
        &self.file
    }

    /// Bytes of the file that were read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.offset + (self.chunk.len() + self.torn.len()) as u64
    }

    /// The record that was read last.
    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// Reads the next record; `false`: there is none.
    ///
    /// # Errors
    /// When the file cannot be read, is not UTF-8, has a broken quote or a record without end.
    pub(super) fn advance(&mut self) -> Result<bool, CorpusError> {
        self.record.clear();
        let mut place = Place::FieldStart;
        while self.at < self.chunk.len() || self.fill()? {
            let byte = self.chunk.as_bytes()[self.at];
            let breaks = matches!(byte, b'\r' | b'\n');
            if let Place::FieldStart = place {
                if breaks && self.record.ends.is_empty() {
                    self.pass(byte);
                    continue;
                }
                self.begin_field();
            }
            place = match (place, byte) {
                (Place::FieldStart, b'"') => self.pass_to(byte, Place::Quoted),
                (Place::Quoted, b'"') => self.pass_to(byte, Place::QuoteSeen),
                (Place::Quoted, _) => self.take_until(|byte| byte == b'"', Place::Quoted),
                (Place::QuoteSeen, b'"') => {
                    self.record.push("\"");
                    self.pass_to(byte, Place::Quoted)
                }
                (_, b',') => {
                    self.record.end_field();
                    self.pass_to(byte, Place::FieldStart)
                }
                _ if breaks => {
                    self.record.end_field();
                    self.pass(byte);
                    return self.whole();
                }
                (Place::QuoteSeen, _) => {
                    return self.broken(self.field_line, "text follows the quote that closes a field");
                }
                (Place::Bare, b'"') => {
                    return self.broken(self.line, "a quote inside a field that does not begin with one");
                }
                (Place::FieldStart | Place::Bare, _) => {
                    self.take_until(|byte| matches!(byte, b',' | b'"' | b'\r' | b'\n'), Place::Bare)
                }
            };
        }
        match place {
            Place::FieldStart if self.record.ends.is_empty() => Ok(false),
            Place::Quoted => self.broken(self.field_line, "it opens a field and is never closed"),
            Place::FieldStart | Place::Bare | Place::QuoteSeen => {
                self.record.end_field();
                self.whole()
            }
        }
    }

    /// Reads what is left without splitting it: for when something is wrong already.
    ///
    /// # Errors
    /// When the rest cannot be read or is not UTF-8.
    pub(super) fn check_rest(&mut self) -> Result<(), CorpusError> {
        loop {
            self.line += newlines(&self.chunk.as_bytes()[self.at..]);
            if !self.fill()? {
                return Ok(());
            }
        }
    }

    fn begin_field(&mut self) {
        self.field_line = self.line;
        if self.record.ends.is_empty() {
            self.record.line = self.line;
        }
    }

    fn pass(&mut self, byte: u8) {
        self.at += 1;
        self.line += u64::from(byte == b'\n');
    }

    fn pass_to(&mut self, byte: u8, place: Place) -> Place {
        self.pass(byte);
        place
    }

    /// Takes text up to a byte that ends it, or to the end of the chunk.
    fn take_until(&mut self, ends: impl Fn(u8) -> bool, place: Place) -> Place {
        let rest = &self.chunk.as_bytes()[self.at..];
        let length = rest.iter().position(|&byte| ends(byte)).unwrap_or(rest.len());
        self.line += newlines(&rest[..length]);
        self.record.push(&self.chunk[self.at..self.at + length]);
        self.at += length;
        place
    }

    fn whole(&self) -> Result<bool, CorpusError> {
        if self.record.cut {
            let (file, row) = (self.file.clone(), self.record.line);
            return Err(CorpusError::LongRow { file, row, most: RECORD_BYTES_MAX });
        }
        Ok(true)
    }

    fn broken<T>(&self, row: u64, problem: &'static str) -> Result<T, CorpusError> {
        Err(CorpusError::Quote { file: self.file.clone(), row, problem })
    }

    /// Replaces the chunk, which was consumed, by the next one; `false`: there is none.
    fn fill(&mut self) -> Result<bool, CorpusError> {
        self.offset += self.chunk.len() as u64;
        let mut bytes = std::mem::take(&mut self.chunk).into_bytes();
        bytes.clear();
        bytes.append(&mut self.torn);
        let read = (&mut self.source).take(CHUNK_BYTES as u64).read_to_end(&mut bytes);
        let read = read.map_err(|source| CorpusError::Unreadable { path: self.file.clone(), source })?;
        if let Err(error) = std::str::from_utf8(&bytes) {
            let valid = error.valid_up_to();
            let ends_here = error.error_len().is_none() && read > 0;
            if !ends_here {
                let (row, byte) = (self.line + newlines(&bytes[..valid]), self.offset + valid as u64);
                return Err(CorpusError::NotUtf8 { file: self.file.clone(), row, byte });
            }
            self.torn.extend(bytes.drain(valid..));
        }
        self.chunk = String::from_utf8(bytes).expect("what is not valid was cut off");
        self.at =
            if self.offset == 0 && self.chunk.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len_utf8() } else { 0 };
        // Nothing but the beginning of a character was read: what ends it is yet to come, or it is an error.
        if self.chunk.is_empty() && read > 0 { self.fill() } else { Ok(!self.chunk.is_empty()) }
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().map(|&byte| u64::from(byte == b'\n')).sum()
}
