//! The same model reads the same from every format, and goldens load.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should stop")]

mod common;
#[path = "common/made.rs"]
mod made;

use std::collections::BTreeMap;
use std::path::Path;

use common::{json, read, write};
use insula_worker::base::{Base, BaseError, ModelConfig, TensorSource, fetch};
use insula_worker::peft;
use made::Gguf;

fn open_gguf(gguf: &Gguf) -> Result<Base, BaseError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    write(&path, &gguf.bytes());
    Base::open(path)
}

fn expect_made(base: &Base) {
    let expected = made::tensors();
    assert_eq!(base.tensor_names().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, (shape, values)) in expected {
        assert_eq!(base.shape(&name).as_ref(), Some(&shape), "{name}");
        let mut out = vec![f32::NAN; values.len()];
        base.read_f32(&name, &mut out).unwrap();
        assert_eq!(out, values, "{name}");
    }
    let expected = ModelConfig {
        vocab: made::VOCAB,
        hidden: made::HIDDEN,
        intermediate: 64,
        layers: 2,
        heads: made::HEADS,
        kv_heads: made::KV_HEADS,
        head_dim: made::HEAD_DIM,
        rope_theta: 1e4,
        rope_scaling: None,
        rms_eps: 1e-5,
        context: 128,
        tied: true,
    };
    assert_eq!(base.config, expected);
}

#[test]
fn gguf_and_folders_of_every_precision_hold_the_same_model() {
    expect_made(&open_gguf(&Gguf::tiny()).unwrap());
    expect_made(&open_gguf(&Gguf { version: 2, ..Gguf::tiny() }).unwrap());
    let wide = Gguf { alignment: 256, ..Gguf::tiny() };
    expect_made(&open_gguf(&wide.set("general.alignment", made::number(256))).unwrap());
    for dtype in ["F32", "F16", "BF16"] {
        let folder = tempfile::tempdir().unwrap();
        made::write_folder(folder.path(), dtype);
        expect_made(&Base::open(folder.path()).unwrap());
    }
}

/// Writes the model in two shards; `place` may change which file the index says a tensor is in.
fn write_shards(folder: &Path, place: impl Fn(&str, &str) -> String) {
    let (mut first, mut second, mut map) = (BTreeMap::new(), BTreeMap::new(), serde_json::Map::new());
    for (index, (name, tensor)) in made::tensors().into_iter().enumerate() {
        let (shard, file) = if index % 2 == 0 { (&mut first, "a.safetensors") } else { (&mut second, "b.safetensors") };
        map.insert(name.clone(), place(&name, file).into());
        shard.insert(name, tensor);
    }
    write(&folder.join("config.json"), made::config().to_string().as_bytes());
    write(&folder.join("a.safetensors"), &made::safetensors(&first, "F32"));
    write(&folder.join("b.safetensors"), &made::safetensors(&second, "BF16"));
    let index = serde_json::json!({"weight_map": map}).to_string();
    write(&folder.join("model.safetensors.index.json"), index.as_bytes());
}

#[test]
fn sharded_folders_are_read_through_their_index() {
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path(), |_, file| file.to_owned());
    expect_made(&Base::open(folder.path()).unwrap());
}

#[test]
fn an_index_that_lies_is_refused() {
    let cases = [("../a.safetensors", "not the name of a file"), ("b.safetensors", "which the index places here")];
    for (elsewhere, what) in cases {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str, file: &str| {
            if file == "a.safetensors" && name.contains("embed") { elsewhere } else { file }.to_owned()
        };
        write_shards(folder.path(), place);
        let error = Base::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(what), "{elsewhere}: {error}");
    }
}

#[test]
fn the_digest_changes_with_any_byte_and_with_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    made::write_folder(folder.path(), "F32");
    let digest = || fetch::resolve(folder.path().to_str().unwrap(), None, Path::new("unused")).unwrap().digest;
    let first = digest();
    assert_eq!(first, Base::open(folder.path()).unwrap().digest);
    write(&folder.path().join("README.md"), b"not part of the base");
    assert_eq!(digest(), first);
    let path = folder.path().join("model.safetensors");
    let mut bytes = read(&path);
    *bytes.last_mut().unwrap() ^= 1;
    write(&path, &bytes);
    assert_ne!(digest(), first);
}

#[test]
fn the_tokenizer_inside_a_gguf_merges_and_finds_its_special_tokens() {
    let tokenizer = open_gguf(&Gguf::tiny()).unwrap().tokenizer().unwrap();
    let letter = |letter: char| 1 + letter as u32;
    assert_eq!(tokenizer.encode("hello").unwrap(), [257, 258, letter('o')]);
    assert_eq!(tokenizer.encode("h<eos><user>").unwrap(), [letter('h'), 0, 259]);
    assert_eq!(tokenizer.decode(&[257, 0, 259]), "he<user>");
    assert_eq!((tokenizer.eos(), tokenizer.vocab()), (0, made::VOCAB));
}

#[test]
fn what_is_no_plain_llama_is_refused_by_name() {
    let mut ternary = Gguf::tiny();
    ternary.tensor("blk.0.ffn_up.weight").kind = 34;
    let mut biased = Gguf::tiny();
    biased.tensor("blk.1.attn_norm.weight").name = "blk.1.attn_q.bias".into();
    let cases = [
        (Gguf::tiny().set("general.architecture", made::string("gemma")), "architecture \"gemma\": only llama"),
        (Gguf::tiny().set("llama.rope.scaling.type", made::string("yarn")), "rope scaling \"yarn\""),
        (Gguf::tiny().set("llama.expert_count", made::number(8)), "llama.expert_count"),
        (Gguf::tiny().set("llama.rope.dimension_count", made::number(4)), "llama.rope.dimension_count is 4"),
        (Gguf::tiny().set("split.count", made::number(2)), "split files"),
        (Gguf { version: 1, ..Gguf::tiny() }, "GGUF version 1"),
        (Gguf { version: 3u32.swap_bytes(), ..Gguf::tiny() }, "big-endian"),
        (ternary, "blk.0.ffn_up.weight has type 34"),
        (biased, "blk.1.attn_q.bias"),
    ];
    for (gguf, what) in cases {
        let error = open_gguf(&gguf).expect_err(what).to_string();
        assert!(error.contains(what) && error.contains("tiny.gguf"), "{what}: {error}");
    }
    let sentence_piece = open_gguf(&Gguf::tiny().set("tokenizer.ggml.model", made::string("llama"))).unwrap();
    let error = sentence_piece.tokenizer().unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.model \"llama\" is not supported"), "{error}");
}

#[test]
fn paths_that_hold_no_base_say_what_a_base_is() {
    let folder = tempfile::tempdir().unwrap();
    let error = Base::open(folder.path()).unwrap_err();
    assert!(matches!(error, BaseError::NotABase { .. }), "{error}");
    let error = Base::open(folder.path().join("absent.gguf")).unwrap_err().to_string();
    assert!(error.contains("absent.gguf"), "{error}");
}

#[test]
fn reading_the_wrong_name_or_size_is_an_error() {
    let base = open_gguf(&Gguf::tiny()).unwrap();
    assert!(matches!(base.read_f32("none", &mut []), Err(BaseError::MissingTensor { .. })));
    let small = base.read_f32("model.norm.weight", &mut [0.0; 3]);
    assert!(matches!(small, Err(BaseError::TensorSize { found: made::HIDDEN, expected: 3, .. })), "{small:?}");
}

#[test]
fn parity_tiny_bases_and_their_adapters_load_and_round_trip() {
    let Some(folder) = common::parity() else { return };
    let mut loaded = 0;
    for model in common::folders(&folder.join("tiny")) {
        let base = match Base::open(&model) {
            Ok(base) => base,
            Err(error @ BaseError::Unsupported { .. }) => {
                println!("skipped: {error}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        round_trip(&model.join("adapter_init"), &base.config);
        loaded += 1;
    }
    assert!(loaded >= 2, "llama-gqa-tied and llama2-mha are supported, loaded {loaded}");
}

#[test]
fn parity_smollm2_base_and_adapters_load_and_round_trip() {
    let (Some(folder), Some(base)) = (common::parity(), common::smollm2()) else { return };
    let config = &base.config;
    assert_eq!((config.layers, config.heads, config.kv_heads, config.head_dim), (30, 9, 3, 64));
    assert_eq!((config.vocab, config.hidden, config.context, config.tied), (49_152, 576, 8192, true));
    for adapter in ["adapter_init", "adapter_final"] {
        round_trip(&folder.join("smollm2").join(adapter), config);
    }
}

/// Reads an adapter that PEFT wrote, writes it, and finds the same tensors in the same bytes, and the same settings.
fn round_trip(folder: &Path, model: &ModelConfig) {
    let adapter = peft::read_folder(folder, model).unwrap();
    let files = peft::to_files(&adapter, "base", "sha256:00").unwrap();
    assert_eq!(peft::from_files(&files, model).unwrap(), adapter);
    assert!(files.weights == read(&folder.join(peft::WEIGHTS_FILE)), "{}: weights differ", folder.display());
    let (ours, theirs) =
        (serde_json::from_slice::<serde_json::Value>(&files.config).unwrap(), json(&folder.join(peft::CONFIG_FILE)));
    for key in ["r", "lora_alpha", "peft_type", "task_type", "bias", "fan_in_fan_out", "use_dora", "use_rslora"] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
}
