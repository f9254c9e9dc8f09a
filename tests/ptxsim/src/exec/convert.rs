//! cvt: between integers and floats of all widths.

use half::f16;

use super::warp::Registers;
use super::{float, lanes};
use crate::program::{Code, Round, Row, Type};

pub(super) fn convert(r: &mut Registers, code: &Code, mask: u32) {
    let &Code::Convert { from, to_type, integral, saturate, flush, to, a, .. } = code else { return };
    let (to, a) = (to as usize, a as usize);
    match (from, to_type) {
        // The conversions that address arithmetic is full of.
        (Type::U32 | Type::B32, Type::U64 | Type::S64 | Type::B64) => {
            let x = r.w32[a];
            lanes(mask).for_each(|lane| r.w64[to][lane] = u64::from(x[lane]));
        }
        (Type::S32, Type::U64 | Type::S64 | Type::B64) => {
            let x = r.w32[a];
            lanes(mask).for_each(|lane| r.w64[to][lane] = i64::from(x[lane] as i32) as u64);
        }
        (Type::U64 | Type::S64 | Type::B64, Type::U32 | Type::S32 | Type::B32) => {
            let x = r.w64[a];
            lanes(mask).for_each(|lane| r.w32[to][lane] = x[lane] as u32);
        }
        _ => {
            for lane in lanes(mask) {
                let raw = if from.bytes() == 8 { r.w64[a][lane] } else { u64::from(r.w32[a][lane]) };
                let value = one(raw, from, to_type, integral, (saturate, flush));
                if to_type.bytes() == 8 {
                    r.w64[to][lane] = value;
                } else {
                    r.w32[to][lane] = value as u32;
                }
            }
        }
    }
}

/// An integer register's value, extended from its type.
fn extend(raw: u64, t: Type) -> i128 {
    match t {
        Type::S8 => i128::from(raw as i8),
        Type::S16 => i128::from(raw as i16),
        Type::S32 => i128::from(raw as i32),
        Type::S64 => i128::from(raw as i64),
        Type::U8 | Type::B8 => i128::from(raw as u8),
        Type::U16 | Type::B16 => i128::from(raw as u16),
        Type::U32 | Type::B32 => i128::from(raw as u32),
        _ => i128::from(raw),
    }
}

/// An integer as the bits of a register. A signed byte fills its 16-bit register with its sign.
fn truncate(value: i128, t: Type) -> u64 {
    match t {
        Type::U8 | Type::B8 => u64::from(value as u8),
        Type::S8 => u64::from(value as i8 as u16),
        Type::B16 | Type::U16 | Type::S16 => u64::from(value as u16),
        Type::B32 | Type::U32 | Type::S32 => u64::from(value as u32),
        _ => value as u64,
    }
}

fn one(raw: u64, from: Type, to: Type, integral: Option<Round>, (saturate, flush): (bool, bool)) -> u64 {
    if !from.is_float() {
        let value = extend(raw, from);
        return match to {
            Type::F32 => u64::from((value as f32).to_bits()),
            Type::F64 => (value as f64).to_bits(),
            Type::F16 => u64::from(f16::from_f64(value as f64).to_bits()),
            Type::Bf16 => u64::from(float::to_bf16(value as f32)),
            _ => truncate(value, to),
        };
    }
    let single = f32::from_bits(raw as u32);
    // Float32 to a half is rounded once, straight from float32.
    match (from, to) {
        (Type::F32, Type::F16) => return u64::from(f16::from_f32(single).to_bits()),
        (Type::F32, Type::Bf16) => return u64::from(float::to_bf16(single)),
        _ => {}
    }
    // Every source is exact in float64.
    let value = match from {
        Type::F16 => f64::from(f16::from_bits(raw as u16)),
        Type::Bf16 => f64::from(f32::from_bits((raw as u32) << 16)),
        Type::F32 if flush => f64::from(float::flush(single)),
        Type::F32 => f64::from(single),
        _ => f64::from_bits(raw),
    };
    let value = match integral {
        None => value,
        Some(Round::Nearest) => value.round_ties_even(),
        Some(Round::Zero) => value.trunc(),
        Some(Round::Down) => value.floor(),
        Some(Round::Up) => value.ceil(),
    };
    match to {
        Type::F64 => value.to_bits(),
        Type::F32 => {
            let value = value as f32;
            let value = if flush { float::flush(value) } else { value };
            u64::from(if saturate { float::saturate(value) } else { value }.to_bits())
        }
        _ => truncate(to_integer(value, to), to),
    }
}

/// A float, already integral, to an integer: what is too great becomes the greatest, NaN becomes 0.
fn to_integer(value: f64, to: Type) -> i128 {
    match to {
        Type::S8 => i128::from(value as i8),
        Type::U8 | Type::B8 => i128::from(value as u8),
        Type::S16 => i128::from(value as i16),
        Type::U16 | Type::B16 => i128::from(value as u16),
        Type::S32 => i128::from(value as i32),
        Type::U32 | Type::B32 => i128::from(value as u32),
        Type::S64 => i128::from(value as i64),
        _ => i128::from(value as u64),
    }
}

/// Two float32 to a packed pair; the first operand goes to the high half.
pub(super) fn pack(r: &mut Registers, to_type: Type, [to, high, low]: [Row; 3], mask: u32) {
    let (high, low) = (r.w32[high as usize], r.w32[low as usize]);
    let half = |bits: u32| {
        let value = f32::from_bits(bits);
        u32::from(if to_type == Type::Bf16x2 { float::to_bf16(value) } else { f16::from_f32(value).to_bits() })
    };
    let out = &mut r.w32[to as usize];
    lanes(mask).for_each(|lane| out[lane] = half(high[lane]) << 16 | half(low[lane]));
}
