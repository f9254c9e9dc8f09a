//! AdamW as torch steps it: decoupled decay, bias correction, epsilon outside the corrected root.

use crate::backend::AdamW;

/// Values per partial sum: fixed, so that the sum does not depend on who adds.
const CHUNK: usize = 4096;

/// One step on slices of equal length; `gradient` is scaled by `step.gradient_scale` first.
pub fn step(step: &AdamW, gradient: &[f32], params: &mut [f32], first: &mut [f32], second: &mut [f32]) {
    let n = gradient.len();
    assert_eq!((params.len(), first.len(), second.len()), (n, n, n), "all four slices have one length");
    let (beta1, beta2) = (f64::from(step.beta1), f64::from(step.beta2));
    let correction1 = 1.0 - beta1.powi(step.step as i32);
    let root2 = (1.0 - beta2.powi(step.step as i32)).sqrt() as f32;
    let rate = (f64::from(step.lr) / correction1) as f32;
    let decay = 1.0 - step.lr * step.weight_decay;
    for (((p, m), v), g) in params.iter_mut().zip(first).zip(second).zip(gradient) {
        let g = g * step.gradient_scale;
        *m += (1.0 - step.beta1) * (g - *m);
        *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
        *p = *p * decay - rate * *m / (v.sqrt() / root2 + step.eps);
    }
}

/// Sum of squares in float64, added up in fixed chunks.
pub fn sum_squares(values: &[f32]) -> f64 {
    values.chunks(CHUNK).map(|chunk| chunk.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>()).sum()
}
