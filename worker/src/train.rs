//! Training an adapter, or all weights of the base: a state that advances by one update at a time.
//!
//! ```text
//! advance: samples of the update -> slots -> slot gradients -> tree sum -> clip -> AdamW -> next update
//! ```
//!
//! Nothing here waits, writes or asks the time, so a run that is cut between two updates and continued elsewhere from
//! its [`State`] and [`Progress`] computes the same bits as one that was not.

use std::collections::BTreeMap;

use insula_kernels::Backend;
use insula_proto::job::JobSpec;

use crate::{
    adapter::Adapter,
    checkpoint::{self, CheckpointError, Progress, State},
    engine::{Engine, EngineError, Example, SlotGradient},
    optimizer::{AdamWConfig, AdamWState, clip_coefficient, gradient_norm, lr},
    parameters::Parameters,
    plan::{self, Sample},
    reduce::TreeSum,
};

/// What a training changes.
#[derive(Debug, Clone, PartialEq)]
pub enum Trained {
    /// An adapter beside the frozen base.
    Adapter(Adapter),
    /// All weights of the base.
    All(Parameters),
}

impl Trained {
    /// The flat vector.
    #[must_use]
    pub fn params(&self) -> &[f32] {
        match self {
            Self::Adapter(adapter) => &adapter.params,
            Self::All(parameters) => &parameters.params,
        }
    }

    fn params_mut(&mut self) -> &mut Vec<f32> {
        match self {
            Self::Adapter(adapter) => &mut adapter.params,
            Self::All(parameters) => &mut parameters.params,
        }
    }

    /// A slot's gradient; an engine whose weights are trained holds them already.
    fn slot_gradient<B: Backend>(
        &self,
        engine: &mut Engine<B>,
        examples: &[Example],
    ) -> Result<SlotGradient, EngineError> {
        match self {
            Self::Adapter(adapter) => engine.slot_gradient(adapter, examples),
            Self::All(_) => engine.full_gradient(examples),
        }
    }
}

impl From<Adapter> for Trained {
    fn from(adapter: Adapter) -> Self {
        Self::Adapter(adapter)
    }
}

impl From<Parameters> for Trained {
    fn from(parameters: Parameters) -> Self {
        Self::All(parameters)
    }
}

/// A training run at the end of some update.
pub struct Training {
    spec: JobSpec,
    samples: Vec<Sample>,
    examples: BTreeMap<Sample, Example>,
    /// The updates of the epoch that the next update belongs to.
    epoch: (u32, Vec<Vec<Sample>>),
    trained: Trained,
    optimizer: AdamWState,
    progress: Progress,
}

/// What one update did.
#[derive(Debug, Clone, PartialEq)]
pub struct Advanced {
    /// Mean loss over the update's supervised tokens by their weights, nat, before the step.
    pub loss: f64,
    /// The gradient's norm before clipping.
    pub gradient_norm: f64,
    /// The learning rate of the step.
    pub lr: f64,
    /// The epoch (from 1) that ended with this update.
    pub finished_epoch: Option<u32>,
}

/// Why an update could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The loss is no longer a number: stepping on would ruin what was trained.
    #[error("update {update}: the loss is {loss}; a smaller learning rate (train.lr) may keep it finite")]
    Diverged {
        /// The update, from 1.
        update: u32,
        /// What it was.
        loss: f64,
    },
}

impl Training {
    /// A run before its first update. `examples` holds every sample of `samples`.
    pub fn new(
        spec: JobSpec,
        samples: Vec<Sample>,
        examples: BTreeMap<Sample, Example>,
        trained: impl Into<Trained>,
    ) -> Self {
        let trained = trained.into();
        let optimizer = AdamWState::new(trained.params().len());
        let mut training =
            Self { spec, samples, examples, epoch: (0, vec![]), trained, optimizer, progress: Progress::default() };
        training.plan_epoch();
        training
    }

    /// Puts the run where a checkpoint left it.
    ///
    /// # Errors
    /// When the checkpoint is not of this run's shape.
    pub fn resume(&mut self, progress: Progress, state: State) -> Result<(), CheckpointError> {
        if progress.update > self.updates() {
            let problem = format!("update {} of a training of {}", progress.update, self.updates());
            return Err(CheckpointError::State(problem));
        }
        *self.trained.params_mut() = state.params;
        self.optimizer = AdamWState { m: state.first, v: state.second, step: progress.update };
        self.progress = progress;
        self.plan_epoch();
        Ok(())
    }

    /// Updates in an epoch.
    fn updates_per_epoch(&self) -> u32 {
        let updates = self.samples.len().div_ceil(self.spec.train.batch as usize);
        u32::try_from(updates).expect("a split has fewer than 2^32 samples")
    }

    /// Updates of the whole training.
    pub fn updates(&self) -> u32 {
        self.updates_per_epoch() * self.spec.train.epochs
    }

    /// Whether the last update was computed.
    pub fn finished(&self) -> bool {
        self.progress.update >= self.updates()
    }

    /// The epoch, from 1, of the next update (after the last one: the last epoch).
    pub fn current_epoch(&self) -> u32 {
        (self.progress.update / self.updates_per_epoch().max(1) + 1).min(self.spec.train.epochs)
    }

    /// What was computed so far.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What is trained, as it stands.
    pub fn trained(&self) -> &Trained {
        &self.trained
    }

    /// The bytes of a checkpoint's `state.safetensors`.
    pub fn encoded_state(&self) -> Vec<u8> {
        checkpoint::encode_state(self.trained.params(), &self.optimizer.m, &self.optimizer.v)
    }

    /// Adds time that was spent in updates; the clock is the caller's.
    pub fn spent(&mut self, seconds: f64) {
        self.progress.seconds += seconds;
    }

    /// Computes the next update. Where all weights are trained, the engine is left with those of before its step.
    ///
    /// # Errors
    /// See [`TrainError`]; the run stays as it was.
    ///
    /// # Panics
    /// When the training is finished.
    pub fn advance<B: Backend>(&mut self, engine: &mut Engine<B>) -> Result<Advanced, TrainError> {
        assert!(!self.finished(), "a finished training has no next update");
        engine.set_recompute(self.spec.train.recompute);
        engine.expect_tokens(self.spec.train.slot_tokens as usize);
        let place = self.progress.update % self.updates_per_epoch();
        let update = self.epoch.1[place as usize].clone();
        let computed = self.gradient(engine, &update)?;
        let denominator = computed.denominator();
        let loss = computed.loss_sum / denominator;
        let gradient_norm = gradient_norm(&computed.gradient) / denominator;
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(TrainError::Diverged { update: self.progress.update + 1, loss });
        }
        let lr = self.learning_rate();
        let scale = clip_coefficient(gradient_norm, self.spec.train.clip_norm) / denominator;
        let config = self.adamw();
        self.optimizer.update(&config, lr as f32, &computed.gradient, scale as f32, self.trained.params_mut());
        self.count(&update, computed.tree_tokens, loss);
        let ended = self.progress.update.is_multiple_of(self.updates_per_epoch());
        let finished_epoch = ended.then(|| self.progress.update / self.updates_per_epoch());
        if ended && !self.finished() {
            self.plan_epoch();
        }
        Ok(Advanced { loss, gradient_norm, lr, finished_epoch })
    }

    /// The learning rate of the next update.
    fn learning_rate(&self) -> f64 {
        let train = &self.spec.train;
        lr(train.lr, u64::from(self.progress.update), u64::from(self.updates()), train.warmup)
    }

    fn adamw(&self) -> AdamWConfig {
        let train = &self.spec.train;
        AdamWConfig {
            beta1: train.beta1 as f32,
            beta2: train.beta2 as f32,
            eps: train.eps as f32,
            weight_decay: train.weight_decay as f32,
        }
    }

    /// The update's slots, computed and added in the fixed order.
    fn gradient<B: Backend>(&self, engine: &mut Engine<B>, update: &[Sample]) -> Result<UpdateGradient, EngineError> {
        let examples: Vec<&Example> = update.iter().map(|sample| &self.examples[sample]).collect();
        let sequences: Vec<&[u32]> = examples.iter().map(|example| example.ids.as_slice()).collect();
        if let Trained::All(parameters) = &self.trained {
            engine.set_weights(parameters)?;
        }
        let mut sum = TreeSum::default();
        let (mut loss_sum, mut weight_sum, mut tree_tokens) = (0.0, 0.0, 0);
        for slot in plan::slots(&sequences, self.spec.train.slot_tokens as usize) {
            let examples: Vec<Example> = examples[slot].iter().map(|&example| example.clone()).collect();
            let slot = self.trained.slot_gradient(engine, &examples)?;
            loss_sum += slot.loss_sum;
            weight_sum += slot.weight_sum;
            tree_tokens += slot.tree_tokens;
            sum.push(slot.gradient);
        }
        let gradient = sum.finish().expect("an update has at least one sample");
        Ok(UpdateGradient { gradient, loss_sum, weight_sum, tree_tokens })
    }

    fn count(&mut self, update: &[Sample], tree_tokens: u64, loss: f64) {
        let progress = &mut self.progress;
        progress.update += 1;
        progress.samples += update.len() as u64;
        progress.tokens += update.iter().map(|sample| self.examples[sample].ids.len() as u64).sum::<u64>();
        progress.tree_tokens += tree_tokens;
        progress.losses.push(loss as f32);
    }

    /// Deals the samples of the epoch that the next update belongs to.
    fn plan_epoch(&mut self) {
        let epoch = self.current_epoch();
        if self.epoch.0 != epoch {
            let train = &self.spec.train;
            let updates = plan::epoch(&self.samples, train.batching, train.batch as usize, self.spec.seed, epoch);
            self.epoch = (epoch, updates);
        }
    }
}

/// An update's gradient of the summed loss.
struct UpdateGradient {
    gradient: Vec<f32>,
    loss_sum: f64,
    weight_sum: f64,
    tree_tokens: u64,
}

impl UpdateGradient {
    /// What makes sums means. An update whose examples all weigh 0 has a gradient of zero, not of nothing.
    fn denominator(&self) -> f64 {
        if self.weight_sum > 0.0 { self.weight_sum } else { 1.0 }
    }
}
