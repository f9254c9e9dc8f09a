//! How an adapter is trained: the recipe, and the stages a training may have.

use serde::{Deserialize, Serialize};

/// The training recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// Passes over the sampled training split.
    pub epochs: u32,
    /// Samples per update.
    pub batch: u32,
    /// Peak learning rate.
    pub lr: f64,
    /// Part of all updates over which the learning rate rises to its peak; it falls to 0 over the rest.
    pub warmup: f64,
    /// AdamW's first decay rate.
    pub beta1: f64,
    /// AdamW's second decay rate.
    pub beta2: f64,
    /// AdamW's epsilon.
    pub eps: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// The gradient's greatest norm.
    pub clip_norm: f64,
    /// How samples are dealt into updates.
    pub batching: Batching,
    /// Tree tokens of one slot, at most; bounds the memory of an update.
    pub slot_tokens: u32,
    /// Whether activations are computed again in the backward pass instead of kept: less memory, a third more work.
    #[serde(default)] // journals of 0.1.0 do not have it
    pub recompute: bool,
    /// A checkpoint is kept every so many updates.
    pub checkpoint_updates: u32,
    /// Updates of the whole training, however many passes that takes; an epoch is then its `epochs`-th part. 0: as many
    /// as `epochs` passes have.
    #[serde(default)]
    pub updates: u32,
    /// How much a sample counts by its label.
    #[serde(default)]
    pub class_weights: ClassWeights,
    /// What is trained.
    #[serde(default)]
    pub parameters: Parameters,
    /// How the gradients of a gang's GPUs are added.
    #[serde(default)]
    pub sum: Sum,
}

/// How the gradients of a gang's GPUs are added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sum {
    /// In the slots' order: the same bits from any number of workers.
    #[default]
    Exact,
    /// In NCCL's order, where it joins the members: fewer bytes through host memory, other bits for other gangs.
    Fast,
}

impl Sum {
    /// Whether it is exact.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        *self == Self::Exact
    }
}

/// What is trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Parameters {
    /// LoRA's pairs, beside the frozen base.
    #[default]
    Lora,
    /// All weights of the base.
    All,
}

/// How much a sample counts by its label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassWeights {
    /// All alike.
    #[default]
    None,
    /// `n / (labels * n of the label)` over the sampled training split, as scikit-learn's `balanced`.
    Balanced,
}

/// What a sample asks of the model; the paper calls it a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// The emotion of an utterance.
    Main,
    /// Who speaks, from the utterance alone.
    Speaker,
    /// The emotion of the next utterance, from the history before it.
    Impact,
}

impl Objective {
    /// The name in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Objective::Main => "main",
            Objective::Speaker => "speaker",
            Objective::Impact => "impact",
        }
    }
}

/// One step of a training: what it asks, and where its recipe differs from the job's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSpec {
    /// What each sample is asked, one prompt per objective.
    pub objectives: Vec<Objective>,
    /// The loss is main's mean plus this times impact's mean, as the paper writes it. Absent: one mean over all prompts,
    /// as the authors' code has it.
    #[serde(default)]
    pub impact_weight: Option<f64>,
    /// As `train.epochs`.
    #[serde(default)]
    pub epochs: Option<u32>,
    /// As `train.updates`.
    #[serde(default)]
    pub updates: Option<u32>,
    /// As `train.batch`.
    #[serde(default)]
    pub batch: Option<u32>,
    /// As `train.lr`.
    #[serde(default)]
    pub lr: Option<f64>,
    /// As `train.warmup`.
    #[serde(default)]
    pub warmup: Option<f64>,
}

/// A step of a training with its whole recipe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    /// What each sample is asked.
    pub objectives: Vec<Objective>,
    /// See [`StageSpec::impact_weight`].
    pub impact_weight: Option<f64>,
    /// The recipe.
    pub train: TrainSpec,
}

impl StageSpec {
    /// This stage with the job's recipe where it says nothing of its own.
    pub(super) fn over(&self, train: &TrainSpec) -> Stage {
        let train = TrainSpec {
            epochs: self.epochs.unwrap_or(train.epochs),
            updates: self.updates.unwrap_or(train.updates),
            batch: self.batch.unwrap_or(train.batch),
            lr: self.lr.unwrap_or(train.lr),
            warmup: self.warmup.unwrap_or(train.warmup),
            ..train.clone()
        };
        Stage { objectives: self.objectives.clone(), impact_weight: self.impact_weight, train }
    }
}

impl Stage {
    /// What it does, in a word or two.
    pub fn name(&self) -> String {
        self.objectives.iter().map(|objective| objective.as_str()).collect::<Vec<_>>().join("+")
    }
}

/// How samples are dealt into updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Batching {
    /// Dialogues are shuffled and their samples stay together: the most shared prefixes.
    Dialogue,
    /// Samples are shuffled one by one, as the papers do.
    Utterance,
}

impl Default for TrainSpec {
    /// The paper's recipe, but for dropout, which insula does not have yet.
    fn default() -> Self {
        Self {
            epochs: 6,
            batch: 32,
            lr: 2e-4,
            warmup: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            clip_norm: 1.0,
            batching: Batching::Dialogue,
            slot_tokens: 1280,
            recompute: false,
            checkpoint_updates: 10,
            updates: 0,
            class_weights: ClassWeights::None,
            parameters: Parameters::Lora,
            sum: Sum::Exact,
        }
    }
}
