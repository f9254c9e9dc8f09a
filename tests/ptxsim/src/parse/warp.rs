//! Decoding of what a warp or a block does together: barriers, shuffles, votes, matrix instructions.

use super::decode::Decoder;
use super::names::Class;
use crate::program::{Atomic, Code, Logic, Reduction, Shuffle, Type, Vote};

pub(super) fn barrier(d: &mut Decoder<'_>) -> Result<Code, String> {
    if d.take("warp") {
        d.need("sync")?;
        d.count(1)?;
        return Ok(Code::SyncWarp { members: d.from(0, Type::B32)? });
    }
    d.take("cta");
    // Without .aligned a barrier may be met by part of a warp; here every barrier has to be met by all of it.
    d.take("aligned");
    // All threads have to meet at the same instruction, so the barrier's number says nothing more.
    let check_id = |text: &str| match text.parse::<u32>() {
        Ok(id) if id < 16 => Ok(()),
        _ => Err("a barrier's number is a constant below 16".to_owned()),
    };
    if d.take("sync") {
        if d.operands.len() == 2 {
            return Err("unsupported: a barrier of part of the block".to_owned());
        }
        d.count(1)?;
        check_id(d.operand(0)?)?;
        return Ok(Code::Barrier { reduction: Reduction::None });
    }
    d.need("red")?;
    d.count(3)?;
    check_id(d.operand(1)?)?;
    let of = d.predicate(2)?;
    let reduction = if d.take("popc") {
        d.need("u32")?;
        Reduction::Popc { to: d.to(0, Type::U32)?, of }
    } else {
        let op = d.one_of(&[("and", Logic::And), ("or", Logic::Or)]).ok_or("the operation is missing")?;
        d.need("pred")?;
        Reduction::Logic { op, to: d.to(0, Type::Pred)?, of }
    };
    Ok(Code::Barrier { reduction })
}

pub(super) fn shuffle(d: &mut Decoder<'_>) -> Result<Code, String> {
    d.need("sync")?;
    d.need("b32")?;
    let mode = d
        .one_of(&[("up", Shuffle::Up), ("down", Shuffle::Down), ("bfly", Shuffle::Butterfly), ("idx", Shuffle::Index)])
        .ok_or("the mode is missing")?;
    d.count(5)?;
    let (to, valid) = match d.operand(0)?.split_once('|') {
        Some((to, valid)) => (to.trim(), Some(valid.trim())),
        None => (d.operand(0)?, None),
    };
    let to = d.body.names.destination(to, Class::of(Type::B32))?;
    let valid = valid.map(|name| d.body.names.destination(name, Class::PRED)).transpose()?;
    let (a, by) = (d.from(1, Type::B32)?, d.from(2, Type::B32)?);
    let (clamp, members) = (d.from(3, Type::B32)?, d.from(4, Type::B32)?);
    Ok(Code::Shuffle { mode, to, valid, a, by, clamp, members })
}

pub(super) fn vote(d: &mut Decoder<'_>) -> Result<Code, String> {
    d.need("sync")?;
    let mode = d
        .one_of(&[("ballot", Vote::Ballot), ("any", Vote::Any), ("all", Vote::All), ("uni", Vote::Uniform)])
        .ok_or("the mode is missing")?;
    let t = if mode == Vote::Ballot { "b32" } else { "pred" };
    d.need(t)?;
    d.count(3)?;
    let to = d.to(0, if mode == Vote::Ballot { Type::B32 } else { Type::Pred })?;
    Ok(Code::Vote { mode, to, of: d.predicate(1)?, members: d.from(2, Type::B32)? })
}

pub(super) fn redux(d: &mut Decoder<'_>) -> Result<Code, String> {
    let t = d.last_type()?;
    d.need("sync")?;
    let op = d
        .one_of(&[
            ("add", Atomic::Add),
            ("min", Atomic::Min),
            ("max", Atomic::Max),
            ("and", Atomic::And),
            ("or", Atomic::Or),
            ("xor", Atomic::Xor),
        ])
        .ok_or("the operation is missing")?;
    if !matches!(t, Type::B32 | Type::U32 | Type::S32) {
        return Err("unsupported: redux of this type".to_owned());
    }
    d.count(3)?;
    let (to, a) = (d.to(0, t)?, d.from(1, t)?);
    Ok(Code::Reduce { op, signed: t.is_signed(), to, a, members: d.from(2, Type::B32)? })
}

/// `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32` and no other.
pub(super) fn mma(d: &mut Decoder<'_>) -> Result<Code, String> {
    for modifier in ["sync", "aligned", "m16n8k16", "row", "col", "f32", "bf16", "bf16", "f32"] {
        d.need(modifier)?;
    }
    d.count(4)?;
    Ok(Code::Mma {
        to: d.rows(0, Type::F32, true)?,
        a: d.rows(1, Type::B32, false)?,
        b: d.rows(2, Type::B32, false)?,
        c: d.rows(3, Type::F32, false)?,
    })
}

pub(super) fn load_matrix(d: &mut Decoder<'_>) -> Result<Code, String> {
    for modifier in ["sync", "aligned", "m8n8", "b16"] {
        d.need(modifier)?;
    }
    let count = d.one_of(&[("x1", 1_u8), ("x2", 2), ("x4", 4)]).ok_or("one of .x1, .x2, .x4")?;
    let transposed = d.take("trans");
    if !d.take("shared") && !d.take("shared::cta") {
        return Err("the matrices have to be in shared memory".to_owned());
    }
    d.count(2)?;
    let names = d.vector(0)?;
    if names.len() != usize::from(count) {
        return Err(format!("{} registers instead of {count}", names.len()));
    }
    let mut to = [0; 4];
    for (row, name) in to.iter_mut().zip(names) {
        *row = d.body.names.destination(name, Class::of(Type::B32))?;
    }
    Ok(Code::LoadMatrix { transposed, count, to, from: d.address(1)? })
}
