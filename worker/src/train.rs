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
use insula_proto::job::Stage;

use crate::{
    adapter::Adapter,
    checkpoint::{self, CheckpointError, Progress, State},
    engine::{Engine, EngineError, Example, SlotGradient},
    optimizer::{AdamWConfig, AdamWState, clip_coefficient, gradient_norm, lr},
    parameters::Parameters,
    plan::{self, Sample},
    reduce::TreeSum,
    weights::{self, Weighed},
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
    stage: Stage,
    seed: u64,
    samples: Vec<Sample>,
    /// Each example's weight is its class's.
    examples: BTreeMap<Sample, Example>,
    /// The pass over the samples (from 1) that the next update belongs to, and its updates.
    pass: (u32, Vec<Vec<Sample>>),
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
    /// A run of a stage before its first update; `seed` is the stage's. `examples` holds every sample of `samples`, each
    /// with the weight of its class.
    pub fn new(
        stage: Stage,
        seed: u64,
        samples: Vec<Sample>,
        examples: BTreeMap<Sample, Example>,
        trained: impl Into<Trained>,
    ) -> Self {
        let trained = trained.into();
        let optimizer = AdamWState::new(trained.params().len());
        let (pass, progress) = ((0, vec![]), Progress::default());
        let mut training = Self { stage, seed, samples, examples, pass, trained, optimizer, progress };
        training.plan_pass();
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
        self.plan_pass();
        Ok(())
    }

    /// Updates of one pass over the samples.
    fn updates_per_pass(&self) -> u32 {
        let updates = self.samples.len().div_ceil(self.stage.train.batch as usize);
        u32::try_from(updates).expect("a split has fewer than 2^32 samples")
    }

    /// Updates of the whole training.
    pub fn updates(&self) -> u32 {
        match self.stage.train.updates {
            0 => self.updates_per_pass() * self.stage.train.epochs,
            updates => updates,
        }
    }

    /// Whether the last update was computed.
    pub fn finished(&self) -> bool {
        self.progress.update >= self.updates()
    }

    /// The last update of an epoch (from 1): of a pass, or of its part of a fixed number of updates.
    fn end_of(&self, epoch: u32) -> u32 {
        let (epochs, updates) = (u64::from(self.stage.train.epochs), u64::from(self.updates()));
        u32::try_from(u64::from(epoch) * updates / epochs).expect("no epoch ends after the last update")
    }

    /// The epoch, from 1, of the next update (after the last one: the last epoch).
    pub fn current_epoch(&self) -> u32 {
        let epochs = self.stage.train.epochs;
        (1..epochs).find(|&epoch| self.progress.update < self.end_of(epoch)).unwrap_or(epochs)
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
        engine.set_recompute(self.stage.train.recompute);
        engine.expect_tokens(self.stage.train.slot_tokens as usize);
        let place = self.progress.update % self.updates_per_pass();
        let update = self.pass.1[place as usize].clone();
        let computed = self.gradient(engine, &update)?;
        let denominator = computed.denominator;
        let loss = computed.loss_sum / denominator;
        let gradient_norm = gradient_norm(&computed.gradient) / denominator;
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(TrainError::Diverged { update: self.progress.update + 1, loss });
        }
        let lr = self.learning_rate();
        let scale = clip_coefficient(gradient_norm, self.stage.train.clip_norm) / denominator;
        let config = self.adamw();
        self.optimizer.update(&config, lr as f32, &computed.gradient, scale as f32, self.trained.params_mut());
        self.count(&update, computed.tree_tokens, loss);
        let finished_epoch = (1..=self.stage.train.epochs).find(|&epoch| self.end_of(epoch) == self.progress.update);
        if !self.finished() {
            self.plan_pass();
        }
        Ok(Advanced { loss, gradient_norm, lr, finished_epoch })
    }

    /// The learning rate of the next update.
    fn learning_rate(&self) -> f64 {
        let train = &self.stage.train;
        lr(train.lr, u64::from(self.progress.update), u64::from(self.updates()), train.warmup)
    }

    fn adamw(&self) -> AdamWConfig {
        let train = &self.stage.train;
        AdamWConfig {
            beta1: train.beta1 as f32,
            beta2: train.beta2 as f32,
            eps: train.eps as f32,
            weight_decay: train.weight_decay as f32,
        }
    }

    /// The update's slots, computed and added in the fixed order.
    fn gradient<B: Backend>(&self, engine: &mut Engine<B>, update: &[Sample]) -> Result<UpdateGradient, EngineError> {
        let mut examples: Vec<Example> = update.iter().map(|sample| self.examples[sample].clone()).collect();
        let weighed = |(sample, example): (&Sample, &Example)| Weighed {
            objective: sample.objective,
            class: f64::from(example.weight),
            tokens: example.ids.len() - example.prompt_tokens,
        };
        let weighed: Vec<Weighed> = update.iter().zip(&examples).map(weighed).collect();
        let (weights, denominator) = weights::of_update(&weighed, self.stage.impact_weight);
        examples.iter_mut().zip(weights).for_each(|(example, weight)| example.weight = weight);
        let sequences: Vec<&[u32]> = examples.iter().map(|example| example.ids.as_slice()).collect();
        if let Trained::All(parameters) = &self.trained {
            engine.set_weights(parameters)?;
        }
        let mut sum = TreeSum::default();
        let (mut loss_sum, mut tree_tokens) = (0.0, 0);
        for slot in plan::slots(&sequences, self.stage.train.slot_tokens as usize) {
            let slot = self.trained.slot_gradient(engine, &examples[slot])?;
            loss_sum += slot.loss_sum;
            tree_tokens += slot.tree_tokens;
            sum.push(slot.gradient);
        }
        let gradient = sum.finish().expect("an update has at least one sample");
        Ok(UpdateGradient { gradient, loss_sum, denominator, tree_tokens })
    }

    fn count(&mut self, update: &[Sample], tree_tokens: u64, loss: f64) {
        let progress = &mut self.progress;
        progress.update += 1;
        progress.samples += update.len() as u64;
        progress.tokens += update.iter().map(|sample| self.examples[sample].ids.len() as u64).sum::<u64>();
        progress.tree_tokens += tree_tokens;
        progress.losses.push(loss as f32);
    }

    /// Deals the samples of the pass that the next update belongs to.
    fn plan_pass(&mut self) {
        let pass = self.progress.update / self.updates_per_pass().max(1) + 1;
        if self.pass.0 != pass {
            let train = &self.stage.train;
            let updates = plan::pass(&self.samples, train.batching, train.batch as usize, self.seed, pass);
            self.pass = (pass, updates);
        }
    }
}

/// An update's gradient of the weighted sum of losses.
struct UpdateGradient {
    gradient: Vec<f32>,
    loss_sum: f64,
    /// What turns the sum into the loss that is minimised.
    denominator: f64,
    tree_tokens: u64,
}
