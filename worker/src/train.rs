//! Training an adapter, or all weights of the base: a state that advances by one update at a time.
//!
//! ```text
//! plan_update: samples of the update -> slots; compute: a run of slots -> gradients -> subtrees of the sum
//! step: the whole sum -> clip -> AdamW -> next update; advance: all of it, alone
//! ```
//!
//! Nothing here waits, writes or asks the time, so a run that is cut between two updates and continued elsewhere from
//! its [`State`] and [`Progress`] computes the same bits as one that was not.

use std::{collections::BTreeMap, ops::Range};

use insula_proto::job::Stage;

use crate::{
    adapter::Adapter,
    checkpoint::{self, CheckpointError, Progress, State},
    engine::{Compute, EngineError, Example, SlotGradient},
    forest::count_tree_tokens,
    memory,
    optimizer::{AdamWConfig, AdamWState, clip_coefficient, gradient_norm, lr},
    parameters::Parameters,
    plan::{self, Sample},
    reduce::{Node, TreeSum},
    sync::SlotFacts,
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
    fn slot_gradient(&self, engine: &mut dyn Compute, examples: &[Example]) -> Result<SlotGradient, EngineError> {
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

/// An update before it is computed; the same for every member of a gang.
#[derive(Debug, Clone)]
pub struct Update {
    /// From 1.
    pub number: u32,
    /// The pass over the samples, from 1, that it is of.
    pub pass: u32,
    /// Place of its first sample in the order of the pass.
    pub first: u64,
    /// Its samples, in order.
    pub samples: Vec<Sample>,
    /// Which of them each slot is of.
    pub slots: Vec<Range<usize>>,
    /// By sample, with their weights in this update.
    examples: Vec<Example>,
    /// What turns the sum of losses into the loss that is minimised.
    denominator: f64,
}

impl Update {
    /// The tree tokens of each slot: what computing it takes.
    pub fn costs(&self) -> Vec<u64> {
        let tokens = |slot: &Range<usize>| {
            let sequences: Vec<&[u32]> = self.examples[slot.clone()].iter().map(|e| e.ids.as_slice()).collect();
            count_tree_tokens(&sequences)
        };
        self.slots.iter().map(tokens).collect()
    }
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

    /// Computes the next update alone. Where all weights are trained, the engine is left with those of before its step.
    ///
    /// # Errors
    /// See [`TrainError`]; the run stays as it was.
    ///
    /// # Panics
    /// When the training is finished.
    pub fn advance(&mut self, engine: &mut dyn Compute) -> Result<Advanced, TrainError> {
        let update = self.plan_update();
        let (nodes, facts) = self.compute(engine, &update, 0..update.slots.len())?;
        let mut sum = TreeSum::default();
        nodes.into_iter().for_each(|node| sum.push_node(node));
        let gradient = sum.finish().expect("an update has at least one sample");
        self.step(&update, &gradient, &facts)
    }

    /// Whether gradients are to be added in the slots' order, whoever computes.
    pub fn sums_exactly(&self) -> bool {
        self.stage.train.sum.is_exact()
    }

    /// Tree tokens of its longest slot.
    pub fn longest_slot(&self) -> usize {
        memory::longest_slot(&self.stage, self.seed, &self.samples, |sample| &self.examples[sample].ids)
    }

    /// What the next update is made of.
    ///
    /// # Panics
    /// When the training is finished.
    pub fn plan_update(&self) -> Update {
        assert!(!self.finished(), "a finished training has no next update");
        let place = self.progress.update % self.updates_per_pass();
        let samples = self.pass.1[place as usize].clone();
        let mut examples: Vec<Example> = samples.iter().map(|sample| self.examples[sample].clone()).collect();
        let weighed = |(sample, example): (&Sample, &Example)| Weighed {
            objective: sample.objective,
            class: f64::from(example.weight),
            tokens: example.ids.len() - example.prompt_tokens,
        };
        let weighed: Vec<Weighed> = samples.iter().zip(&examples).map(weighed).collect();
        let (weights, denominator) = weights::of_update(&weighed, self.stage.impact_weight);
        examples.iter_mut().zip(weights).for_each(|(example, weight)| example.weight = weight);
        let sequences: Vec<&[u32]> = examples.iter().map(|example| example.ids.as_slice()).collect();
        let slots = plan::slots(&sequences, self.stage.train.slot_tokens as usize);
        let first = u64::from(place) * u64::from(self.stage.train.batch);
        Update { number: self.progress.update + 1, pass: self.pass.0, first, samples, slots, examples, denominator }
    }

    /// Computes a run of an update's slots: the subtrees they add up to, and what each slot says beside its gradient.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn compute(
        &self,
        engine: &mut dyn Compute,
        update: &Update,
        run: Range<usize>,
    ) -> Result<(Vec<Node>, Vec<SlotFacts>), EngineError> {
        engine.set_recompute(self.stage.train.recompute);
        engine.expect_tokens(self.stage.train.slot_tokens as usize);
        if let Trained::All(parameters) = &self.trained {
            engine.set_weights(parameters)?;
        }
        let mut sum = TreeSum::starting_at(run.start as u64);
        let mut facts = Vec::with_capacity(run.len());
        for slot in &update.slots[run] {
            let slot = self.trained.slot_gradient(engine, &update.examples[slot.clone()])?;
            facts.push(SlotFacts { loss_sum: slot.loss_sum, tree_tokens: slot.tree_tokens });
            sum.push(slot.gradient);
        }
        Ok((sum.into_nodes(), facts))
    }

    /// Steps along the update's whole gradient; `facts` are all its slots'.
    ///
    /// # Errors
    /// When the loss or the gradient is not finite; the run stays as it was.
    ///
    /// # Panics
    /// When the update is not the next one, or the gradient is of another length than what is trained.
    pub fn step(&mut self, update: &Update, gradient: &[f32], facts: &[SlotFacts]) -> Result<Advanced, TrainError> {
        assert_eq!(update.number, self.progress.update + 1, "updates follow one another");
        let denominator = update.denominator;
        // From 0 and in the slots' order, whoever computed them: the loss, too, is the same bits.
        let loss_sum = facts.iter().fold(0.0, |sum, slot| sum + slot.loss_sum);
        let loss = loss_sum / denominator;
        let gradient_norm = gradient_norm(gradient) / denominator;
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(TrainError::Diverged { update: update.number, loss });
        }
        let lr = self.learning_rate();
        let scale = clip_coefficient(gradient_norm, self.stage.train.clip_norm) / denominator;
        let config = self.adamw();
        self.optimizer.update(&config, lr as f32, gradient, scale as f32, self.trained.params_mut());
        self.count(update, facts.iter().map(|slot| slot.tree_tokens).sum(), loss);
        let finished_epoch = self.finished_epoch();
        if !self.finished() {
            self.plan_pass();
        }
        Ok(Advanced { loss, gradient_norm, lr, finished_epoch })
    }

    /// The epoch (from 1) that ended with the last update.
    pub fn finished_epoch(&self) -> Option<u32> {
        let update = self.progress.update;
        (1..=self.stage.train.epochs).find(|&epoch| update > 0 && self.end_of(epoch) == update)
    }

    /// Whether a checkpoint is due after the last update: the recipe's every so many, and at the end of each epoch.
    pub fn checkpoint_due(&self) -> bool {
        let update = self.progress.update;
        let regular = update > 0 && update.is_multiple_of(self.stage.train.checkpoint_updates);
        regular || self.finished_epoch().is_some()
    }

    /// The vectors as they stand: what is trained, and AdamW's moments.
    pub fn vectors(&self) -> [&[f32]; 3] {
        [self.trained.params(), &self.optimizer.m, &self.optimizer.v]
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

    fn count(&mut self, update: &Update, tree_tokens: u64, loss: f64) {
        let progress = &mut self.progress;
        progress.update += 1;
        progress.samples += update.samples.len() as u64;
        progress.tokens += update.examples.iter().map(|example| example.ids.len() as u64).sum::<u64>();
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
