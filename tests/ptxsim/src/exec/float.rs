//! Scalar float32 and float64 arithmetic as PTX defines it.

use crate::program::{Float, Round};

/// `.ftz`: subnormals become zero of the same sign.
pub(super) fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}

/// `.sat`: into [0, 1], NaN becomes 0.
pub(super) fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// The smaller; of a number and a NaN the number; -0 is below +0.
pub(super) fn min(x: f32, y: f32) -> f32 {
    if x.is_nan() || y < x {
        y
    } else if x == y {
        f32::from_bits(x.to_bits() | y.to_bits())
    } else {
        x
    }
}

/// The greater; of a number and a NaN the number; +0 is above -0.
pub(super) fn max(x: f32, y: f32) -> f32 {
    if x.is_nan() || y > x {
        y
    } else if x == y {
        f32::from_bits(x.to_bits() & y.to_bits())
    } else {
        x
    }
}

/// a * b + c, rounded once, in the given direction.
pub(super) fn fma_rounded(a: f32, b: f32, c: f32, round: Round) -> f32 {
    // The product is exact in float64; the sum is `sum + error` exactly (Knuth's two-sum).
    let (product, c64) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c64;
    let part = sum - product;
    let error = (product - (sum - part)) + (c64 - part);
    let nearest = a.mul_add(b, c);
    if !sum.is_finite() || nearest.is_nan() {
        return nearest;
    }
    let wide = f64::from(nearest);
    let above = wide > sum || (wide == sum && error < 0.0);
    let below = wide < sum || (wide == sum && error > 0.0);
    match round {
        Round::Nearest => nearest,
        Round::Down if above => nearest.next_down(),
        Round::Up if below => nearest.next_up(),
        Round::Zero if above && sum > 0.0 => nearest.next_down(),
        Round::Zero if below && sum < 0.0 => nearest.next_up(),
        // What cancels to zero is -0 in this direction.
        Round::Down if sum == 0.0 && product.is_sign_negative() != c.is_sign_negative() => -0.0,
        _ => nearest,
    }
}

/// One-operand float32 functions. The approximate ones are computed in float64 and rounded once, so they are correctly
/// rounded but for about one value in a thousand million.
pub(super) fn unary(op: Float, x: f32) -> f32 {
    let wide = f64::from(x);
    match op {
        Float::Neg => -x,
        Float::Abs => x.abs(),
        Float::Rcp => 1.0 / x,
        Float::Sqrt => x.sqrt(),
        Float::Rsqrt => (1.0 / wide.sqrt()) as f32,
        Float::Ex2 => wide.exp2() as f32,
        Float::Lg2 => wide.log2() as f32,
        Float::Tanh => wide.tanh() as f32,
        Float::Sin => wide.sin() as f32,
        Float::Cos => wide.cos() as f32,
        _ => unreachable!("{op:?} has more than one operand"),
    }
}

/// Float64 of one, two or three operands; the surplus ones are ignored.
pub(super) fn double(op: Float, x: f64, y: f64, z: f64) -> f64 {
    match op {
        Float::Add => x + y,
        Float::Sub => x - y,
        Float::Mul => x * y,
        Float::Fma => x.mul_add(y, z),
        Float::Div => x / y,
        Float::Min if x.is_nan() || y < x => y,
        Float::Min if x == y => f64::from_bits(x.to_bits() | y.to_bits()),
        Float::Max if x.is_nan() || y > x => y,
        Float::Max if x == y => f64::from_bits(x.to_bits() & y.to_bits()),
        Float::Min | Float::Max => x,
        Float::Neg => -x,
        Float::Abs => x.abs(),
        // The first operand's sign on the second's magnitude.
        Float::CopySign => y.copysign(x),
        Float::Rcp => 1.0 / x,
        Float::Sqrt => x.sqrt(),
        Float::Rsqrt | Float::Ex2 | Float::Lg2 | Float::Tanh | Float::Sin | Float::Cos => {
            unreachable!("the parser refuses {op:?} of float64")
        }
    }
}

/// float32 to bfloat16, to nearest even; a NaN becomes 0x7fff.
pub(super) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() { 0x7fff } else { (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mul_add_is_rounded_once() {
        // 1 + 2^-12 squared is 1 + 2^-11 + 2^-24: two roundings lose the last term.
        let x = 1.0 + 2.0_f32.powi(-12);
        assert_eq!(std::hint::black_box(x).mul_add(x, -(1.0 + 2.0_f32.powi(-11))), 2.0_f32.powi(-24));
    }

    #[test]
    fn directed_roundings_enclose_the_exact_value() {
        let (a, b, c) = (1.1_f32, 1.3, 1e-9);
        let down = fma_rounded(a, b, c, Round::Down);
        let up = fma_rounded(a, b, c, Round::Up);
        let exact = f64::from(a) * f64::from(b) + f64::from(c);
        assert!(f64::from(down) < exact && exact < f64::from(up));
        assert_eq!(down.next_up(), up);
        assert_eq!(fma_rounded(a, b, c, Round::Zero), down);
        assert_eq!(fma_rounded(-a, b, -c, Round::Zero), -down);
        assert_eq!(fma_rounded(2.0, 3.0, 1.0, Round::Down), 7.0);
        assert!(fma_rounded(2.0, 3.0, -6.0, Round::Down).is_sign_negative());
        assert!(fma_rounded(2.0, 3.0, -6.0, Round::Up).is_sign_positive());
    }

    #[test]
    fn minima_prefer_numbers_and_know_zeros() {
        assert_eq!(min(f32::NAN, 1.0), 1.0);
        assert_eq!(max(1.0, f32::NAN), 1.0);
        assert!(min(0.0, -0.0).is_sign_negative());
        assert!(max(-0.0, 0.0).is_sign_positive());
    }

    #[test]
    fn bf16_rounds_to_even() {
        assert_eq!(to_bf16(1.0), 0x3f80);
        assert_eq!(to_bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(to_bf16(f32::NAN), 0x7fff);
    }
}
