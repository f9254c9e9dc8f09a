//! The small operations of BERT's forward pass over plain slices; the products are the backend's.

use std::f32::consts::FRAC_1_SQRT_2;

use insula_kernels::cpu::slices::{dot, softmax};

/// Lanes of a sum.
const LANES: usize = 8;

/// The sum, in eight lanes that are added in one order.
fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x);
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane += x);
    lanes.iter().sum()
}

/// `x = gain * (x - mean) / sqrt(variance + eps) + bias`.
pub(super) fn layer_norm(x: &mut [f32], gain: &[f32], bias: &[f32], eps: f32) {
    let count = x.len() as f32;
    let mean = sum(x) / count;
    x.iter_mut().for_each(|x| *x -= mean);
    let inverse = (dot(x, x) / count + eps).sqrt().recip();
    for ((x, gain), bias) in x.iter_mut().zip(gain).zip(bias) {
        *x = *x * inverse * gain + bias;
    }
}

/// `x = x * (1 + erf(x / sqrt 2)) / 2`.
pub(super) fn gelu(x: &mut [f32]) {
    for x in x {
        *x = 0.5 * *x * (1.0 + erf(*x * FRAC_1_SQRT_2));
    }
}

/// The error function to about 4e-7: a quotient of polynomials, as Eigen and XLA have it. Branchless, so that loops
/// over it are vectorised.
#[inline(always)]
fn erf(x: f32) -> f32 {
    // Beyond 4 the function is 1 in float32.
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let mut above = -2.726_142_4e-10;
    for coefficient in [2.770_681_5e-8, -2.101_024e-6, -5.692_506_2e-5, -7.349_906_4e-4, -2.954_6e-3, -1.609_603_3e-2] {
        above = above * square + coefficient;
    }
    let mut below = -1.456_607_15e-5;
    for coefficient in [-2.133_740_5e-4, -1.682_827e-3, -7.373_329_3e-3, -1.426_473_9e-2] {
        below = below * square + coefficient;
    }
    x * above / below
}

/// Every token of one text looks at all of them: `out = softmax(q k^T / sqrt(width of a head)) v`, head by head.
/// All are `[tokens, hidden]`.
pub(super) fn attention(q: &[f32], k: &[f32], v: &[f32], hidden: usize, heads: usize, out: &mut [f32]) {
    let width = hidden / heads;
    let scale = (width as f32).sqrt().recip();
    let mut scores = vec![0.0; q.len() / hidden];
    out.fill(0.0);
    for (q, out) in q.chunks_exact(hidden).zip(out.chunks_exact_mut(hidden)) {
        for (head, (q, out)) in q.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
            let here = head * width..(head + 1) * width;
            for (score, k) in scores.iter_mut().zip(k.chunks_exact(hidden)) {
                *score = dot(q, &k[here.clone()]);
            }
            softmax(&mut scores, scale);
            for (weight, v) in scores.iter().zip(v.chunks_exact(hidden)) {
                out.iter_mut().zip(&v[here.clone()]).for_each(|(out, v)| *out += weight * v);
            }
        }
    }
}

/// The mean of rows `[tokens, hidden]`; zeros of none.
pub(super) fn mean(rows: &[f32], hidden: usize) -> Vec<f32> {
    let mut total = vec![0.0; hidden];
    for row in rows.chunks_exact(hidden) {
        total.iter_mut().zip(row).for_each(|(total, x)| *total += x);
    }
    let count = (rows.len() / hidden).max(1) as f32;
    total.iter_mut().for_each(|total| *total /= count);
    total
}

/// Scales to length 1; nothing has no direction and stays as it is.
pub(super) fn normalise(x: &mut [f32]) {
    let length = dot(x, x).sqrt();
    if length > 0.0 {
        x.iter_mut().for_each(|x| *x /= length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The Taylor series, in float64.
    fn exact_erf(x: f64) -> f64 {
        if x.abs() > 5.0 {
            return x.signum();
        }
        let (mut term, mut total) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            total += term / f64::from(2 * n + 1);
        }
        total * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn erf_and_gelu_are_right_to_a_millionth() {
        assert!((exact_erf(0.5) - 0.520_499_877_813_046_5).abs() < 1e-14, "a value from the tables");
        for i in -6000..=6000 {
            let x = i as f32 / 1000.0;
            let exact = exact_erf(f64::from(x));
            assert!((f64::from(erf(x)) - exact).abs() < 6e-7, "erf {x}");
            let mut made = [x];
            gelu(&mut made);
            let exact = f64::from(x) * (1.0 + exact_erf(f64::from(x) / 2f64.sqrt())) / 2.0;
            assert!((f64::from(made[0]) - exact).abs() < 2e-6, "gelu {x}");
        }
    }

    #[test]
    fn a_norm_leaves_no_mean_and_variance_one() {
        let mut x: Vec<f32> = (0..37).map(|i| (i * i % 17) as f32 + 100.0).collect();
        layer_norm(&mut x, &[2.0; 37], &[0.5; 37], 1e-12);
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / 37.0;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / 37.0;
        assert!((mean - 0.5).abs() < 1e-5 && (variance - 4.0).abs() < 1e-4, "{mean} {variance}");
    }

    #[test]
    fn no_tokens_have_a_mean_of_zeros_without_a_direction() {
        let mut none = mean(&[], 3);
        normalise(&mut none);
        assert_eq!(none, [0.0; 3]);
        let mut two = mean(&[1.0, 2.0, 5.0, 6.0], 2);
        assert_eq!(two, [3.0, 4.0]);
        normalise(&mut two);
        assert_eq!(two, [0.6, 0.8]);
    }
}
