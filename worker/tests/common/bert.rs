//! A very small BERT made on the spot, written as a Hugging Face folder, and its definition computed plainly in float64.

use std::collections::BTreeMap;
use std::path::Path;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Hidden width: two heads of ten, which is no whole vector of any kind.
pub const WIDTH: usize = 20;
const HEADS: usize = 2;
const MLP: usize = 37;
const LAYERS: usize = 2;
/// Longest text.
pub const POSITIONS: usize = 16;
const EPS: f64 = 1e-6;
const WORDS: [&str; 15] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "!", "##sat", "nobody", "a",
    "knows",
];

/// How the folder is written, and what its files ask for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings {
    /// Before the tensors' names.
    pub prefix: &'static str,
    /// Whether the first token is taken instead of the mean.
    pub first_token: bool,
    pub normalise: bool,
    pub max_tokens: Option<usize>,
    /// Whether there is a `vocab.txt` and no `tokenizer.json`.
    pub vocabulary_only: bool,
    /// Whether there are none of sentence-transformers' files.
    pub bare: bool,
}

pub struct Bert {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

/// The `config.json`.
pub fn config() -> Value {
    json!({
        "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": WIDTH, "intermediate_size": MLP,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2, "layer_norm_eps": EPS, "hidden_act": "gelu",
    })
}

/// The `tokenizer.json`, which asks for a padding and a truncation that must not be followed.
pub fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<String, Value> =
        WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let special = |id: usize| {
        json!({
            "id": id, "content": WORDS[id], "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    };
    json!({
        "version": "1.0",
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
        },
        "added_tokens": (0..5).map(special).collect::<Vec<_>>(),
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": null,
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    })
}

impl Bert {
    pub fn random(seed: u64) -> Bert {
        let mut chance = ChaCha8Rng::seed_from_u64(seed);
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: Vec<usize>, centre: f32| {
            let value = |_| centre + (chance.next_u32() as f32 / u32::MAX as f32 - 0.5) * 0.8;
            let values = (0..shape.iter().product()).map(value).collect();
            tensors.insert(name, (shape, values));
        };
        for (name, rows) in [("word", WORDS.len()), ("position", POSITIONS), ("token_type", 2)] {
            add(format!("embeddings.{name}_embeddings.weight"), vec![rows, WIDTH], 0.0);
        }
        let mut norms = vec!["embeddings.LayerNorm".to_owned()];
        for layer in 0..LAYERS {
            let part = |part: &str| format!("encoder.layer.{layer}.{part}");
            norms.extend([part("attention.output.LayerNorm"), part("output.LayerNorm")]);
            for (name, out, into) in [
                ("attention.self.query", WIDTH, WIDTH),
                ("attention.self.key", WIDTH, WIDTH),
                ("attention.self.value", WIDTH, WIDTH),
                ("attention.output.dense", WIDTH, WIDTH),
                ("intermediate.dense", MLP, WIDTH),
                ("output.dense", WIDTH, MLP),
            ] {
                add(format!("{}.weight", part(name)), vec![out, into], 0.0);
                add(format!("{}.bias", part(name)), vec![out], 0.0);
            }
        }
        for norm in norms {
            add(format!("{norm}.weight"), vec![WIDTH], 1.0);
            add(format!("{norm}.bias"), vec![WIDTH], 0.0);
        }
        // A part that embeddings do not need.
        add("pooler.dense.weight".into(), vec![WIDTH, WIDTH], 0.0);
        Bert { tensors }
    }

    /// Writes the folder.
    pub fn write(&self, folder: &Path, settings: &Settings) {
        let named =
            |(name, tensor): (&String, &(Vec<usize>, Vec<f32>))| (format!("{}{name}", settings.prefix), tensor.clone());
        let tensors = self.tensors.iter().map(named).collect();
        let text = |name: &str, text: String| super::write(&folder.join(name), text.as_bytes());
        super::write(&folder.join("model.safetensors"), &super::made::safetensors(&tensors, "F32"));
        text("config.json", config().to_string());
        if settings.vocabulary_only {
            text("vocab.txt", WORDS.join("\n") + "\n");
        } else {
            text("tokenizer.json", tokenizer().to_string());
        }
        if settings.bare {
            return;
        }
        let mut modules = vec![json!({"path": "", "type": "x.models.Transformer"})];
        modules.push(json!({"path": "1_Pooling", "type": "x.models.Pooling"}));
        if settings.normalise {
            modules.push(json!({"path": "2_Normalize", "type": "x.models.Normalize"}));
        }
        text("modules.json", Value::Array(modules).to_string());
        if let Some(most) = settings.max_tokens {
            text("sentence_bert_config.json", json!({"max_seq_length": most, "do_lower_case": false}).to_string());
        }
        make_folder(&folder.join("1_Pooling"));
        let pooling = json!({
            "word_embedding_dimension": WIDTH, "pooling_mode_max_tokens": false,
            "pooling_mode_cls_token": settings.first_token, "pooling_mode_mean_tokens": !settings.first_token,
        });
        text("1_Pooling/config.json", pooling.to_string());
    }

    /// The embedding of a text, by definition.
    pub fn embed(&self, text: &str, settings: &Settings) -> Vec<f64> {
        let ids = ids(text, settings.max_tokens.unwrap_or(POSITIONS));
        let mut x: Vec<Vec<f64>> = Vec::new();
        for (place, id) in ids.into_iter().enumerate() {
            let rows = [("word", id), ("position", place), ("token_type", 0)];
            let rows = rows.map(|(name, row)| self.row(&format!("embeddings.{name}_embeddings.weight"), row));
            x.push((0..WIDTH).map(|i| rows.iter().map(|row| row[i]).sum()).collect());
        }
        self.norm("embeddings.LayerNorm", &mut x);
        for layer in 0..LAYERS {
            let part = |part: &str| format!("encoder.layer.{layer}.{part}");
            let attended = self.linear(&part("attention.output.dense"), &self.attention(&part("attention.self"), &x));
            x = sum(&x, &attended);
            self.norm(&part("attention.output.LayerNorm"), &mut x);
            let mut wide = self.linear(&part("intermediate.dense"), &x);
            wide.iter_mut().flatten().for_each(|x| *x = *x * (1.0 + erf(*x / 2f64.sqrt())) / 2.0);
            x = sum(&x, &self.linear(&part("output.dense"), &wide));
            self.norm(&part("output.LayerNorm"), &mut x);
        }
        let count = x.len() as f64;
        let mean = (0..WIDTH).map(|i| x.iter().map(|row| row[i]).sum::<f64>() / count);
        let pooled: Vec<f64> = if settings.first_token { x[0].clone() } else { mean.collect() };
        let length = if settings.normalise { pooled.iter().map(|x| x * x).sum::<f64>().sqrt() } else { 1.0 };
        pooled.iter().map(|x| x / length).collect()
    }

    fn row(&self, name: &str, row: usize) -> Vec<f64> {
        let (shape, values) = &self.tensors[name];
        let width = shape.last().unwrap();
        values[row * width..][..*width].iter().map(|&x| f64::from(x)).collect()
    }

    fn linear(&self, name: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (weight, bias) = (format!("{name}.weight"), self.row(&format!("{name}.bias"), 0));
        let rows: Vec<Vec<f64>> = (0..bias.len()).map(|out| self.row(&weight, out)).collect();
        let one = |x: &Vec<f64>| rows.iter().zip(&bias).map(|(row, bias)| dot(row, x) + bias).collect();
        x.iter().map(one).collect()
    }

    fn norm(&self, name: &str, x: &mut [Vec<f64>]) {
        let (gain, bias) = (self.row(&format!("{name}.weight"), 0), self.row(&format!("{name}.bias"), 0));
        for row in x {
            let mean = row.iter().sum::<f64>() / WIDTH as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / WIDTH as f64;
            for (i, x) in row.iter_mut().enumerate() {
                *x = (*x - mean) / (variance + EPS).sqrt() * gain[i] + bias[i];
            }
        }
    }

    fn attention(&self, name: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [q, k, v] = ["query", "key", "value"].map(|part| self.linear(&format!("{name}.{part}"), x));
        let width = WIDTH / HEADS;
        let mut out = vec![vec![0.0; WIDTH]; x.len()];
        for (q, out) in q.iter().zip(&mut out) {
            for head in 0..HEADS {
                let here = head * width..(head + 1) * width;
                let score = |k: &Vec<f64>| (dot(&q[here.clone()], &k[here.clone()]) / (width as f64).sqrt()).exp();
                let scores: Vec<f64> = k.iter().map(score).collect();
                let total: f64 = scores.iter().sum();
                for i in here.clone() {
                    out[i] = scores.iter().zip(&v).map(|(score, v)| score / total * v[i]).sum();
                }
            }
        }
        out
    }
}

/// Whole words and single signs, without a library: what the tests' texts are made of.
fn ids(text: &str, most: usize) -> Vec<usize> {
    let text = text.to_lowercase().replace('!', " ! ").replace("catsat", "cat ##sat");
    let id = |word: &str| WORDS.iter().position(|known| *known == word).unwrap_or(1);
    let words = text.split_whitespace().map(id).take(most - 2);
    [2].into_iter().chain(words).chain([3]).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sum(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}

/// The Taylor series.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut total) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        total += term / f64::from(2 * n + 1);
    }
    total * 2.0 / std::f64::consts::PI.sqrt()
}

#[expect(clippy::disallowed_methods, reason = "a test writes its data")]
fn make_folder(path: &Path) {
    std::fs::create_dir_all(path).unwrap();
}
