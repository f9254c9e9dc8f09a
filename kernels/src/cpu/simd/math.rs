//! Loops over slices that must be vectorised: written once in plain Rust, compiled for any x86-64, for AVX2 and for
//! AVX-512.
//!
//! None uses a fused multiply-add, and every sum runs in sixteen lanes added in one order, so all builds give equal
//! bits.

use super::{Vectors, vectors};

/// Lanes of every sum.
const LANES: usize = 16;

/// Defines a function whose body is compiled again for AVX2 and for AVX-512, and chosen at run time.
macro_rules! vectorised {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        pub(crate) fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            match vectors() {
                // SAFETY: these instructions were detected; the functions are otherwise safe.
                #[cfg(target_arch = "x86_64")]
                Vectors::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Vectors::Avx2 => unsafe { avx2($($arg),*) },
                Vectors::Plain => body($($arg),*),
            }
        }
    };
}

/// e^x to about 1e-7 relative, 0 below -87: Cephes' expf (range reduction by ln 2 in two parts, degree 5), branchless.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to an integer, left in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e = p * r * r + r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000));
    if x < -87.0 { 0.0 } else { e * power }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The lanes' sum, by halves.
#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

vectorised! {
    /// Replaces each `x` by `exp(scale * x - shift)` and returns their sum.
    fn exp_sum(x: &mut [f32], scale: f32, shift: f32) -> f32 {
        let mut lanes = [0.0; LANES];
        let (chunks, rest) = x.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for (value, lane) in chunk.iter_mut().zip(&mut lanes) {
                *value = exp(scale * *value - shift);
                *lane += *value;
            }
        }
        for (value, lane) in rest.iter_mut().zip(&mut lanes) {
            *value = exp(scale * *value - shift);
            *lane += *value;
        }
        total(lanes)
    }
}

vectorised! {
    /// The sum of `exp(x - shift)`.
    fn sum_exp(x: &[f32], shift: f32) -> f32 {
        let mut lanes = [0.0; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (value, lane) in chunk.iter().zip(&mut lanes) {
                *lane += exp(*value - shift);
            }
        }
        for (value, lane) in rest.iter().zip(&mut lanes) {
            *lane += exp(*value - shift);
        }
        total(lanes)
    }
}

vectorised! {
    /// The greatest value, negative infinity of none.
    fn max(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (value, lane) in chunk.iter().zip(&mut lanes) {
                *lane = if *value > *lane { *value } else { *lane };
            }
        }
        rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |most, value| if *value > most { *value } else { most })
    }
}

vectorised! {
    /// The scalar product of two slices of equal length.
    fn dot(x: &[f32], y: &[f32]) -> f32 {
        let mut lanes = [0.0; LANES];
        let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
        for (a, b) in xs.iter().zip(ys) {
            for ((x, y), lane) in a.iter().zip(b).zip(&mut lanes) {
                *lane += x * y;
            }
        }
        for ((x, y), lane) in x_rest.iter().zip(y_rest).zip(&mut lanes) {
            *lane += x * y;
        }
        total(lanes)
    }
}

vectorised! {
    /// `x *= factor`.
    fn scale(x: &mut [f32], factor: f32) {
        for value in x {
            *value *= factor;
        }
    }
}

vectorised! {
    /// `y = factor * x * gain`.
    fn scaled_product(x: &[f32], gain: &[f32], factor: f32, y: &mut [f32]) {
        for ((y, x), gain) in y.iter_mut().zip(x).zip(gain) {
            *y = x * factor * gain;
        }
    }
}

vectorised! {
    /// `dx += factor * dy * gain + along * x`: a norm's input gradient.
    fn add_norm_gradient(dx: &mut [f32], dy: &[f32], gain: &[f32], x: &[f32], factor: f32, along: f32) {
        for (((dx, dy), gain), x) in dx.iter_mut().zip(dy).zip(gain).zip(x) {
            *dx += factor * (dy * gain) + along * x;
        }
    }
}

vectorised! {
    /// The sum of `x * y * z`.
    fn triple_dot(x: &[f32], y: &[f32], z: &[f32]) -> f32 {
        let mut lanes = [0.0; LANES];
        let (xs, x_rest) = x.as_chunks::<LANES>();
        let ((ys, y_rest), (zs, z_rest)) = (y.as_chunks::<LANES>(), z.as_chunks::<LANES>());
        for ((a, b), c) in xs.iter().zip(ys).zip(zs) {
            for (((x, y), z), lane) in a.iter().zip(b).zip(c).zip(&mut lanes) {
                *lane += x * y * z;
            }
        }
        for (((x, y), z), lane) in x_rest.iter().zip(y_rest).zip(z_rest).zip(&mut lanes) {
            *lane += x * y * z;
        }
        total(lanes)
    }
}

vectorised! {
    /// `x += y`.
    fn add(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

vectorised! {
    /// `sum += factor * x * y`.
    fn add_scaled_product(sum: &mut [f32], x: &[f32], y: &[f32], factor: f32) {
        for ((sum, x), y) in sum.iter_mut().zip(x).zip(y) {
            *sum += x * factor * y;
        }
    }
}

vectorised! {
    /// `out = silu(gate) * up`.
    fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(*gate) * up;
        }
    }
}

vectorised! {
    /// `dup = dout * silu(gate)` and, in place, `dout *= up * silu'(gate)`.
    fn swiglu_back(gate: &[f32], up: &[f32], dout: &mut [f32], dup: &mut [f32]) {
        for (((gate, up), dout), dup) in gate.iter().zip(up).zip(dout).zip(dup) {
            let s = sigmoid(*gate);
            *dup = *dout * (gate * s);
            *dout = *dout * up * (s * (1.0 + gate * (1.0 - s)));
        }
    }
}

vectorised! {
    /// Rotates the pairs `(low[i], high[i])` by the angles with these cosines and sines.
    fn rotate(low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let (x, y, sin) = (*low, *high, sign * sin);
            *low = x * cos - y * sin;
            *high = y * cos + x * sin;
        }
    }
}

vectorised! {
    /// Sets the scores of keys that `query` does not see to negative infinity.
    fn hide_keys(scores: &mut [f32], start: &[u32], end: &[u32], query: u32) {
        for ((score, start), end) in scores.iter_mut().zip(start).zip(end) {
            let seen = (*start <= query) & (query < *end);
            *score = if seen { *score } else { f32::NEG_INFINITY };
        }
    }
}

vectorised! {
    /// Scores of one query become probabilities, and `dp` the scores' gradient `p * (dp - along) * scale`.
    fn softmax_back(scores: &mut [f32], dp: &mut [f32], lse: f32, along: f32, scale: f32) {
        for (score, dp) in scores.iter_mut().zip(dp) {
            let p = exp(*score * scale - lse);
            *score = p;
            *dp = p * (*dp - along) * scale;
        }
    }
}

vectorised! {
    /// Widens bfloat16 bits.
    fn widen(from: &[half::bf16], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
}

vectorised! {
    /// Rows of sixteen signed bytes, times their columns' scales.
    fn widen_q8(from: &[u8], scale: &[f32; 16], to: &mut [f32]) {
        let (rows, bytes) = (to.as_chunks_mut::<16>().0, from.as_chunks::<16>().0);
        for (to, bytes) in rows.iter_mut().zip(bytes) {
            for ((to, byte), scale) in to.iter_mut().zip(bytes).zip(scale) {
                *to = scale * f32::from(byte.cast_signed());
            }
        }
    }
}

vectorised! {
    /// Rows of sixteen half bytes (columns j and j + 8 share byte j), times their columns' scales, plus their leasts.
    fn widen_q4(from: &[u8], scale: &[f32; 16], least: &[f32; 16], to: &mut [f32]) {
        let (rows, bytes) = (to.as_chunks_mut::<16>().0, from.as_chunks::<8>().0);
        for (to, bytes) in rows.iter_mut().zip(bytes) {
            let (low, high) = to.split_at_mut(8);
            for j in 0..8 {
                low[j] = least[j] + scale[j] * f32::from(bytes[j] & 15);
                high[j] = least[j + 8] + scale[j + 8] * f32::from(bytes[j] >> 4);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_two_units_in_the_last_place() {
        let worst = (-86_000..88_000)
            .map(|i| i as f32 / 1000.0 + 0.000_37)
            .map(|x| {
                let exact = f64::from(x).exp();
                ((f64::from(exp(x)) - exact) / exact).abs()
            })
            .fold(0.0, f64::max);
        assert!(worst < 2e-7, "relative error {worst}");
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn sums_cover_the_remainder() {
        let x: Vec<f32> = (0..19).map(|i| i as f32).collect();
        assert_eq!(dot(&x, &x), (0..19).map(|i| (i * i) as f32).sum());
        assert_eq!(triple_dot(&x, &[1.0; 19], &[2.0; 19]), 342.0);
        assert_eq!(max(&x), 18.0);
        assert_eq!(sum_exp(&[0.0; 19], 0.0), 19.0);
        let mut e = [1.0; 19];
        assert_eq!(exp_sum(&mut e, 2.0, 2.0), 19.0);
    }
}
