//! Python pickles read as plain data, and never as the programs they are.
//!
//! A pickle is a program for a small stack machine that may call any function by its name, so opening a stranger's
//! pickle in Python is running a stranger's code. This machine knows the opcodes that build dicts, lists, tuples,
//! sets, texts and numbers (protocols 0 to 5) and refuses those that name or call anything, with the name they would
//! have called. One exception: `set` and `frozenset` of a list, which is how protocols 2 and 3 write a set.
//!
//! Values lie in one table and refer to each other by place, so a pickle nested a million deep takes no call stack, and
//! a value that is shared a million times is held once. Whoever walks the values must bound what the sharing unfolds
//! to: [`Item`]s are handed out without end.

mod error;
mod machine;
mod ops;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) mod writer;

use std::borrow::Cow;

pub use self::error::{PickleError, Problem};
use super::text;

/// Most values in one pickle: DailyDialog's pickle has about half a million (reckoned), and a value takes 32 bytes.
pub const VALUES_MAX: usize = 8 << 20;

/// A pickle's values.
#[derive(Debug)]
pub struct Pickle {
    values: Vec<Value>,
    root: Place,
}

/// Where a value lies in the table.
type Place = u32;

/// One value; what it holds is told by place.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Place>),
    Tuple(Vec<Place>),
    Set(Vec<Place>),
    Dict(Vec<(Place, Place)>),
    /// The one thing that may be called: the type of sets.
    SetType,
}

impl Value {
    /// What Python calls it.
    fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) => "an int",
            Value::Float(_) => "a float",
            Value::Text(_) => "a str",
            Value::Bytes(_) => "bytes",
            Value::List(_) => "a list",
            Value::Tuple(_) => "a tuple",
            Value::Set(_) => "a set",
            Value::Dict(_) => "a dict",
            Value::SetType => "the type of sets",
        }
    }
}

impl Pickle {
    /// Reads the pickle at the beginning of `bytes`; what follows its end is left alone, as Python does.
    ///
    /// # Errors
    /// When it would call anything, is cut short, or is not a pickle; with opcode and byte offset.
    pub fn read(bytes: &[u8]) -> Result<Self, PickleError> {
        let (values, root) = machine::Machine::new(bytes).run()?;
        Ok(Self { values, root })
    }

    /// The value that was pickled.
    pub fn root(&self) -> Item<'_> {
        Item { pickle: self, place: self.root }
    }
}

/// A value of a pickle.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    pickle: &'a Pickle,
    place: Place,
}

impl<'a> Item<'a> {
    fn value(self) -> &'a Value {
        &self.pickle.values[self.place as usize]
    }

    /// What Python calls it, with its article: `a list`.
    pub fn kind(self) -> &'static str {
        self.value().kind()
    }

    /// Text, or bytes as Python 2 wrote its strings; see [`text::decoded`] and [`text::mended`].
    pub fn text(self) -> Option<Cow<'a, str>> {
        match self.value() {
            Value::Text(text) => Some(text::mended(text)),
            Value::Bytes(bytes) => Some(Cow::Owned(text::decoded(bytes))),
            _ => None,
        }
    }

    /// A whole number.
    pub fn int(self) -> Option<i64> {
        match self.value() {
            Value::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// A whole number, or a float or bool that equals one: marks of a one-hot list.
    pub fn whole(self) -> Option<i64> {
        match self.value() {
            Value::Int(number) => Some(*number),
            Value::Bool(bool) => Some(i64::from(*bool)),
            #[expect(clippy::cast_possible_truncation, reason = "a small whole number")]
            Value::Float(float) if float.fract() == 0.0 && float.abs() < 1e15 => Some(*float as i64),
            _ => None,
        }
    }

    /// The items of a list, tuple or set, in the pickle's order.
    pub fn items(self) -> Option<impl ExactSizeIterator<Item = Item<'a>>> {
        match self.value() {
            Value::List(places) | Value::Tuple(places) | Value::Set(places) => {
                Some(places.iter().map(move |&place| Item { place, ..self }))
            }
            _ => None,
        }
    }

    /// Keys and values of a dict, in the pickle's order; of two equal keys the later counts.
    pub fn pairs(self) -> Option<impl ExactSizeIterator<Item = (Item<'a>, Item<'a>)>> {
        let item = move |place| Item { place, ..self };
        match self.value() {
            Value::Dict(pairs) => Some(pairs.iter().map(move |&(key, value)| (item(key), item(value)))),
            _ => None,
        }
    }
}
