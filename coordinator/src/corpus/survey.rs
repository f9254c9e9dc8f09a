//! The first pass over a file: is it whole, what are its columns, do its dialogues' rows stand together?
//!
//! It holds nothing but the dialogues' numbers, as runs, so the second pass may build dialogues one by one and forget
//! them: it is known that none comes back.

use std::{collections::BTreeMap, io::Read};

use super::{
    Asked, CorpusError, Layout,
    records::{Record, Records},
};

/// What a file is, before its rows are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Survey {
    pub(super) header: Vec<String>,
    /// Bytes of the whole file.
    pub(super) bytes: u64,
    /// The first row that comes back to a dialogue that had ended.
    pub(super) scattered: Option<u64>,
}

/// What makes a dialogue another: MELD's number, or EmoryNLP's season, episode and scene.
pub(super) type Key = [u64; 3];

/// Reads the whole file once.
///
/// # Errors
/// The gravest thing that is wrong: with the bytes, else with a quote, else with a row's number of fields.
pub(super) fn survey<R: Read>(mut records: Records<R>, asked: Asked) -> Result<Survey, CorpusError> {
    let has_header = advance(&mut records)?;
    let header: Vec<String> = records.record().fields().filter(|_| has_header).map(str::to_owned).collect();
    let mut watch = Watch { places: key_places(asked, &header), seen: Runs::default(), last: None };
    let (mut wrong, mut scattered) = (None, None);
    while advance(&mut records)? {
        let row = records.record();
        if row.len() != header.len() {
            let (file, row, found) = (records.file().to_owned(), row.line, row.len());
            wrong.get_or_insert(CorpusError::Fields { file, row, expected: header.len(), found });
        } else if scattered.is_none() && watch.comes_back(row) {
            scattered = Some(row.line);
        }
    }
    match wrong {
        Some(error) => Err(error),
        None => Ok(Survey { header, bytes: records.bytes(), scattered }),
    }
}

/// The next record. After a broken quote nothing can be split, but the bytes that are left may be worse.
fn advance<R: Read>(records: &mut Records<R>) -> Result<bool, CorpusError> {
    let advanced = records.advance();
    if let Err(CorpusError::Quote { .. }) = advanced {
        records.check_rest()?;
    }
    advanced
}

/// Where the columns of the dialogue's key stand; none where the layout or a column is missing, which is told later.
fn key_places(asked: Asked, header: &[String]) -> Option<Vec<usize>> {
    let layout = match asked {
        Asked::Named(layout) => layout,
        Asked::Auto => Layout::of_header(header)?,
    };
    layout.key().iter().map(|name| header.iter().position(|column| column == name)).collect()
}

/// Watches for dialogues that come back.
struct Watch {
    places: Option<Vec<usize>>,
    seen: Runs,
    last: Option<Key>,
}

impl Watch {
    fn comes_back(&mut self, row: &Record) -> bool {
        // A row without a readable key is refused by the second pass.
        let Some(key) = self.places.as_ref().and_then(|places| key_of(row, places)) else { return false };
        if self.last == Some(key) {
            return false;
        }
        self.last = Some(key);
        !self.seen.insert(key)
    }
}

/// The key of a row, if its numbers are numbers.
fn key_of(row: &Record, places: &[usize]) -> Option<Key> {
    let mut key = Key::default();
    // The last number is the one that counts up.
    for (part, &place) in key.iter_mut().rev().zip(places.iter().rev()) {
        *part = row.field(place).trim().parse().ok()?;
    }
    Some(key)
}

/// A set of keys, kept as runs of neighbours: files number their dialogues in order, so there are few.
#[derive(Debug, Default)]
struct Runs(BTreeMap<Key, u64>);

impl Runs {
    /// Adds a key; `false`: it was there.
    fn insert(&mut self, key: Key) -> bool {
        let [.., last] = key;
        let run = self.0.range_mut(..=key).next_back();
        let run = run.filter(|(first, _)| first[..2] == key[..2]);
        match run {
            Some((_, end)) if last <= *end => false,
            Some((_, end)) if last == *end + 1 => {
                *end = last;
                true
            }
            _ => {
                self.0.insert(key, last);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_a_set(keys in prop::collection::vec((0u64..3, 0u64..2, 0u64..20), 0..60)) {
            let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
            for (a, b, c) in keys {
                prop_assert_eq!(runs.insert([a, b, c]), set.insert([a, b, c]));
            }
        }
    }

    #[test]
    fn dialogues_in_order_are_one_run() {
        let mut runs = Runs::default();
        assert!((0..1000).all(|n| runs.insert([n / 500, 0, n % 500])));
        assert_eq!(runs.0.len(), 2);
        assert!(!runs.insert([1, 0, 7]));
        assert!(runs.insert([0, 0, u64::MAX]) && !runs.insert([0, 0, u64::MAX]));
    }
}
