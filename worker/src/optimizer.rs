//! The optimizer: AdamW with gradient clipping and a warm-up-then-linear schedule, as torch and transformers compute
//! them, on flat vectors.
//!
//! Serial and in one order, so that every worker of a gang that holds the same bytes and steps with the same gradient
//! holds the same bytes after.

use insula_kernels::{AdamW, cpu::adamw};
use serde::{Deserialize, Serialize};

/// AdamW's constants, apart from the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f32,
}

impl Default for AdamWConfig {
    /// torch's defaults, without weight decay.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// What AdamW remembers between updates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdamWState {
    /// First moments, `[params]`.
    pub m: Vec<f32>,
    /// Second moments, `[params]`.
    pub v: Vec<f32>,
    /// Updates made so far.
    pub step: u32,
}

impl AdamWState {
    /// The state before the first update of `len` parameters.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self { m: vec![0.0; len], v: vec![0.0; len], step: 0 }
    }

    /// One update of `params` along `gradient * gradient_scale`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn update(&mut self, config: &AdamWConfig, lr: f32, gradient: &[f32], gradient_scale: f32, params: &mut [f32]) {
        self.step += 1;
        let AdamWConfig { beta1, beta2, eps, weight_decay } = *config;
        let step = AdamW { lr, beta1, beta2, eps, weight_decay, step: self.step, gradient_scale };
        adamw::step(&step, gradient, params, &mut self.m, &mut self.v);
    }
}

/// Euclidean norm, added up in float64 in fixed chunks.
#[must_use]
pub fn gradient_norm(gradient: &[f32]) -> f64 {
    adamw::sum_squares(gradient).sqrt()
}

/// The factor torch's `clip_grad_norm_` applies: `max / (norm + 1e-6)`, at most 1.
#[must_use]
pub fn clip_coefficient(norm: f64, max: f64) -> f64 {
    (max / (norm + 1e-6)).min(1.0)
}

/// Scales `gradient` to a norm of at most `max` and returns the norm it had.
pub fn clip_grad_norm(gradient: &mut [f32], max: f64) -> f64 {
    let norm = gradient_norm(gradient);
    let coefficient = clip_coefficient(norm, max) as f32;
    if coefficient < 1.0 {
        gradient.iter_mut().for_each(|g| *g *= coefficient);
    }
    norm
}

/// The share of the peak learning rate at `update` (from 0) of `total`: linear from 0 over the warm-up, then linear to
/// 0, as transformers' `get_linear_schedule_with_warmup`; the warm-up is `ceil(total * warmup_fraction)` updates.
#[must_use]
pub fn lr_factor(update: u64, total: u64, warmup_fraction: f64) -> f64 {
    let warmup = (total as f64 * warmup_fraction).ceil() as u64;
    if update < warmup {
        update as f64 / warmup.max(1) as f64
    } else {
        total.saturating_sub(update) as f64 / total.saturating_sub(warmup).max(1) as f64
    }
}

/// The learning rate at `update` of `total`, peaking at `peak`; see [`lr_factor`].
#[must_use]
pub fn lr(peak: f64, update: u64, total: u64, warmup_fraction: f64) -> f64 {
    peak * lr_factor(update, total, warmup_fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_rises_then_falls_to_zero() {
        let rates: Vec<f64> = (0..=10).map(|update| lr_factor(update, 10, 0.2)).collect();
        assert_eq!(rates, [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]);
        assert_eq!(lr(2.0, 0, 4, 0.0), 2.0);
    }

    #[test]
    fn clipping_leaves_small_gradients_alone() {
        let mut small = vec![0.3, 0.4];
        assert!((clip_grad_norm(&mut small, 1.0) - 0.5).abs() < 1e-7);
        assert_eq!(small, [0.3, 0.4]);
        let mut large = vec![3.0, 4.0];
        assert!((clip_grad_norm(&mut large, 1.0) - 5.0).abs() < 1e-6);
        assert!((gradient_norm(&large) - 1.0).abs() < 1e-6);
    }

    /// Worked by hand: the first step moves by lr * g / (|g| + eps) after decay.
    #[test]
    fn the_first_step_is_the_sign_of_the_gradient() {
        let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
        let mut state = AdamWState::new(2);
        let mut params = vec![1.0, -2.0];
        state.update(&config, 0.01, &[5.0, -0.5], 2.0, &mut params);
        let expected = [1.0 - 0.001 - 0.01, -2.0 + 0.002 + 0.01];
        assert!(params.iter().zip(expected).all(|(p, e): (&f32, f32)| (p - e).abs() < 1e-6), "{params:?}");
        assert_eq!(state.step, 1);
    }
}
