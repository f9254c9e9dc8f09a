//! Safetensors files: a JSON header, then plain little-endian tensors.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError};
use serde_json::Value;

use super::error::Refusal;
use super::quant::Encoding;
use super::tensors::{Rows, Stored};

/// Bytes of the header's length at the start of the file.
const LENGTH_BYTES: usize = 8;

/// The tensors of a safetensors file that is the `file`th of its base.
///
/// The library's own entry point adds unchecked sizes of the file's choosing, so only its header type is used, whose
/// checks (offsets contiguous, sizes equal to shapes) are sound; that the data ends where the file ends is checked here.
pub(crate) fn parse(bytes: &[u8], file: usize) -> Result<BTreeMap<String, Stored>, Refusal> {
    let header = header_bytes(bytes)?;
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|error| Refusal::Malformed(format!("safetensors header: {error}")))?;
    let start = LENGTH_BYTES + header.len();
    if metadata.data_len() != bytes.len() - start {
        return Refusal::malformed(format!(
            "safetensors header describes {} bytes of data, the file has {}: it is truncated or damaged",
            metadata.data_len(),
            bytes.len() - start
        ));
    }
    let tensors = metadata.tensors().into_iter();
    tensors.filter(|(name, _)| is_weight(name)).map(|(name, info)| stored(name, info, start, file)).collect()
}

fn header_bytes(bytes: &[u8]) -> Result<&[u8], Refusal> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Refusal::malformed(format!("has {} bytes, too few for a safetensors file", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    match usize::try_from(length).ok().and_then(|length| rest.get(..length)) {
        Some(header) => Ok(header),
        None => Refusal::malformed(format!(
            "safetensors header of {length} bytes, but {} are left: the file is truncated or damaged",
            rest.len()
        )),
    }
}

/// Old checkpoints carry the rotary frequencies or the places' numbers along; they follow from the configuration.
fn is_weight(name: &str) -> bool {
    !name.ends_with(".rotary_emb.inv_freq") && !name.ends_with("embeddings.position_ids")
}

fn stored(name: String, info: &TensorInfo, start: usize, file: usize) -> Result<(String, Stored), Refusal> {
    let encoding = match info.dtype {
        Dtype::F32 => Encoding::F32,
        Dtype::F16 => Encoding::F16,
        Dtype::BF16 => Encoding::BF16,
        other => {
            return Refusal::unsupported(format!("tensor {name} is {other:?}; supported are F32, F16, BF16"));
        }
    };
    if info.shape.is_empty() || info.shape.contains(&0) {
        return Refusal::malformed(format!("tensor {name} has shape {:?}, expected at least one element", info.shape));
    }
    let (begin, end) = info.data_offsets;
    let bytes = start + begin..start + end;
    Ok((name, Stored { file, bytes, encoding, shape: info.shape.clone(), rows: Rows::InOrder }))
}

/// A safetensors file of float32 tensors (name, shape, values), in this order. `format` is what its metadata says.
///
/// The library would hold one tensor's bytes twice, which for a training's state is the size of a model.
pub(crate) fn encode(tensors: &[(&str, &[usize], &[f32])], format: Option<&str>) -> Result<Vec<u8>, SafeTensorError> {
    let mut end = 0;
    let infos = tensors.iter().map(|(name, shape, values)| {
        let begin = end;
        end += size_of_val(*values);
        (name.to_string(), TensorInfo { dtype: Dtype::F32, shape: shape.to_vec(), data_offsets: (begin, end) })
    });
    let infos: Vec<_> = infos.collect();
    let format = format.map(|format| HashMap::from([("format".to_owned(), format.to_owned())]));
    let mut header = serde_json::to_vec(&Metadata::new(format, infos)?)?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    let mut bytes = Vec::with_capacity(LENGTH_BYTES + header.len() + end);
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header);
    for (.., values) in tensors {
        let at = bytes.len();
        bytes.resize(at + size_of_val(*values), 0);
        bytes[at..].as_chunks_mut::<4>().0.iter_mut().zip(*values).for_each(|(to, value)| *to = value.to_le_bytes());
    }
    Ok(bytes)
}

/// The weight files that a `model.safetensors.index.json` names, sorted, and which tensors are in which.
pub(crate) fn parse_index(json: &[u8]) -> Result<BTreeMap<String, Vec<String>>, Refusal> {
    let index: Value = serde_json::from_slice(json).map_err(|error| Refusal::Malformed(error.to_string()))?;
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        return Refusal::malformed("weight_map is missing, expected an object of tensor names to file names");
    };
    let mut files = BTreeMap::<String, Vec<String>>::new();
    for (tensor, file) in map {
        let file = file.as_str().filter(|file| is_plain_file_name(file));
        let Some(file) = file else {
            return Refusal::malformed(format!("weight_map.{tensor} is not the name of a file in the same folder"));
        };
        files.entry(file.to_owned()).or_default().push(tensor.clone());
    }
    Ok(files)
}

/// Whether a name is that of a file in one folder, and no path.
pub(crate) fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', ':', '\0']) && name != "." && name != ".."
}
