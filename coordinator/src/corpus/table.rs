//! Strict CSV: every row has the header's fields, every quote closes, every row knows its line.
//!
//! The `csv` crate splits fields, but forgives broken quotes by swallowing what follows them; so the quotes are walked
//! first, by the rule of RFC 4180: a field begins with a quote or has none, and a closing quote ends the field.

use super::CorpusError;

/// A CSV file in memory.
#[derive(Debug)]
pub(super) struct Table {
    file: String,
    header: Vec<String>,
    rows: Vec<Row>,
}

/// One row below the header.
#[derive(Debug)]
pub(super) struct Row {
    /// Line on which it begins; the header's is 1.
    pub(super) line: u64,
    fields: csv::StringRecord,
}

impl Row {
    /// The field of a column found by [`Table::column`].
    pub(super) fn field(&self, column: usize) -> &str {
        &self.fields[column]
    }
}

impl Table {
    /// Reads all rows of `bytes`; a byte order mark in front is passed over.
    pub(super) fn parse(file: &str, bytes: &[u8]) -> Result<Self, CorpusError> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let byte = error.valid_up_to();
            CorpusError::NotUtf8 { file: file.into(), row: 1 + newlines(&bytes[..byte]), byte }
        })?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        check_quotes(file, text)?;
        let mut reader = csv::ReaderBuilder::new().flexible(true).has_headers(false).from_reader(text.as_bytes());
        let mut rows = Vec::new();
        let (mut line, mut counted) = (1, 0);
        for record in reader.records() {
            let fields = record.expect("memory does not fail, UTF-8 was checked, and any length is allowed");
            // A record's position may still be before the line break that ended the last one.
            let position = fields.position().expect("a record that was read has a position").byte();
            let at = usize::try_from(position).expect("a position in memory is a usize");
            let breaks = text.as_bytes()[at..].iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
            line += newlines(&text.as_bytes()[counted..at + breaks]);
            counted = at + breaks;
            rows.push(Row { line, fields });
        }
        Self::with_header(file, rows)
    }

    fn with_header(file: &str, mut rows: Vec<Row>) -> Result<Self, CorpusError> {
        let header: Vec<String> = match rows.is_empty() {
            true => Vec::new(),
            false => rows.remove(0).fields.iter().map(str::to_owned).collect(),
        };
        let expected = header.len();
        if let Some(row) = rows.iter().find(|row| row.fields.len() != expected) {
            let found = row.fields.len();
            return Err(CorpusError::Fields { file: file.into(), row: row.line, expected, found });
        }
        Ok(Self { file: file.into(), header, rows })
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }

    pub(super) fn header(&self) -> &[String] {
        &self.header
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Where a column stands.
    pub(super) fn column(&self, column: &'static str) -> Result<usize, CorpusError> {
        self.header.iter().position(|c| c == column).ok_or_else(|| {
            let found = if self.header.is_empty() { "an empty file".into() } else { self.header.join(",") };
            CorpusError::MissingColumn { file: self.file.clone(), column, found }
        })
    }

    /// A field that must be a whole number.
    pub(super) fn number(&self, row: &Row, name: &'static str, column: usize) -> Result<u64, CorpusError> {
        let value = row.field(column);
        value.trim().parse().map_err(|_| CorpusError::NotANumber {
            file: self.file.clone(),
            row: row.line,
            column: name,
            value: value.to_owned(),
        })
    }

    /// A field that must not be blank, as it stands.
    pub(super) fn text<'a>(&self, row: &'a Row, name: &'static str, column: usize) -> Result<&'a str, CorpusError> {
        let text = row.field(column);
        if text.trim().is_empty() {
            return Err(CorpusError::EmptyText { file: self.file.clone(), row: row.line, column: name });
        }
        Ok(text)
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().map(|&b| u64::from(b == b'\n')).sum()
}

/// Where the walk over the quotes stands.
#[derive(Clone, Copy)]
enum Place {
    FieldStart,
    Bare,
    Quoted,
    /// After a quote inside a quoted field: it ends the field, unless another quote follows.
    QuoteSeen,
}

/// Refuses quotes that RFC 4180 does not allow.
fn check_quotes(file: &str, text: &str) -> Result<(), CorpusError> {
    let broken = |row, problem| Err(CorpusError::Quote { file: file.into(), row, problem });
    let (mut line, mut field_line, mut place) = (1, 1, Place::FieldStart);
    for byte in text.bytes() {
        place = match (place, byte) {
            (Place::FieldStart, b'"') => {
                field_line = line;
                Place::Quoted
            }
            (Place::Quoted, b'"') => Place::QuoteSeen,
            (Place::QuoteSeen, b'"') | (Place::Quoted, _) => Place::Quoted,
            (Place::FieldStart | Place::Bare | Place::QuoteSeen, b',' | b'\r' | b'\n') => Place::FieldStart,
            (Place::QuoteSeen, _) => return broken(field_line, "text follows the quote that closes a field"),
            (Place::Bare, b'"') => return broken(line, "a quote inside a field that does not begin with one"),
            (Place::FieldStart | Place::Bare, _) => Place::Bare,
        };
        line += u64::from(byte == b'\n');
    }
    match place {
        Place::Quoted => broken(field_line, "it opens a field and is never closed"),
        _ => Ok(()),
    }
}
