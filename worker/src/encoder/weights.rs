//! BERT's tensors, checked and packed for the products that read them.

use std::collections::BTreeMap;
use std::path::Path;

use insula_kernels::cpu::CpuWeight;
use insula_kernels::{Backend, Cpu, Precision};

use super::EncoderError;
use super::settings::Settings;
use crate::base::{Folder, Refusal, Stored};

/// `y = x W^T + b`.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weight: CpuWeight,
    /// `[out]`.
    pub(super) bias: Vec<f32>,
}

/// LayerNorm's gain and bias, `[hidden]` each.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) gain: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) attention_norm: Norm,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) norm: Norm,
}

#[derive(Debug)]
pub(super) struct Weights {
    /// `[vocab, hidden]`.
    pub(super) words: Vec<f32>,
    /// `[positions, hidden]`; the first token type's vector is added to each.
    pub(super) places: Vec<f32>,
    pub(super) norm: Norm,
    pub(super) layers: Vec<Layer>,
    hidden: usize,
}

impl Weights {
    /// Reads the folder's tensors, which must be those that the settings ask for.
    pub(super) fn read(cpu: &Cpu, folder: &Folder, path: &Path, settings: &Settings) -> Result<Weights, EncoderError> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in folder.tensors(path)? {
            let name = canonical(&name);
            if !is_head(&name) {
                tensors.insert(name, tensor);
            }
        }
        check(&tensors, settings).map_err(|refusal| refusal.about(path))?;
        let reader = Reader { cpu, folder, tensors: &tensors };
        let hidden = settings.hidden;
        let types = reader.values("embeddings.token_type_embeddings.weight");
        let mut places = reader.values("embeddings.position_embeddings.weight");
        for place in places.chunks_exact_mut(hidden) {
            place.iter_mut().zip(&types).for_each(|(place, kind)| *place += kind);
        }
        let layers = (0..settings.layers).map(|layer| reader.layer(layer)).collect::<Result<_, EncoderError>>()?;
        let words = reader.values("embeddings.word_embeddings.weight");
        Ok(Weights { words, places, norm: reader.norm("embeddings.LayerNorm"), layers, hidden })
    }

    /// Rows of the table of words.
    pub(super) fn vocab(&self) -> usize {
        self.words.len() / self.hidden
    }
}

/// Reads tensors that were checked.
struct Reader<'a> {
    cpu: &'a Cpu,
    folder: &'a Folder,
    tensors: &'a BTreeMap<String, Stored>,
}

impl Reader<'_> {
    fn values(&self, name: &str) -> Vec<f32> {
        let tensor = &self.tensors[name];
        let mut values = vec![0.0; tensor.elements()];
        tensor.decode(&self.folder.weights[tensor.file].bytes, &mut values);
        values
    }

    fn norm(&self, name: &str) -> Norm {
        Norm { gain: self.values(&format!("{name}.weight")), bias: self.values(&format!("{name}.bias")) }
    }

    fn linear(&self, name: &str) -> Result<Linear, EncoderError> {
        let weight = format!("{name}.weight");
        let shape = &self.tensors[&weight].shape;
        let weight = self.cpu.weight([shape[0], shape[1]], &self.values(&weight), Precision::F32)?;
        Ok(Linear { weight, bias: self.values(&format!("{name}.bias")) })
    }

    fn layer(&self, layer: usize) -> Result<Layer, EncoderError> {
        let part = |part: &str| format!("encoder.layer.{layer}.{part}");
        Ok(Layer {
            query: self.linear(&part("attention.self.query"))?,
            key: self.linear(&part("attention.self.key"))?,
            value: self.linear(&part("attention.self.value"))?,
            output: self.linear(&part("attention.output.dense"))?,
            attention_norm: self.norm(&part("attention.output.LayerNorm")),
            up: self.linear(&part("intermediate.dense"))?,
            down: self.linear(&part("output.dense"))?,
            norm: self.norm(&part("output.LayerNorm")),
        })
    }
}

/// A tensor's name without the prefix that larger models give it, and with the newer names of a norm's parts.
fn canonical(name: &str) -> String {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
}

/// Parts of BERT that come after the last layer, for tasks that are not ours.
fn is_head(name: &str) -> bool {
    ["pooler.", "cls."].iter().any(|head| name.starts_with(head))
}

/// Every tensor that the settings ask for, in its shape.
fn shapes(settings: &Settings) -> impl Iterator<Item = (String, Vec<usize>)> {
    let Settings { vocab, hidden, intermediate, layers, positions, types, .. } = *settings;
    let table = |name: &str, rows| (format!("embeddings.{name}_embeddings.weight"), vec![rows, hidden]);
    let tables = [table("word", vocab), table("position", positions), table("token_type", types)];
    let norm = move |name: String| [(format!("{name}.weight"), vec![hidden]), (format!("{name}.bias"), vec![hidden])];
    let linear = move |name: String, [out, into]: [usize; 2]| {
        [(format!("{name}.weight"), vec![out, into]), (format!("{name}.bias"), vec![out])]
    };
    let layer = move |layer: usize| {
        let part = |part: &str| format!("encoder.layer.{layer}.{part}");
        let square = [hidden, hidden];
        let linears = [
            linear(part("attention.self.query"), square),
            linear(part("attention.self.key"), square),
            linear(part("attention.self.value"), square),
            linear(part("attention.output.dense"), square),
            linear(part("intermediate.dense"), [intermediate, hidden]),
            linear(part("output.dense"), [hidden, intermediate]),
        ];
        let norms = [norm(part("attention.output.LayerNorm")), norm(part("output.LayerNorm"))];
        linears.into_iter().chain(norms).flatten()
    };
    tables.into_iter().chain(norm("embeddings.LayerNorm".into())).chain((0..layers).flat_map(layer))
}

/// Checks that every tensor is there in its shape, and no other; it stops at the first that is not.
///
/// After this, every product of the settings' numbers is bounded by the size of a real file.
fn check(tensors: &BTreeMap<String, Stored>, settings: &Settings) -> Result<(), Refusal> {
    let mut expected = 0;
    for (name, shape) in shapes(settings) {
        match tensors.get(&name) {
            None => return Refusal::malformed(format!("tensor {name} is missing")),
            Some(tensor) if tensor.shape == shape => expected += 1,
            Some(tensor) => {
                let found = &tensor.shape;
                return Refusal::malformed(format!("tensor {name} has shape {found:?}, expected {shape:?}"));
            }
        }
    }
    if expected == tensors.len() {
        return Ok(());
    }
    let known: std::collections::BTreeSet<String> = shapes(settings).map(|(name, _)| name).collect();
    let stray = tensors.keys().find(|name| !known.contains(*name)).map_or("", String::as_str);
    Refusal::unsupported(format!("tensor {stray} is not a part of BERT with {} layers", settings.layers))
}
