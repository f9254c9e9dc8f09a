//! A GGUF file's metadata and tensor table, checked against the file's true size.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::cursor::{Array, Cursor, Value};
use crate::base::error::Refusal;
use crate::base::quant::Encoding;

/// Alignment of tensor data where the file does not say.
const ALIGNMENT_DEFAULT: u64 = 32;
/// ggml's limit on the number of dimensions.
const DIMENSIONS_MAX: u32 = 4;
/// Least bytes of a metadata entry: key length, value type, one byte of value.
const ENTRY_BYTES_MIN: u64 = 13;
/// Least bytes of a tensor table entry: name length, dimensions, type, offset.
const TENSOR_BYTES_MIN: u64 = 24;

/// What a GGUF file says before its tensor data.
#[derive(Debug)]
pub(super) struct Header<'a> {
    metadata: BTreeMap<&'a str, Value<'a>>,
    /// The tensors, in the file's order.
    pub(super) tensors: Vec<PlacedTensor<'a>>,
}

/// A tensor, and where its bytes are.
#[derive(Debug)]
pub(super) struct PlacedTensor<'a> {
    pub(super) name: &'a str,
    pub(super) encoding: Encoding,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    /// In the whole file.
    pub(super) bytes: Range<usize>,
}

impl<'a> Header<'a> {
    /// Parses the head of a GGUF file of version 2 or 3 and places its tensors.
    pub(super) fn parse(file: &'a [u8]) -> Result<Header<'a>, Refusal> {
        let mut cursor = Cursor::new(file);
        expect_magic(&mut cursor)?;
        expect_version(cursor.u32("version")?)?;
        let tensors = cursor.u64("tensor count")?;
        let entries = cursor.u64("metadata count")?;
        let metadata = read_metadata(&mut cursor, entries)?;
        let tensors = read_tensors(&mut cursor, tensors)?;
        let mut header = Header { metadata, tensors: Vec::new() };
        let alignment = header.alignment()?;
        let start = (cursor.position() as u64).next_multiple_of(alignment);
        header.tensors = place(tensors, start, alignment, file.len())?;
        Ok(header)
    }

    fn alignment(&self) -> Result<u64, Refusal> {
        let alignment = self.unsigned("general.alignment")?.unwrap_or(ALIGNMENT_DEFAULT);
        // Above 2^30 it would be no alignment but an attempt to overflow.
        if !alignment.is_power_of_two() || alignment > 1 << 30 {
            return Refusal::malformed(format!("general.alignment is {alignment}, expected a power of two"));
        }
        Ok(alignment)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// A whole number, where the key is there.
    pub(super) fn unsigned(&self, key: &str) -> Result<Option<u64>, Refusal> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(value)) => Ok(Some(*value)),
            Some(Value::Signed(value)) if *value >= 0 => Ok(Some(value.unsigned_abs())),
            Some(other) => Refusal::malformed(format!("{key} is {}, expected a whole number", describe(other))),
        }
    }

    /// A number, where the key is there.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, Refusal> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(*value)),
            Some(other) => Refusal::malformed(format!("{key} is {}, expected a float", describe(other))),
        }
    }

    /// A text, where the key is there.
    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>, Refusal> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Refusal::malformed(format!("{key} is not UTF-8")),
            },
            Some(other) => Refusal::malformed(format!("{key} is {}, expected a string", describe(other))),
        }
    }

    /// An array, where the key is there.
    pub(super) fn array(&self, key: &str) -> Result<Option<&Array<'a>>, Refusal> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(other) => Refusal::malformed(format!("{key} is {}, expected an array", describe(other))),
        }
    }
}

/// `key`'s value, or an error that names the key.
pub(super) fn required<T>(value: Option<T>, key: &str) -> Result<T, Refusal> {
    value.ok_or_else(|| Refusal::Malformed(format!("metadata key {key} is missing")))
}

fn describe(value: &Value<'_>) -> String {
    match value {
        Value::Unsigned(value) => value.to_string(),
        Value::Signed(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::String(_) => "a string".into(),
        Value::Array(array) => format!("an array of {} {:?}", array.count, array.kind),
    }
}

fn expect_magic(cursor: &mut Cursor<'_>) -> Result<(), Refusal> {
    let magic = cursor.take(4, "magic")?;
    if magic == b"GGUF" {
        return Ok(());
    }
    Refusal::malformed(format!("starts with {:?}, expected \"GGUF\"", magic.escape_ascii().to_string()))
}

fn expect_version(version: u32) -> Result<(), Refusal> {
    match version {
        2 | 3 => Ok(()),
        _ if version & 0xffff == 0 => {
            Refusal::unsupported("is a big-endian GGUF file; only little-endian is supported")
        }
        _ => Refusal::unsupported(format!("is GGUF version {version}; versions 2 and 3 are supported")),
    }
}

fn read_metadata<'a>(cursor: &mut Cursor<'a>, count: u64) -> Result<BTreeMap<&'a str, Value<'a>>, Refusal> {
    cursor.expect_room(count, ENTRY_BYTES_MIN, "metadata entries")?;
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.string("metadata key")?;
        let value = Value::read(cursor, key)?;
        if metadata.insert(key, value).is_some() {
            return Refusal::malformed(format!("metadata key {key} is given twice"));
        }
    }
    Ok(metadata)
}

/// A row of the tensor table, as written.
struct TensorInfo<'a> {
    name: &'a str,
    encoding: Encoding,
    shape: Vec<usize>,
    offset: u64,
}

fn read_tensors<'a>(cursor: &mut Cursor<'a>, count: u64) -> Result<Vec<TensorInfo<'a>>, Refusal> {
    cursor.expect_room(count, TENSOR_BYTES_MIN, "tensors")?;
    let mut names = BTreeSet::new();
    let mut tensors = Vec::new();
    for _ in 0..count {
        let tensor = read_tensor(cursor)?;
        if !names.insert(tensor.name) {
            return Refusal::malformed(format!("tensor {} is given twice", tensor.name));
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn read_tensor<'a>(cursor: &mut Cursor<'a>) -> Result<TensorInfo<'a>, Refusal> {
    let name = cursor.string("tensor name")?;
    let dimensions = cursor.u32("number of dimensions")?;
    if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
        return Refusal::malformed(format!(
            "tensor {name} has {dimensions} dimensions, expected 1 to {DIMENSIONS_MAX}"
        ));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let dimension = cursor.u64("dimension")?;
        match usize::try_from(dimension) {
            Ok(dimension) if dimension > 0 => shape.push(dimension),
            _ => return Refusal::malformed(format!("tensor {name} has a dimension of {dimension}")),
        }
    }
    shape.reverse();
    let number = cursor.u32("tensor type")?;
    let encoding = Encoding::from_ggml(number).ok_or_else(|| unsupported_type(name, number))?;
    Ok(TensorInfo { name, encoding, shape, offset: cursor.u64("tensor offset")? })
}

fn unsupported_type(name: &str, number: u32) -> Refusal {
    let known = match number {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        15 => "Q8_K",
        16..=23 | 29 => "an IQ format",
        24..=28 => "a type of whole numbers or doubles",
        34 | 35 => "a ternary format",
        39 => "MXFP4",
        _ => return Refusal::Malformed(format!("tensor {name} has type {number}, which GGUF does not define")),
    };
    Refusal::Unsupported(format!(
        "tensor {name} has type {number} ({known}); supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q6_K"
    ))
}

/// Gives every tensor its bytes in the file: aligned, inside the file, overlapping no other.
fn place(
    infos: Vec<TensorInfo<'_>>,
    start: u64,
    alignment: u64,
    size: usize,
) -> Result<Vec<PlacedTensor<'_>>, Refusal> {
    let mut placed = Vec::with_capacity(infos.len());
    for info in infos {
        placed.push(place_one(info, start, alignment, size)?);
    }
    let mut order: Vec<&PlacedTensor<'_>> = placed.iter().collect();
    order.sort_by_key(|tensor| tensor.bytes.start);
    match order.windows(2).find(|pair| pair[1].bytes.start < pair[0].bytes.end) {
        Some(pair) => Refusal::malformed(format!("tensors {} and {} overlap", pair[0].name, pair[1].name)),
        None => Ok(placed),
    }
}

fn place_one(info: TensorInfo<'_>, start: u64, alignment: u64, size: usize) -> Result<PlacedTensor<'_>, Refusal> {
    let TensorInfo { name, encoding, shape, offset } = info;
    let length = encoded_bytes(name, encoding, &shape)?;
    if !offset.is_multiple_of(alignment) {
        return Refusal::malformed(format!("tensor {name} has offset {offset}, expected a multiple of {alignment}"));
    }
    let begin = start.checked_add(offset).and_then(|begin| usize::try_from(begin).ok());
    let range = begin.and_then(|begin| Some(begin..begin.checked_add(length)?));
    match range {
        Some(bytes) if bytes.end <= size => Ok(PlacedTensor { name, encoding, shape, bytes }),
        _ => Refusal::malformed(format!(
            "tensor {name} has {length} bytes at offset {offset} of the data at byte {start}, but the file has {size} \
             bytes: it is truncated or damaged"
        )),
    }
}

fn encoded_bytes(name: &str, encoding: Encoding, shape: &[usize]) -> Result<usize, Refusal> {
    let row = *shape.last().expect("read_tensor refuses tensors without dimensions");
    if !row.is_multiple_of(encoding.block_elements()) {
        return Refusal::malformed(format!(
            "tensor {name} has rows of {row} elements, expected a multiple of {encoding:?}'s {}",
            encoding.block_elements()
        ));
    }
    let elements = shape.iter().try_fold(1usize, |product, &dimension| product.checked_mul(dimension));
    let bytes = elements.and_then(|elements| encoding.bytes_of(elements));
    bytes.ok_or_else(|| Refusal::Malformed(format!("tensor {name} of shape {shape:?} is too large to address")))
}
