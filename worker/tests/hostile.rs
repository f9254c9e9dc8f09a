//! Truncated, damaged and hostile bases are errors: no panic, and no allocation that the file does not justify.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should stop")]

mod common;
#[path = "common/made.rs"]
mod made;

use std::path::Path;

use common::write;
use insula_worker::base::{Base, BaseError, TensorSource};
use made::Gguf;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Opens a base and reads all there is to read of it.
fn read_all(path: &Path) -> Result<(), BaseError> {
    let base = Base::open(path)?;
    let names: Vec<String> = base.tensor_names().map(str::to_owned).collect();
    for name in names {
        let elements = base.shape(&name).into_iter().flatten().product();
        base.read_f32(&name, &mut vec![0.0; elements])?;
    }
    base.tokenizer().map(drop)
}

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        made::write_folder(folder.path(), "F16");
        Bench { folder }
    }

    fn gguf(&self, bytes: &[u8]) -> Result<(), BaseError> {
        let path = self.folder.path().join("hostile.gguf");
        write(&path, bytes);
        read_all(&path)
    }

    /// A folder without a tokenizer: reading it comes to that complaint at best.
    fn safetensors(&self, bytes: &[u8]) -> Result<(), BaseError> {
        write(&self.folder.path().join("model.safetensors"), bytes);
        match read_all(self.folder.path()) {
            Err(error) if error.to_string().ends_with("has no tokenizer.json") => Ok(()),
            other => other,
        }
    }
}

/// Where a file of `size` bytes is cut: everywhere in its head, then here and there.
fn cuts(size: usize, head: usize) -> impl Iterator<Item = usize> {
    (0..head.min(size)).chain((head..size).step_by(997)).chain([size - 1])
}

#[test]
fn a_gguf_cut_anywhere_is_an_error() {
    let (bench, whole) = (Bench::new(), Gguf::tiny().bytes());
    bench.gguf(&whole).unwrap();
    for cut in cuts(whole.len(), 8192) {
        assert!(bench.gguf(&whole[..cut]).is_err(), "cut at {cut} of {}", whole.len());
    }
}

#[test]
fn a_safetensors_file_cut_anywhere_is_an_error() {
    let (bench, whole) = (Bench::new(), made::safetensors(&made::tensors(), "F16"));
    bench.safetensors(&whole).unwrap();
    for cut in cuts(whole.len(), 2400) {
        assert!(bench.safetensors(&whole[..cut]).is_err(), "cut at {cut} of {}", whole.len());
    }
}

/// Flips some bits in the first `head` bytes; returns what was done, to be printed when something fails.
fn damage(bytes: &mut [u8], head: usize, chance: &mut ChaCha8Rng) -> String {
    let flips: Vec<(usize, u8)> = (0..1 + chance.next_u32() % 4)
        .map(|_| (chance.next_u32() as usize % head.min(bytes.len()), 1 << (chance.next_u32() % 8)))
        .collect();
    flips.iter().for_each(|&(at, bit)| bytes[at] ^= bit);
    format!("{flips:?}")
}

#[test]
fn flipped_bits_never_panic() {
    const SEED: u64 = 0x15_01a;
    println!("seed {SEED:#x}");
    let (bench, mut chance) = (Bench::new(), ChaCha8Rng::seed_from_u64(SEED));
    let (gguf, safetensors) = (Gguf::tiny().bytes(), made::safetensors(&made::tensors(), "F16"));
    for round in 0..2000 {
        let (mut a, mut b) = (gguf.clone(), safetensors.clone());
        println!("round {round}: gguf {}", damage(&mut a, 8192, &mut chance));
        drop(bench.gguf(&a));
        println!("round {round}: safetensors {}", damage(&mut b, 2400, &mut chance));
        drop(bench.safetensors(&b));
    }
}

/// `bytes` with eight of them replaced.
fn with_u64(mut bytes: Vec<u8>, at: usize, value: u64) -> Vec<u8> {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    bytes
}

fn array_of(kind: u32, count: u64) -> Vec<u8> {
    [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes()].concat()
}

/// An array of arrays of ... of nothing.
fn nested(depth: usize) -> Vec<u8> {
    let inner = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat().repeat(depth);
    [&9u32.to_le_bytes()[..], &inner, &0u32.to_le_bytes(), &0u64.to_le_bytes()].concat()
}

#[test]
fn gguf_counts_and_lengths_that_lie_are_refused() {
    const HUGE: u64 = 1 << 60;
    let bench = Bench::new();
    let cases = [
        (with_u64(Gguf::tiny().bytes(), 8, HUGE), "tensors at byte"),
        (with_u64(Gguf::tiny().bytes(), 8, u64::MAX), "tensors at byte"),
        (with_u64(Gguf::tiny().bytes(), 16, HUGE), "metadata entries at byte"),
        (with_u64(Gguf::tiny().bytes(), 24, HUGE), "metadata key at byte"),
        (
            Gguf::tiny().set("a", [&8u32.to_le_bytes()[..], &HUGE.to_le_bytes()].concat()).bytes(),
            "needs 1152921504606846976 bytes",
        ),
        (Gguf::tiny().set("a", array_of(4, HUGE)).bytes(), "elements of a at byte"),
        (Gguf::tiny().set("a", array_of(8, HUGE)).bytes(), "elements of a at byte"),
        (Gguf::tiny().set("a", array_of(9, HUGE)).bytes(), "elements of a at byte"),
        (Gguf::tiny().set("a", nested(100_000)).bytes(), "nests arrays deeper than 4"),
        (Gguf::tiny().set("a", 99u32.to_le_bytes().to_vec()).bytes(), "a has value type 99"),
        (Gguf::tiny().set("general.alignment", made::number(0)).bytes(), "general.alignment is 0"),
        (Gguf::tiny().set("general.alignment", made::number(24)).bytes(), "general.alignment is 24"),
        (Gguf::tiny().set("llama.attention.head_count", made::number(0)).bytes(), "head_count is 0"),
        (
            Gguf::tiny().set("llama.attention.head_count_kv", made::number(3)).bytes(),
            "3 key/value heads do not divide 4",
        ),
        (
            Gguf::tiny().set("llama.block_count", made::number(u32::MAX)).bytes(),
            "model.layers.2.input_layernorm.weight is missing",
        ),
        (Gguf::tiny().set("llama.embedding_length", made::string("x")).bytes(), "expected a whole number"),
        (Gguf::tiny().set("llama.rope.freq_base", made::float(f32::NAN)).bytes(), "rope theta is NaN"),
        (Gguf::tiny().without("llama.block_count").bytes(), "llama.block_count is missing"),
        (Gguf::tiny().without("token_embd.weight").bytes(), "token_embd.weight"),
        (Gguf::tiny().set("tokenizer.ggml.merges", made::strings(&["h z".into()])).bytes(), "merge \"h z\""),
        (
            Gguf::tiny().set("tokenizer.ggml.merges", made::strings(&["<user> <user>".into()])).bytes(),
            "merge \"<user> <user>\"",
        ),
        (
            Gguf::tiny().set("tokenizer.ggml.tokens", made::strings(&["a".into(), "a".into()])).bytes(),
            "token_type has 260",
        ),
        (Gguf::tiny().set("tokenizer.ggml.eos_token_id", made::number(260)).bytes(), "eos_token_id is 260"),
        (b"GGML and more".to_vec(), "expected \"GGUF\""),
        (Vec::new(), "magic"),
    ];
    for (bytes, what) in cases {
        let error = bench.gguf(&bytes).expect_err(what).to_string();
        assert!(error.contains(what) && error.contains("hostile.gguf"), "{what}: {error}");
    }
}

#[test]
fn gguf_tensors_that_lie_are_refused() {
    let bench = Bench::new();
    let spoilt = |spoil: &dyn Fn(&mut made::GgufTensor)| {
        let mut gguf = Gguf::tiny();
        spoil(gguf.tensor("blk.0.ffn_up.weight"));
        gguf.bytes()
    };
    let cases = [
        (spoilt(&|tensor| tensor.dimensions = vec![1 << 32, 1 << 32]), "too large to address"),
        (spoilt(&|tensor| tensor.dimensions = vec![1 << 60]), "the file has"),
        (spoilt(&|tensor| tensor.dimensions = vec![0, 5]), "a dimension of 0"),
        (spoilt(&|tensor| tensor.dimensions = vec![]), "has 0 dimensions"),
        (spoilt(&|tensor| tensor.dimensions = vec![1; 5]), "has 5 dimensions"),
        (spoilt(&|tensor| tensor.offset = Some(u64::MAX - 31)), "the file has"),
        (spoilt(&|tensor| tensor.offset = Some(1 << 40)), "the file has"),
        (spoilt(&|tensor| tensor.offset = Some(33)), "expected a multiple of 32"),
        (spoilt(&|tensor| tensor.offset = Some(0)), "overlap"),
        (spoilt(&|tensor| tensor.name = "output_norm.weight".into()), "output_norm.weight is given twice"),
        (spoilt(&|tensor| tensor.name = "blk.00.ffn_gate.weight".into()), "given twice under different spellings"),
        (spoilt(&|tensor| tensor.kind = 77), "type 77, which GGUF does not define"),
        (spoilt(&|tensor| (tensor.kind, tensor.dimensions) = (3, vec![8, 8])), "rows of 8 elements"),
        (spoilt(&|tensor| tensor.dimensions.reverse()), "has shape [32, 64], expected [64, 32]"),
    ];
    for (bytes, what) in cases {
        let error = bench.gguf(&bytes).expect_err(what).to_string();
        assert!(error.contains(what) && error.contains("hostile.gguf"), "{what}: {error}");
    }
}

#[test]
fn safetensors_headers_that_lie_are_refused() {
    let bench = Bench::new();
    let eight = |size: u64| {
        let entry = |i: u64| {
            format!(
                "\"t{i}\":{{\"dtype\":\"U8\",\"shape\":[{size}],\"data_offsets\":[{},{}]}}",
                i * size,
                (i + 1) * size
            )
        };
        format!("{{{}}}", (0..7).map(entry).collect::<Vec<_>>().join(","))
    };
    let cases = [
        (with_u64(vec![0; 64], 0, 1 << 60), "header of 1152921504606846976 bytes"),
        (with_u64(vec![0; 64], 0, u64::MAX), "header of 18446744073709551615 bytes"),
        (made::with_header("{", b""), "safetensors header"),
        (made::with_header(&"[".repeat(100_000), b""), "safetensors header"),
        (made::with_header(&eight((1 << 61) - 1), b""), "describes"),
        (
            made::with_header(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, b""),
            "safetensors header",
        ),
        (
            made::with_header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0; 4]),
            "8 bytes of data, the file has 4",
        ),
        (made::with_header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, &[0; 8]), "safetensors header"),
        (made::with_header(r#"{"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#, &[0]), "tensor a is I8"),
        (made::with_header(r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#, &[0; 4]), "has shape []"),
        (made::with_header("{}", b""), "model.embed_tokens.weight is missing"),
    ];
    for (bytes, what) in cases {
        let error = bench.safetensors(&bytes).expect_err(what).to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
}

#[test]
fn a_tokenizer_json_that_contradicts_itself_is_an_error() {
    let bench = Bench::new();
    bench.safetensors(&made::safetensors(&made::tensors(), "F16")).unwrap();
    let merge_too_long =
        r#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}}"#;
    for json in ["", "{}", merge_too_long] {
        write(&bench.folder.path().join("tokenizer.json"), json.as_bytes());
        let error = read_all(bench.folder.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{json}: {error}");
    }
}
