//! A shard's embeddings, in the form the fleet shares: the cache's key and bytes.
//!
//! ```text
//! "insula embeddings 1\n"  encoder's digest (32 bytes)  width  rows  rows x width float32     all little-endian
//! ```
//! `width` and `rows` are 8 bytes each. A row is an utterance's text alone, without speaker or history; rows are in the
//! shard's order, dialogue by dialogue and turn by turn. What is read was written by another process, so it is believed
//! only where it is exactly as long as it says and says what is expected.

use insula_proto::{
    VERSION,
    ids::{Digest, Hasher},
};

const MAGIC: &[u8] = b"insula embeddings 1\n";

/// Why bytes are not the embeddings of a shard.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the cached embeddings do not decode: {0}")]
pub struct EmbeddingsError(String);

/// The digest of everything a shard's embeddings depend on: equal keys, equal embeddings.
///
/// insula's version stands in it for what a library may change.
pub fn key(shard: &Digest, encoder: &Digest) -> Digest {
    let mut hasher = Hasher::default();
    for part in [&MAGIC.escape_ascii().to_string(), VERSION, shard.as_str(), encoder.as_str()] {
        hasher.update(format!("{}:{part}\n", part.len()).as_bytes());
    }
    hasher.finish()
}

/// The bytes of embeddings `[rows, width]` that `encoder` made.
///
/// # Panics
/// When `values` are no whole rows.
pub fn encode(encoder: &Digest, width: usize, values: &[f32]) -> Vec<u8> {
    assert!(width > 0 && values.len().is_multiple_of(width), "embeddings are whole rows of {width} numbers");
    let mut bytes = Vec::with_capacity(MAGIC.len() + 48 + 4 * values.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&encoder.bytes());
    bytes.extend_from_slice(&(width as u64).to_le_bytes());
    bytes.extend_from_slice(&((values.len() / width) as u64).to_le_bytes());
    values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    bytes
}

/// The embeddings in some bytes, `[rows, width]`, which must be so many of this encoder's, all of them finite.
///
/// # Errors
/// When they are not what [`encode`] writes, or are of another encoder, width or number of rows.
pub fn decode(bytes: &[u8], encoder: &Digest, width: usize, rows: usize) -> Result<Vec<f32>, EmbeddingsError> {
    let refuse = |why: String| Err(EmbeddingsError(why));
    let mut rest = match bytes.strip_prefix(MAGIC) {
        Some(rest) => rest,
        None => return refuse("they do not begin as embeddings do".into()),
    };
    let made_by: [u8; 32] = take(&mut rest)?;
    if made_by != encoder.bytes() {
        return refuse(format!("they were made by another encoder than {encoder}"));
    }
    for (what, expected) in [("numbers in a row", width), ("rows", rows)] {
        let found = u64::from_le_bytes(take(&mut rest)?);
        if found != expected as u64 {
            return refuse(format!("they say that there are {found} {what}, expected {expected}"));
        }
    }
    let expected = rows.checked_mul(width).and_then(|values| values.checked_mul(4));
    if expected != Some(rest.len()) {
        return refuse(format!("{} bytes follow, expected {rows} x {width} numbers of 4", rest.len()));
    }
    let (values, _) = rest.as_chunks::<4>();
    let values: Vec<f32> = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
    match values.iter().position(|value| !value.is_finite()) {
        Some(place) => refuse(format!("number {place} is {}, expected a finite one", values[place])),
        None => Ok(values),
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], EmbeddingsError> {
    let (taken, after) = rest.split_first_chunk::<N>().ok_or_else(|| EmbeddingsError("they end too early".into()))?;
    *rest = after;
    Ok(*taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn finite() -> impl Strategy<Value = f32> {
        prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn what_is_encoded_decodes_to_the_same_bits(
            width in 1usize..9, rows in 0usize..12, values in prop::collection::vec(finite(), 96)
        ) {
            let (encoder, values) = (Digest::of(b"encoder"), &values[..width * rows]);
            let decoded = decode(&encode(&encoder, width, values), &encoder, width, rows).unwrap();
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&decoded), bits(values));
        }

        #[test]
        fn bytes_that_were_tampered_with_are_refused_or_are_as_many_finite_numbers(
            place in any::<prop::sample::Index>(), byte in any::<u8>(), extra in 1usize..9
        ) {
            let encoder = Digest::of(b"encoder");
            let whole = encode(&encoder, 3, &[0.5; 12]);
            let read = |bytes: &[u8]| decode(bytes, &encoder, 3, 4);
            prop_assert!(read(&whole[..place.index(whole.len())]).is_err());
            let longer = [whole.as_slice(), &vec![0; extra]].concat();
            prop_assert!(read(&longer).is_err());
            let mut changed = whole.clone();
            changed[place.index(whole.len())] = byte;
            let head = whole.len() - 48;
            prop_assert!(read(&changed).is_err() || place.index(whole.len()) >= head || changed == whole);
            let values = read(&changed).unwrap_or_default();
            prop_assert!(values.iter().all(|value| value.is_finite()) && [0, 12].contains(&values.len()));
        }
    }

    #[test]
    fn sizes_that_no_memory_holds_are_refused_before_any_is_asked_for() {
        let encoder = Digest::of(b"encoder");
        let mut bytes = encode(&encoder, 3, &[]);
        let sizes = bytes.len() - 16;
        bytes[sizes..].fill(0xff);
        let error = decode(&bytes, &encoder, usize::MAX, usize::MAX).unwrap_err().to_string();
        assert!(error.contains("0 bytes follow"), "{error}");
        assert!(decode(&bytes, &encoder, 3, 4).unwrap_err().to_string().contains("expected 3"));
    }

    #[test]
    fn another_encoder_and_numbers_that_are_none_are_refused() {
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let error = decode(&encode(&one, 2, &[1.0, 2.0]), &other, 2, 1).unwrap_err().to_string();
        assert!(error.contains(other.as_str()), "{error}");
        let error = decode(&encode(&one, 2, &[1.0, f32::NAN]), &one, 2, 1).unwrap_err().to_string();
        assert!(error.contains("number 1 is NaN"), "{error}");
    }

    #[test]
    fn whatever_the_embeddings_depend_on_makes_another_key() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let keys = [key(&a, &a), key(&a, &b), key(&b, &a), key(&b, &b)];
        assert_eq!(keys[1], key(&a, &b));
        assert!((0..4).all(|i| (0..i).all(|j| keys[i] != keys[j])));
    }
}
