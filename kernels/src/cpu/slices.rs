//! Loops over slices for plain code that runs beside a backend: vectorised, and the same bits on every machine.

use super::simd::math;

/// The scalar product of two slices of equal length, in sixteen lanes that are added in one order.
///
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len(), "a scalar product is of slices of equal length");
    math::dot(x, y)
}

/// Replaces scores by `softmax(scale * scores)`; nothing happens to no scores. `scale` is above 0.
pub fn softmax(scores: &mut [f32], scale: f32) {
    if scores.is_empty() {
        return;
    }
    let most = scale * math::max(scores);
    let total = math::exp_sum(scores, scale, most);
    math::scale(scores, total.recip());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_softmax_is_the_exponentials_over_their_sum() {
        let scores: Vec<f32> = (0..37).map(|i| (i * 7 % 11) as f32 - 4.0).collect();
        let mut made = scores.clone();
        softmax(&mut made, 0.5);
        let total: f64 = scores.iter().map(|x| f64::from(0.5 * x).exp()).sum();
        for (made, score) in made.iter().zip(&scores) {
            assert!((f64::from(*made) - f64::from(0.5 * score).exp() / total).abs() < 1e-7);
        }
        softmax(&mut [], 1.0);
    }

    #[test]
    fn a_scalar_product_adds_every_product() {
        let x: Vec<f32> = (0..35).map(|i| i as f32).collect();
        assert_eq!(dot(&x, &x), (0..35).map(|i| (i * i) as f32).sum::<f32>());
    }
}
