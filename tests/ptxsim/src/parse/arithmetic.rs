//! Decoding of what stays in registers: integers, floats, comparisons, conversions, moves.

use super::decode::{Decoder, Symbol};
use super::names::Class;
use crate::program::{Code, Compare, Float, Int, LOCAL_WINDOW, Logic, Round, SHARED_WINDOW, Type, Width};

pub(super) fn float_operations(code: &Code) -> u64 {
    match code {
        Code::Float32 { op, .. } | Code::Float64 { op, .. } => match op {
            Float::Fma => 2,
            Float::Min | Float::Max | Float::Neg | Float::Abs | Float::CopySign => 0,
            _ => 1,
        },
        // 16 x 8 x 16 multiply-adds of a warp, spread over its lanes.
        Code::Mma { .. } => 2 * 16 * 8 * 16 / 32,
        _ => 0,
    }
}

pub(super) fn arithmetic(d: &mut Decoder<'_>, root: &str) -> Result<Code, String> {
    if root == "shf" {
        return funnel(d);
    }
    let t = d.last_type()?;
    match t {
        Type::Pred => predicate_logic(d, root),
        Type::F32 | Type::F64 => float(d, root, t),
        _ if root == "mul" || root == "mad" => product(d, root, t),
        Type::B8 | Type::U8 | Type::S8 | Type::F16 | Type::Bf16 | Type::F16x2 | Type::Bf16x2 => {
            Err(format!("unsupported: {root} of this type"))
        }
        _ => integer(d, root, t),
    }
}

fn predicate_logic(d: &mut Decoder<'_>, root: &str) -> Result<Code, String> {
    let to = d.to(0, Type::Pred)?;
    let a = d.predicate(1)?;
    let op = match root {
        "and" => Logic::And,
        "or" => Logic::Or,
        "xor" => Logic::Xor,
        "not" => {
            d.count(2)?;
            return Ok(Code::MovePred { to, a: crate::program::PredSource { negated: !a.negated, ..a } });
        }
        _ => return Err(format!("unsupported: {root}.pred")),
    };
    d.count(3)?;
    Ok(Code::Logic { op, to, a, b: d.predicate(2)? })
}

fn float(d: &mut Decoder<'_>, root: &str, t: Type) -> Result<Code, String> {
    let (op, sources) = match root {
        "add" => (Float::Add, 2),
        "sub" => (Float::Sub, 2),
        "mul" => (Float::Mul, 2),
        "fma" | "mad" => (Float::Fma, 3),
        "div" => (Float::Div, 2),
        "min" => (Float::Min, 2),
        "max" => (Float::Max, 2),
        "neg" => (Float::Neg, 1),
        "abs" => (Float::Abs, 1),
        "copysign" => (Float::CopySign, 2),
        "rcp" => (Float::Rcp, 1),
        "sqrt" => (Float::Sqrt, 1),
        "rsqrt" => (Float::Rsqrt, 1),
        "ex2" => (Float::Ex2, 1),
        "lg2" => (Float::Lg2, 1),
        "tanh" => (Float::Tanh, 1),
        "sin" => (Float::Sin, 1),
        "cos" => (Float::Cos, 1),
        _ => return Err(format!("unsupported: {root} of a float")),
    };
    let single = t == Type::F32;
    let approximate = matches!(op, Float::Div | Float::Rcp | Float::Sqrt | Float::Rsqrt | Float::Ex2 | Float::Lg2)
        || matches!(op, Float::Tanh | Float::Sin | Float::Cos);
    if approximate && single {
        // Computed as exactly as the rounded form; see the README.
        d.take("approx");
        if op == Float::Div {
            d.take("full");
        }
    } else if matches!(op, Float::Rsqrt | Float::Ex2 | Float::Lg2 | Float::Tanh | Float::Sin | Float::Cos) {
        return Err(format!("unsupported: {root} of float64"));
    }
    let exact = matches!(op, Float::Min | Float::Max | Float::Neg | Float::Abs | Float::CopySign);
    let round = if exact { Round::Nearest } else { rounding(d).unwrap_or(Round::Nearest) };
    if round != Round::Nearest && !(op == Float::Fma && single) {
        return Err("only fma.f32 has other roundings than .rn".to_owned());
    }
    let flush = single && d.take("ftz");
    let saturate = single && matches!(op, Float::Add | Float::Sub | Float::Mul | Float::Fma) && d.take("sat");
    d.count(sources + 1)?;
    let to = d.to(0, t)?;
    let a = d.from(1, t)?;
    let b = if sources > 1 { d.from(2, t)? } else { a };
    let c = if sources > 2 { d.from(3, t)? } else { a };
    Ok(if single {
        Code::Float32 { op, round, flush, saturate, to, a, b, c }
    } else {
        Code::Float64 { op, to, a, b, c }
    })
}

fn rounding(d: &mut Decoder<'_>) -> Option<Round> {
    d.one_of(&[("rn", Round::Nearest), ("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up)])
}

fn product(d: &mut Decoder<'_>, root: &str, t: Type) -> Result<Code, String> {
    let mad = root == "mad";
    d.count(if mad { 4 } else { 3 })?;
    let signed = t.is_signed();
    if d.take("wide") {
        let (a, b) = (d.from(1, t)?, d.from(2, t)?);
        return match t.bytes() {
            4 => {
                let add = if mad { Some(d.from(3, Type::B64)?) } else { None };
                Ok(Code::Wide { signed, to: d.to(0, Type::B64)?, a, b, add })
            }
            2 => {
                let (to, c) = (d.to(0, Type::B32)?, if mad { d.from(3, Type::B32)? } else { a });
                let op = if mad { Int::MadLo } else { Int::MulLo };
                Ok(Code::Int32 { op, signed, width: Width::HalfToFull, to, a, b, c })
            }
            _ => Err("unsupported: wide product of 64 bits".to_owned()),
        };
    }
    let op = match (d.take("hi"), d.take("lo"), mad) {
        (true, false, false) => Int::MulHi,
        (true, false, true) => Int::MadHi,
        (false, true, false) => Int::MulLo,
        (false, true, true) => Int::MadLo,
        _ => return Err("one of .lo, .hi, .wide".to_owned()),
    };
    if t.bytes() == 2 && matches!(op, Int::MulHi | Int::MadHi) {
        return Err("unsupported: the high half of a 16-bit product".to_owned());
    }
    integer_code(d, op, t, if mad { 3 } else { 2 })
}

fn integer(d: &mut Decoder<'_>, root: &str, t: Type) -> Result<Code, String> {
    let (op, sources) = match root {
        "add" => (Int::Add, 2),
        "sub" => (Int::Sub, 2),
        "div" => (Int::Div, 2),
        "rem" => (Int::Rem, 2),
        "min" => (Int::Min, 2),
        "max" => (Int::Max, 2),
        "neg" => (Int::Neg, 1),
        "abs" => (Int::Abs, 1),
        "and" => (Int::And, 2),
        "or" => (Int::Or, 2),
        "xor" => (Int::Xor, 2),
        "not" => (Int::Not, 1),
        "shl" | "shr" => return shift(d, root, t),
        "bfe" | "bfi" => return bit_field(d, root, t),
        "popc" => (Int::Popc, 1),
        "clz" => (Int::Clz, 1),
        "brev" => (Int::Brev, 1),
        "bfind" => (Int::Bfind { shift_amount: d.take("shiftamt") }, 1),
        "prmt" => (Int::Prmt, 3),
        "lop3" => return lop3(d),
        _ => return Err(format!("unsupported: {root} of an integer")),
    };
    if t.bytes() == 8 && matches!(op, Int::Popc | Int::Clz | Int::Bfind { .. }) {
        d.count(2)?;
        return Ok(Code::Bits64 { op, signed: t.is_signed(), to: d.to(0, Type::B32)?, a: d.from(1, t)? });
    }
    let only32 = matches!(op, Int::Popc | Int::Clz | Int::Bfind { .. } | Int::Prmt);
    if (only32 && t.bytes() != 4) || (op == Int::Brev && t.bytes() == 2) {
        return Err(format!("unsupported: {root} of this type"));
    }
    d.count(sources + 1)?;
    integer_code(d, op, t, sources)
}

fn integer_code(d: &mut Decoder<'_>, op: Int, t: Type, sources: usize) -> Result<Code, String> {
    let to = d.to(0, t)?;
    let a = d.from(1, t)?;
    let b = if sources > 1 { d.from(2, t)? } else { a };
    let c = if sources > 2 { d.from(3, t)? } else { a };
    let signed = t.is_signed();
    Ok(match t.bytes() {
        8 => Code::Int64 { op, signed, to, a, b, c },
        2 => Code::Int32 { op, signed, width: Width::Half, to, a, b, c },
        _ => Code::Int32 { op, signed, width: Width::Full, to, a, b, c },
    })
}

fn shift(d: &mut Decoder<'_>, root: &str, t: Type) -> Result<Code, String> {
    d.count(3)?;
    let op = if root == "shl" { Int::Shl } else { Int::Shr };
    let (to, a, b) = (d.to(0, t)?, d.from(1, t)?, d.from(2, Type::U32)?);
    let signed = t.is_signed();
    Ok(match t.bytes() {
        8 => Code::Int64 { op, signed, to, a, b, c: b },
        2 => Code::Int32 { op, signed, width: Width::Half, to, a, b, c: b },
        _ => Code::Int32 { op, signed, width: Width::Full, to, a, b, c: b },
    })
}

/// bfe d, a, from, length; bfi d, insert, into, from, length.
fn bit_field(d: &mut Decoder<'_>, root: &str, t: Type) -> Result<Code, String> {
    let signed = t.is_signed();
    let wide = t.bytes() == 8;
    if root == "bfe" {
        d.count(4)?;
        let (to, a, b, c) = (d.to(0, t)?, d.from(1, t)?, d.from(2, Type::U32)?, d.from(3, Type::U32)?);
        let op = Int::Bfe;
        return Ok(if wide {
            Code::Int64 { op, signed, to, a, b, c }
        } else {
            Code::Int32 { op, signed, width: Width::Full, to, a, b, c }
        });
    }
    d.count(5)?;
    let (to, a, b) = (d.to(0, t)?, d.from(1, t)?, d.from(2, t)?);
    Ok(Code::BitInsert { wide, to, a, b, from: d.from(3, Type::U32)?, length: d.from(4, Type::U32)? })
}

fn lop3(d: &mut Decoder<'_>) -> Result<Code, String> {
    d.count(5)?;
    let table = d.operand(4)?;
    let table = super::names::immediate(table, Class { bits: 32 }).filter(|&t| t < 256).ok_or("lop3's table")?;
    integer_code(d, Int::Lop3(table as u8), Type::B32, 3)
}

fn funnel(d: &mut Decoder<'_>) -> Result<Code, String> {
    d.need("b32")?;
    let left = d.one_of(&[("l", true), ("r", false)]).ok_or("one of .l, .r")?;
    let clamp = d.one_of(&[("clamp", true), ("wrap", false)]).ok_or("one of .clamp, .wrap")?;
    d.count(4)?;
    let op = if left { Int::ShfLeft { clamp } } else { Int::ShfRight { clamp } };
    integer_code(d, op, Type::B32, 3)
}

pub(super) fn setp(d: &mut Decoder<'_>) -> Result<Code, String> {
    let t = d.last_type()?;
    if matches!(t, Type::B8 | Type::U8 | Type::S8 | Type::F16 | Type::Bf16 | Type::F16x2 | Type::Bf16x2 | Type::Pred) {
        return Err("unsupported: setp of this type".to_owned());
    }
    let flush = t == Type::F32 && d.take("ftz");
    let compare = d
        .one_of(&[
            ("eq", Compare::Eq),
            ("ne", Compare::Ne),
            ("lt", Compare::Lt),
            ("lo", Compare::Lt),
            ("le", Compare::Le),
            ("ls", Compare::Le),
            ("gt", Compare::Gt),
            ("hi", Compare::Gt),
            ("ge", Compare::Ge),
            ("hs", Compare::Ge),
            ("equ", Compare::EqU),
            ("neu", Compare::NeU),
            ("ltu", Compare::LtU),
            ("leu", Compare::LeU),
            ("gtu", Compare::GtU),
            ("geu", Compare::GeU),
            ("num", Compare::Num),
            ("nan", Compare::Nan),
        ])
        .ok_or("the comparison is missing")?;
    let logic = d.one_of(&[("and", Logic::And), ("or", Logic::Or), ("xor", Logic::Xor)]);
    d.count(if logic.is_some() { 4 } else { 3 })?;
    let (first, second) = match d.operand(0)?.split_once('|') {
        Some((first, second)) => (first.trim(), Some(second.trim())),
        None => (d.operand(0)?, None),
    };
    let to = d.body.names.destination(first, Class::PRED)?;
    let negation = second.map(|name| d.body.names.destination(name, Class::PRED)).transpose()?;
    let (a, b) = (d.from(1, t)?, d.from(2, t)?);
    let with = match logic {
        Some(logic) => Some((logic, d.predicate(3)?)),
        None => None,
    };
    Ok(Code::Compare { of: t, compare, flush, to, negation, a, b, with })
}

pub(super) fn selp(d: &mut Decoder<'_>) -> Result<Code, String> {
    let t = d.last_type()?;
    d.count(4)?;
    let (to, a, b, by) = (d.to(0, t)?, d.from(1, t)?, d.from(2, t)?, d.predicate(3)?);
    match t {
        Type::Pred | Type::B8 | Type::U8 | Type::S8 => Err("unsupported: selp of this type".to_owned()),
        _ if t.bytes() == 8 => Ok(Code::Select64 { to, a, b, by }),
        _ => Ok(Code::Select32 { to, a, b, by }),
    }
}

pub(super) fn cvt(d: &mut Decoder<'_>) -> Result<Code, String> {
    let from = d.last_type()?;
    let to_type = d.last_type()?;
    if matches!(to_type, Type::F16x2 | Type::Bf16x2) {
        d.need("rn")?;
        d.count(3)?;
        if from != Type::F32 {
            return Err("unsupported: packed conversion from this type".to_owned());
        }
        return Ok(Code::Pack16 { to_type, to: d.to(0, to_type)?, high: d.from(1, from)?, low: d.from(2, from)? });
    }
    if [from, to_type].iter().any(|t| matches!(t, Type::Pred | Type::F16x2 | Type::Bf16x2)) {
        return Err("unsupported: conversion between these types".to_owned());
    }
    let integral = d.one_of(&[("rni", Round::Nearest), ("rzi", Round::Zero), ("rmi", Round::Down), ("rpi", Round::Up)]);
    let round = rounding(d).unwrap_or(Round::Nearest);
    if round != Round::Nearest {
        return Err("unsupported: conversions round to nearest, or to an integral value".to_owned());
    }
    if from.is_float() && !to_type.is_float() && integral.is_none() {
        return Err("a conversion from float to integer names its rounding".to_owned());
    }
    let saturate = d.take("sat");
    if saturate && !(from == Type::F32 && to_type == Type::F32) {
        return Err("unsupported: .sat of this conversion".to_owned());
    }
    let flush = d.take("ftz");
    d.count(2)?;
    // A register may be wider than an integer type of 8 or 16 bits.
    let text = d.operand(1)?;
    let class = match d.body.names.register(text) {
        Some((_, class)) if !from.is_float() && class.bits as usize >= from.bytes() * 8 => class,
        _ => Class::of(from),
    };
    if class.bits == 64 && from.bytes() < 8 {
        return Err("unsupported: a narrow value read from a 64-bit register".to_owned());
    }
    let a = d.body.names.source(text, class)?;
    let text = d.operand(0)?;
    let to = match d.body.names.register(text) {
        // cvt.u8.u32 and the like into a 16- or 32-bit register.
        Some((row, class)) if to_type.bytes() < 4 && !to_type.is_float() && class.bits <= 32 => row,
        _ => d.to(0, to_type)?,
    };
    Ok(Code::Convert { from, to_type, integral, saturate, flush, to, a })
}

pub(super) fn cvta(d: &mut Decoder<'_>) -> Result<Code, String> {
    let t = d.last_type()?;
    if t.bytes() != 8 {
        return Err("unsupported: cvta of 32 bits".to_owned());
    }
    let to_space = d.take("to");
    let window = d
        .one_of(&[("global", 0), ("param", 0), ("const", 0), ("shared", SHARED_WINDOW), ("local", LOCAL_WINDOW)])
        .ok_or("the space is missing")?;
    d.count(2)?;
    let (to, a) = (d.to(0, t)?, address_source(d, 1, true)?);
    let b = d.body.names.constant64(if to_space { window.wrapping_neg() } else { window });
    Ok(Code::Int64 { op: Int::Add, signed: false, to, a, b, c: b })
}

/// A source that may be a variable's name.
fn address_source(d: &mut Decoder<'_>, at: usize, wide: bool) -> Result<u32, String> {
    let text = d.operand(at)?;
    let class = Class { bits: if wide { 64 } else { 32 } };
    match d.body.names.source(text, class) {
        Ok(row) => Ok(row),
        Err(reason) if text.starts_with('%') => Err(reason),
        Err(_) => match d.symbol(text)? {
            Symbol::Dynamic => Ok(d.dynamic(wide, 0)),
            Symbol::Fixed(address) if wide => Ok(d.body.names.constant64(address)),
            Symbol::Fixed(address) => Ok(d.body.names.constant32(address as u32, class)),
        },
    }
}

pub(super) fn mov(d: &mut Decoder<'_>) -> Result<Code, String> {
    let t = d.last_type()?;
    d.count(2)?;
    let wide = t.bytes() == 8;
    let half = if wide { Type::B32 } else { Type::B16 };
    if d.operand(1)?.starts_with('{') {
        let [low, high] = d.rows::<2>(1, half, false)?;
        return Ok(Code::Join { wide, to: d.to(0, t)?, low, high });
    }
    if d.operand(0)?.starts_with('{') {
        let names = d.vector(0)?;
        let &[low, high] = names.as_slice() else { return Err("two registers".to_owned()) };
        let mut target = |name: &str| match name {
            "_" => Ok(None),
            _ => d.body.names.destination(name, Class::of(half)).map(Some),
        };
        let (low, high) = (target(low)?, target(high)?);
        return Ok(Code::Split { wide, low, high, a: d.from(1, t)? });
    }
    let to = d.to(0, t)?;
    match t {
        Type::Pred => match d.operand(1)?.parse::<i64>() {
            Ok(value) => Ok(Code::SetPredicate { to, value: value != 0 }),
            Err(_) => Ok(Code::MovePred { to, a: d.predicate(1)? }),
        },
        _ if wide => {
            let a = address_source(d, 1, true)?;
            Ok(Code::Int64 { op: Int::Move, signed: false, to, a, b: a, c: a })
        }
        _ => {
            let a = if t.bytes() == 2 { d.from(1, t)? } else { address_source(d, 1, false)? };
            Ok(Code::Int32 { op: Int::Move, signed: false, width: Width::Full, to, a, b: a, c: a })
        }
    }
}
