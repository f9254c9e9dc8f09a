//! The goldens of tiny models: what transformers + PEFT make of them, and the engine to compare.

use std::path::{Path, PathBuf};

use insula_kernels::Precision;
use insula_worker::{
    adapter::{Adapter, AdapterConfig, Target},
    base::{self, Base},
    device::Device,
    engine::{Compute, Example, SlotGradient},
    optimizer::{AdamWConfig, AdamWState, clip_grad_norm},
};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::common;

/// Why the engine does not run this configuration, if so.
fn unsupported(config: &Value) -> Option<String> {
    let model_type = config["model_type"].as_str().unwrap_or("none");
    if model_type != "llama" {
        return Some(format!("model_type {model_type}"));
    }
    let rope = [
        &config["rope_parameters"]["rope_type"],
        &config["rope_scaling"]["rope_type"],
        &config["rope_scaling"]["type"],
    ];
    if let Some(kind) = rope.iter().filter_map(|v| v.as_str()).find(|kind| !["default", "llama3"].contains(kind)) {
        return Some(format!("rope scaling {kind}"));
    }
    if config["hidden_act"].as_str().is_some_and(|act| act != "silu") {
        return Some(format!("activation {}", config["hidden_act"]));
    }
    ["attention_bias", "mlp_bias"].iter().find(|key| config[**key] == true).map(|key| (*key).to_owned())
}

/// The tiny models the engine runs; says which it skips and why.
pub fn tiny_models() -> Vec<PathBuf> {
    let Some(folder) = common::parity().map(|folder| folder.join("tiny")).filter(|folder| folder.is_dir()) else {
        println!("skipped: no folder tiny/ of goldens");
        return vec![];
    };
    let mut all = common::folders(&folder);
    all.retain(|path| path.join("golden.json").exists());
    all.retain(|path| match unsupported(&common::json(&path.join("config.json"))) {
        None => true,
        Some(why) => {
            println!("skipped {}: {why}", path.display());
            false
        }
    });
    assert!(!all.is_empty(), "no supported model in {}", folder.display());
    all
}

/// Named float32 tensors of a safetensors file.
pub struct Tensors(Vec<u8>);

impl Tensors {
    pub fn open(path: &Path) -> Self {
        Self(common::read(path))
    }

    pub fn get(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

pub fn adapter(folder: &Path, model: &base::ModelConfig) -> Adapter {
    let config = common::json(&folder.join("adapter_config.json"));
    let modules = config["target_modules"].as_array().unwrap();
    let targets = modules.iter().map(|m| Target::of_module(m.as_str().unwrap()).unwrap()).collect();
    let (r, alpha) = (config["r"].as_u64().unwrap() as usize, config["lora_alpha"].as_f64().unwrap());
    let mut adapter = Adapter::zeros(AdapterConfig { r, alpha, targets }, model);
    let file = Tensors::open(&folder.join("adapter_model.safetensors"));
    for segment in &adapter.layout.segments {
        let values = file.get(&format!("base_model.model.{}", segment.name()));
        adapter.params[segment.range()].copy_from_slice(&values);
    }
    adapter
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

pub fn example(value: &Value, prompt: &str, target: &str) -> Example {
    let prompt = ids(&value[prompt]);
    Example { prompt_tokens: prompt.len(), ids: [prompt, ids(&value[target])].concat(), weight: 1.0 }
}

/// Frobenius norm of the difference over that of the reference.
pub fn distance(ours: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(ours.len(), reference.len());
    let square = |x: f64| x * x;
    let difference: f64 = ours.iter().zip(reference).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = reference.iter().map(|b| square(f64::from(*b))).sum();
    (difference / norm).sqrt()
}

pub fn assert_close(what: &str, ours: &[f32], reference: &[f32], tolerance: f64) {
    let distance = distance(ours, reference);
    assert!(distance <= tolerance, "{what}: relative distance {distance:.2e}, at most {tolerance:.0e} expected");
}

pub fn relative(ours: f64, reference: f64) -> f64 {
    ((ours - reference) / reference).abs()
}

/// A golden of one tiny model, and the engine to compare.
pub struct Tiny {
    pub name: String,
    pub golden: Value,
    pub tensors: Tensors,
    pub engine: Box<dyn Compute>,
    pub adapter: Adapter,
    pub examples: Vec<Example>,
}

impl Tiny {
    /// The golden in a folder, its base on a device.
    pub fn open(folder: &Path, device: &Device) -> Self {
        let base = Base::open(folder).unwrap();
        let golden = common::json(&folder.join("golden.json"));
        let examples = golden["sequences"].as_array().unwrap().iter().map(|s| example(s, "prompt", "target")).collect();
        Self {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            tensors: Tensors::open(&folder.join("golden.safetensors")),
            engine: device.load(&base.config, &base, Precision::F32).unwrap(),
            adapter: adapter(&folder.join("adapter_init"), &base.config),
            examples,
            golden,
        }
    }

    /// Every golden that the engine runs.
    pub fn each(device: &Device) -> impl Iterator<Item = Self> {
        tiny_models().into_iter().map(|folder| Self::open(&folder, device))
    }

    /// The gradient of all its examples.
    pub fn slot(&mut self) -> SlotGradient {
        self.engine.slot_gradient(&self.adapter, &self.examples).unwrap()
    }
}

/// One update as the goldens make it: token mean, clipping, AdamW. Returns the mean loss and the norm before clipping.
pub fn update(slot: SlotGradient, optimizer: &Value, state: &mut AdamWState, adapter: &mut Adapter) -> (f64, f64) {
    let number = |key: &str| optimizer[key].as_f64().unwrap();
    let beta = |i: usize| optimizer["betas"][i].as_f64().unwrap() as f32;
    let config = AdamWConfig {
        beta1: beta(0),
        beta2: beta(1),
        eps: number("eps") as f32,
        weight_decay: number("weight_decay") as f32,
    };
    let tokens = slot.supervised_tokens;
    let mut gradient = slot.gradient;
    gradient.iter_mut().for_each(|g| *g /= tokens as f32);
    let norm = clip_grad_norm(&mut gradient, number("clip_norm"));
    state.update(&config, number("lr") as f32, &gradient, 1.0, &mut adapter.params);
    (slot.loss_sum / tokens as f64, norm)
}
