//! Decoding of loads, stores, atomics and asynchronous copies.

use super::decode::Decoder;
use super::names::Class;
use crate::program::{Atomic, Code, Elements, Instruction, Space, Type};

/// Hints that change speed only.
const CACHE_HINTS: [&str; 13] = [
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "L1::no_allocate",
    "L1::evict_last",
    "L1::evict_first",
    "L2::64B",
    "L2::128B",
    "L2::256B",
];

/// Ordering and its scope: nothing is reordered here, so these change nothing.
const ORDER: [&str; 9] = ["volatile", "relaxed", "acquire", "release", "acq_rel", "weak", "gpu", "cta", "sys"];

fn space(d: &mut Decoder<'_>) -> Space {
    let found = d.one_of(&[
        ("param", Space::Param),
        ("const", Space::Const),
        ("global", Space::Global),
        ("shared", Space::Shared),
        ("shared::cta", Space::Shared),
        ("local", Space::Local),
    ]);
    found.unwrap_or(Space::Generic)
}

/// The registers of a load or store, `t` each in memory.
fn elements(d: &mut Decoder<'_>, at: usize, t: Type, load: bool) -> Result<Elements, String> {
    if t == Type::Pred {
        return Err("predicates are not in memory".to_owned());
    }
    let vector = d.one_of(&[("v2", 2_usize), ("v4", 4)]).unwrap_or(1);
    let names = d.vector(at)?;
    if names.len() != vector {
        return Err(format!("{} registers instead of {vector}", names.len()));
    }
    let mut rows = [0; 4];
    let mut class = Class::of(t);
    for (slot, name) in rows.iter_mut().zip(&names) {
        match d.body.names.register(name) {
            Some((row, found)) => {
                if found == Class::PRED || (found.bits as usize) < t.bytes() * 8 {
                    return Err(format!("{name} has {} bits, an element {}", found.bits, t.bytes() * 8));
                }
                *slot = row;
                class = found;
            }
            None if load => return Err(format!("{name} is no declared register")),
            None => *slot = d.body.names.source(name, Class::of(t))?,
        }
    }
    let sign_to = if load && t.is_signed() { class.bits as u8 } else { 0 };
    let mixed = names.iter().any(|name| d.body.names.register(name).is_some_and(|(_, found)| found != class));
    if mixed {
        return Err("registers of different widths".to_owned());
    }
    Ok(Elements { rows, count: vector as u8, bytes: t.bytes() as u8, wide: class.bits == 64, sign_to })
}

pub(super) fn load(d: &mut Decoder<'_>) -> Result<Code, String> {
    let t = d.last_type()?;
    let space = space(d);
    d.take_all(&ORDER);
    d.take_all(&CACHE_HINTS);
    let read_only = d.take("nc");
    d.count(2)?;
    let to = elements(d, 0, t, true)?;
    Ok(Code::Load { space, read_only, to, from: d.address(1)? })
}

pub(super) fn store(d: &mut Decoder<'_>) -> Result<Code, String> {
    let t = d.last_type()?;
    let space = space(d);
    if matches!(space, Space::Param | Space::Const) {
        return Err("unsupported: a store to read-only memory".to_owned());
    }
    d.take_all(&ORDER);
    d.take_all(&CACHE_HINTS);
    d.count(2)?;
    let from = elements(d, 1, t, false)?;
    Ok(Code::Store { space, from, to: d.address(0)? })
}

pub(super) fn atomic(d: &mut Decoder<'_>, returns: bool) -> Result<Code, String> {
    let t = d.last_type()?;
    let space = space(d);
    d.take_all(&ORDER);
    let op = d
        .one_of(&[
            ("add", Atomic::Add),
            ("min", Atomic::Min),
            ("max", Atomic::Max),
            ("and", Atomic::And),
            ("or", Atomic::Or),
            ("xor", Atomic::Xor),
            ("exch", Atomic::Exchange),
            ("cas", Atomic::CompareAndSwap),
        ])
        .ok_or("the operation is missing")?;
    if !matches!(t.bytes(), 4 | 8) || matches!(t, Type::F16x2 | Type::Bf16x2) || (t.is_float() && op != Atomic::Add) {
        return Err("unsupported: an atomic of this type".to_owned());
    }
    if matches!(space, Space::Param | Space::Const | Space::Local) {
        return Err("unsupported: an atomic in this space".to_owned());
    }
    let first = usize::from(returns);
    d.count(first + if op == Atomic::CompareAndSwap { 3 } else { 2 })?;
    let to = if returns && d.operand(0)? != "_" { Some(d.to(0, t)?) } else { None };
    let a = d.from(first + 1, t)?;
    let b = if op == Atomic::CompareAndSwap { d.from(first + 2, t)? } else { a };
    Ok(Code::Atomic { space, op, of: t, to, address: d.address(first)?, a, b })
}

pub(super) fn copy_async(d: &mut Decoder<'_>) -> Result<Code, String> {
    d.need("async")?;
    if d.take("commit_group") {
        d.count(0)?;
        return Ok(Code::CopyCommit);
    }
    if d.take("wait_all") {
        d.count(0)?;
        return Ok(Code::CopyWait { pending: None });
    }
    if d.take("wait_group") {
        d.count(1)?;
        let pending = d.operand(0)?.parse().map_err(|_| "how many groups may be pending")?;
        return Ok(Code::CopyWait { pending: Some(pending) });
    }
    let around = d.take("ca");
    if !around && !d.take("cg") {
        return Err("one of .ca, .cg".to_owned());
    }
    if !d.take("shared") && !d.take("shared::cta") {
        return Err("the destination has to be shared".to_owned());
    }
    d.need("global")?;
    d.take_all(&CACHE_HINTS);
    let bytes: u8 = d.operand(2)?.parse().map_err(|_| "how many bytes")?;
    if !(bytes == 16 || around && matches!(bytes, 4 | 8)) {
        return Err(format!("unsupported: a copy of {bytes} bytes"));
    }
    let source_bytes = match d.operands.len() {
        3 => None,
        4 => Some(d.from(3, Type::U32)?),
        n => return Err(format!("{n} operands")),
    };
    Ok(Code::CopyAsync { to: d.address(0)?, from: d.address(1)?, bytes, source_bytes })
}

/// The narrowest shared and the narrowest global access, in bytes.
pub(super) fn grains(instructions: &[Instruction]) -> (usize, usize) {
    let (mut shared, mut global) = (16, 16);
    let mut note = |space: Space, bytes: usize| {
        if matches!(space, Space::Shared | Space::Generic) {
            shared = shared.min(bytes);
        }
        if matches!(space, Space::Global | Space::Generic) {
            global = global.min(bytes);
        }
    };
    for instruction in instructions {
        match &instruction.code {
            Code::Load { space, to, .. } => note(*space, to.total_bytes()),
            Code::Store { space, from, .. } => note(*space, from.total_bytes()),
            Code::Atomic { space, of, .. } => note(*space, of.bytes()),
            Code::CopyAsync { bytes, source_bytes, .. } => {
                note(Space::Shared, usize::from(*bytes));
                // A part of the source may be read: an odd byte count reads as if rounded up.
                note(Space::Global, if source_bytes.is_some() { 2 } else { usize::from(*bytes) });
            }
            _ => {}
        }
    }
    (shared, global)
}
