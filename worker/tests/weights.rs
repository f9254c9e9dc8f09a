//! An example's weight multiplies what it adds to the loss and to the gradient.
#![expect(clippy::unwrap_used, reason = "a test whose fixture fails stops there")]

#[path = "common/tiny.rs"]
mod tiny;

use insula_kernels::Cpu;
use insula_worker::adapter::{Adapter, AdapterConfig, Target};
use insula_worker::engine::{Compute, Engine, Example, SlotGradient};
use tiny::{engine, example, examples, farthest};

/// Every pair, B's off zero.
fn adapter(engine: &Engine<Cpu>) -> Adapter {
    let config = AdapterConfig { r: 2, alpha: 4.0, targets: Target::ALL.into() };
    let mut adapter = Adapter::init(config, engine.config(), 3);
    for (i, value) in adapter.params.iter_mut().enumerate().filter(|(_, value)| **value == 0.0) {
        *value = ((i * 37 % 11) as f32 - 5.0) * 0.05;
    }
    adapter
}

fn slot(examples: &[Example]) -> SlotGradient {
    let mut engine = engine(true, 2);
    let adapter = adapter(&engine);
    engine.slot_gradient(&adapter, examples).unwrap()
}

fn weighing(weights: &[f32]) -> Vec<Example> {
    examples().into_iter().zip(weights).map(|(example, weight)| Example { weight: *weight, ..example }).collect()
}

fn assert_close(ours: &SlotGradient, expected: &SlotGradient, times: f32) {
    let scaled: Vec<f32> = expected.gradient.iter().map(|g| g * times).collect();
    assert!(farthest(&ours.gradient, &scaled) < 1e-6, "off by {}", farthest(&ours.gradient, &scaled));
    assert!((ours.loss_sum / (expected.loss_sum * f64::from(times)) - 1.0).abs() < 1e-6);
}

#[test]
fn all_of_a_slot_at_twice_the_weight_is_twice_the_gradient() {
    let (once, twice) = (slot(&examples()), slot(&weighing(&[2.0; 5])));
    assert_close(&twice, &once, 2.0);
    assert_eq!((once.weight_sum, once.supervised_tokens), (10.0, 10));
    assert_eq!((twice.weight_sum, twice.supervised_tokens), (20.0, 10));
    assert_eq!(once.tree_tokens, twice.tree_tokens);
}

#[test]
fn two_equal_examples_are_one_that_weighs_as_much_as_both() {
    let one = example(&[1, 5, 9, 8, 0], 3);
    let other = example(&[1, 5, 2, 0], 2);
    let both = slot(&[one.clone(), one.clone(), other.clone()]);
    let heavy = slot(&[Example { weight: 2.0, ..one }, other]);
    assert_eq!((both.loss_sum, &both.gradient, both.weight_sum), (heavy.loss_sum, &heavy.gradient, heavy.weight_sum));
    assert_eq!((both.supervised_tokens, heavy.supervised_tokens), (6, 4));
}

#[test]
fn what_weighs_nothing_adds_nothing() {
    let with = slot(&weighing(&[1.0, 0.0, 1.0, 1.0, 0.0]));
    let kept: Vec<Example> =
        examples().into_iter().enumerate().filter(|(i, _)| *i != 1 && *i != 4).map(|e| e.1).collect();
    assert_close(&with, &slot(&kept), 1.0);
    assert_eq!(with.weight_sum, 6.0);
    let nothing = slot(&weighing(&[0.0; 5]));
    assert_eq!((nothing.loss_sum, nothing.weight_sum), (0.0, 0.0));
    assert!(nothing.gradient.iter().all(|g| *g == 0.0));
}

#[test]
fn the_order_of_weighted_examples_does_not_matter() {
    let mut reversed = weighing(&[0.3, 0.7, 0.1, 1.9, 0.0]);
    let straight = slot(&reversed);
    reversed.reverse();
    assert_eq!(slot(&reversed), straight);
}

/// A central difference along the gradient itself: its slope is the gradient's norm.
#[test]
fn the_gradient_of_weighted_examples_is_the_slope_of_their_loss() {
    let mut engine = engine(false, 2);
    let center = adapter(&engine);
    let examples = weighing(&[0.5, 2.0, 0.0, 1.25, 3.0]);
    let gradient = engine.slot_gradient(&center, &examples).unwrap().gradient;
    let norm = gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt();
    let step = 0.01 / norm;
    let mut loss_at = |side: f64| {
        let mut moved = center.clone();
        moved.params.iter_mut().zip(&gradient).for_each(|(p, g)| *p += (side * step * f64::from(*g)) as f32);
        engine.slot_gradient(&moved, &examples).unwrap().loss_sum
    };
    let slope = (loss_at(1.0) - loss_at(-1.0)) / (2.0 * step * norm);
    assert!((slope / norm - 1.0).abs() < 1e-3, "slope {slope}, gradient norm {norm}");
}
