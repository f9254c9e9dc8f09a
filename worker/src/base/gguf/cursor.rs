//! Reading a GGUF file's head: bounded little-endian fields, then typed values.
//!
//! Nothing a file says about its own size is believed: a length is compared with the bytes that are left before
//! anything is taken or allocated for it, and arrays stay in the file until someone walks them.

use crate::base::error::Refusal;

/// Deepest nesting of arrays that is read. The format allows any; no writer goes beyond one.
const ARRAY_DEPTH_MAX: u32 = 4;

/// A position in bytes that never leaves them.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Takes `count` bytes for `what`.
    pub(super) fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], Refusal> {
        let left = self.left();
        match usize::try_from(count) {
            Ok(count) if count <= left => {
                let taken = &self.bytes[self.at..self.at + count];
                self.at += count;
                Ok(taken)
            }
            _ => Refusal::malformed(format!(
                "{what} at byte {} needs {count} bytes, {left} are left: the file is truncated or damaged",
                self.at
            )),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Refusal> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Refusal> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Refusal> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(super) fn bytes_with_length(&mut self, what: &str) -> Result<&'a [u8], Refusal> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    pub(super) fn string(&mut self, what: &str) -> Result<&'a str, Refusal> {
        let at = self.at;
        let bytes = self.bytes_with_length(what)?;
        std::str::from_utf8(bytes).or_else(|_| Refusal::malformed(format!("{what} at byte {at} is not UTF-8")))
    }

    /// Refuses `count` things of at least `each` bytes where the rest of the file can't hold them.
    pub(super) fn expect_room(&self, count: u64, each: u64, what: &str) -> Result<(), Refusal> {
        match count.checked_mul(each) {
            Some(bytes) if bytes <= self.left() as u64 => Ok(()),
            _ => Refusal::malformed(format!(
                "{count} {what} at byte {} need at least {each} bytes each, {} are left: the file is truncated or damaged",
                self.at,
                self.left()
            )),
        }
    }
}

/// The type of a metadata value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Kind, Refusal> {
        use Kind::*;
        const ALL: [Kind; 13] = [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64];
        let number = cursor.u32("value type")?;
        let kind = usize::try_from(number).ok().and_then(|n| ALL.get(n));
        kind.copied().ok_or_else(|| Refusal::Malformed(format!("{key} has value type {number}, expected 0 to 12")))
    }

    /// Bytes of one value; for strings and arrays, the least there can be.
    fn bytes(self) -> u64 {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 | Kind::String => 8,
            Kind::Array => 12,
        }
    }
}

/// A metadata value; strings and arrays stay in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(&'a [u8]),
    Array(Array<'a>),
}

/// An array whose elements have all been walked once, so that walking them again can't fail.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Array<'a> {
    pub(super) kind: Kind,
    pub(super) count: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The elements, one after the other.
    pub(super) fn values(&self) -> impl Iterator<Item = Result<Value<'a>, Refusal>> + use<'a> {
        let (kind, mut cursor) = (self.kind, Cursor::new(self.bytes));
        (0..self.count).map(move |_| value_of(kind, &mut cursor, "array element", 1))
    }
}

impl<'a> Value<'a> {
    /// Reads a type and the value that follows it.
    pub(super) fn read(cursor: &mut Cursor<'a>, key: &str) -> Result<Value<'a>, Refusal> {
        let kind = Kind::read(cursor, key)?;
        value_of(kind, cursor, key, 0)
    }
}

fn value_of<'a>(kind: Kind, cursor: &mut Cursor<'a>, key: &str, depth: u32) -> Result<Value<'a>, Refusal> {
    Ok(match kind {
        Kind::U8 => Value::Unsigned(u8::from_le_bytes(cursor.array(key)?).into()),
        Kind::I8 => Value::Signed(i8::from_le_bytes(cursor.array(key)?).into()),
        Kind::U16 => Value::Unsigned(u16::from_le_bytes(cursor.array(key)?).into()),
        Kind::I16 => Value::Signed(i16::from_le_bytes(cursor.array(key)?).into()),
        Kind::U32 => Value::Unsigned(cursor.u32(key)?.into()),
        Kind::I32 => Value::Signed(i32::from_le_bytes(cursor.array(key)?).into()),
        Kind::F32 => Value::Float(f32::from_le_bytes(cursor.array(key)?).into()),
        Kind::Bool => Value::Bool(cursor.array::<1>(key)? != [0]),
        Kind::String => Value::String(cursor.bytes_with_length(key)?),
        Kind::Array => Value::Array(array_of(cursor, key, depth + 1)?),
        Kind::U64 => Value::Unsigned(cursor.u64(key)?),
        Kind::I64 => Value::Signed(i64::from_le_bytes(cursor.array(key)?)),
        Kind::F64 => Value::Float(f64::from_le_bytes(cursor.array(key)?)),
    })
}

fn array_of<'a>(cursor: &mut Cursor<'a>, key: &str, depth: u32) -> Result<Array<'a>, Refusal> {
    if depth > ARRAY_DEPTH_MAX {
        return Refusal::malformed(format!("{key} nests arrays deeper than {ARRAY_DEPTH_MAX}"));
    }
    let kind = Kind::read(cursor, key)?;
    let count = cursor.u64(key)?;
    cursor.expect_room(count, kind.bytes(), &format!("elements of {key}"))?;
    let start = cursor.clone();
    match kind {
        Kind::String => (0..count).try_for_each(|_| cursor.bytes_with_length(key).map(drop))?,
        Kind::Array => (0..count).try_for_each(|_| array_of(cursor, key, depth + 1).map(drop))?,
        _ => cursor.take(count * kind.bytes(), key).map(drop)?,
    }
    Ok(Array { kind, count: count as usize, bytes: &start.bytes[start.at..cursor.at] })
}
