//! What the integration tests share: the binary, a base small enough to train in a second, a corpus of its size.
#![allow(
    dead_code,
    missing_docs,
    clippy::disallowed_methods,
    reason = "each test uses its part; tests touch the world"
)]

pub mod corpora;
pub mod fleet;
pub mod netns;
pub mod standin;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// The command under test, with its caches and state in `home`.
pub fn insula(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_insula-under-test"));
    command.current_dir(home).env("INSULA_CACHE", home.join("cache"));
    for name in ["INSULA_STATE", "INSULA_COORDINATOR", "INSULA_LOG", "INSULA_CA", "INSULA_TOKEN", "INSULA_TOKEN_FILE"] {
        command.env_remove(name);
    }
    command
}

/// Runs the command, expects success, returns what it printed on stdout.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the command, expects this exit code, returns what it printed on stderr.
pub fn fail(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{}", text(&output));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

pub fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Waits for a condition; panics with its name after two minutes.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited two minutes for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Numbers that look random and are the same every time (xorshift).
fn noise(seed: u64, len: usize, scale: f32) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).flat_map(|_| (2.0 * scale * next()).to_le_bytes()).collect()
}

/// Writes a Llama of two layers with a byte-level tokenizer, as a Hugging Face folder.
pub fn tiny_base(folder: &Path) -> PathBuf {
    let folder = folder.join("base");
    fs::create_dir_all(&folder).unwrap();
    let (vocab, hidden, inner, layers) = (257usize, 32usize, 48usize, 2usize);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "vocab_size": vocab, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 256, "eos_token_id": 256,
        "attention_bias": false, "mlp_bias": false,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let mut tensors: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![vocab, hidden]), ("model.norm.weight".into(), vec![hidden])];
    for layer in 0..layers {
        let mut add =
            |name: &str, shape: &[usize]| tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        add("self_attn.q_proj", &[32, hidden]);
        add("self_attn.k_proj", &[16, hidden]);
        add("self_attn.v_proj", &[16, hidden]);
        add("self_attn.o_proj", &[hidden, 32]);
        add("mlp.gate_proj", &[inner, hidden]);
        add("mlp.up_proj", &[inner, hidden]);
        add("mlp.down_proj", &[hidden, inner]);
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
    }
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let len = shape.iter().product();
            let values = if shape.len() == 1 {
                std::iter::repeat_n(1f32.to_le_bytes(), len).flatten().collect()
            } else {
                noise(i as u64 + 1, len, 0.3)
            };
            (name, shape, values)
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, values)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), values).unwrap())
    });
    fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    folder
}

/// GPT-2's byte-level alphabet without merges: a token a byte, and the end.
fn tokenizer() -> Value {
    let plain = |b: &u32| (33..=126).contains(b) || (161..=172).contains(b) || (174..=255).contains(b);
    let mut vocab = serde_json::Map::new();
    let mut beyond = 256;
    for byte in 0u32..256 {
        let character = if plain(&byte) {
            byte
        } else {
            beyond += 1;
            beyond - 1
        };
        vocab.insert(char::from_u32(character).unwrap().to_string(), byte.into());
    }
    vocab.insert("<end>".into(), 256.into());
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{ "id": 256, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true }],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] },
    })
}

/// Writes a corpus in MELD's layout: two labels that the text gives away, a few short dialogues a split.
pub fn tiny_corpus(folder: &Path) -> PathBuf {
    let folder = folder.join("corpus");
    fs::create_dir_all(&folder).unwrap();
    for (split, dialogues) in [("train", 10), ("dev", 3), ("test", 4)] {
        let mut csv = String::from("Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\r\n");
        for dialogue in 0..dialogues {
            for turn in 0..4 {
                let (text, label) = match (dialogue * 3 + turn * 5) % 7 % 3 {
                    0 => ("oh no", "sadness"),
                    1 => ("hooray", "joy"),
                    _ => ("well", "neutral"),
                };
                let speaker = ["Ann", "Bo"][turn % 2];
                csv += &format!("{turn},{text} {turn},{speaker},{label},x,{dialogue},{turn}\r\n");
            }
        }
        fs::write(folder.join(format!("{split}_sent_emo.csv")), csv).unwrap();
    }
    folder
}

/// A job file over the tiny base and corpus: two epochs of five updates.
pub fn tiny_job(home: &Path) -> PathBuf {
    let (base, corpus) = (tiny_base(home), tiny_corpus(home));
    let path = home.join("job.toml");
    let text = format!(
        "name = \"tiny\"\n[corpus]\npath = {:?}\n[data]\nwindow = 2\n[base]\nsource = {:?}\n[adapter]\nr = 4\nalpha = 8\n\
         [train]\nepochs = 2\nbatch = 8\nlr = 5e-3\ncheckpoint_updates = 2\n[evaluate]\nmax_new_tokens = 6\n",
        corpus.display().to_string(),
        base.display().to_string(),
    );
    fs::write(&path, text).unwrap();
    path
}

/// A JSON file.
pub fn json_file(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The processes whose command line holds all of `words` (Linux).
pub fn processes(words: &[&str]) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        words.iter().all(|word| line.contains(word))
    })
    .collect()
}

/// Kills a process outright.
pub fn kill_9(pid: u32) {
    Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
}
