//! Instructions that only touch registers. The operation is chosen once a warp, then a loop runs over the lanes.

use super::warp::Registers;
use super::{convert, float, lanes};
use crate::program::{Code, Compare, Float, Int, Logic, PredSource, Round, Row, Type, Width};

fn each1<T: Copy>(file: &mut [[T; 32]], to: Row, a: Row, mask: u32, f: impl Fn(T) -> T) {
    let x = file[a as usize];
    let out = &mut file[to as usize];
    if mask == u32::MAX {
        for lane in 0..32 {
            out[lane] = f(x[lane]);
        }
    } else {
        lanes(mask).for_each(|lane| out[lane] = f(x[lane]));
    }
}

fn each2<T: Copy>(file: &mut [[T; 32]], [to, a, b]: [Row; 3], mask: u32, f: impl Fn(T, T) -> T) {
    let (x, y) = (file[a as usize], file[b as usize]);
    let out = &mut file[to as usize];
    if mask == u32::MAX {
        for lane in 0..32 {
            out[lane] = f(x[lane], y[lane]);
        }
    } else {
        lanes(mask).for_each(|lane| out[lane] = f(x[lane], y[lane]));
    }
}

fn each3<T: Copy>(file: &mut [[T; 32]], [to, a, b, c]: [Row; 4], mask: u32, f: impl Fn(T, T, T) -> T) {
    let (x, y, z) = (file[a as usize], file[b as usize], file[c as usize]);
    let out = &mut file[to as usize];
    if mask == u32::MAX {
        for lane in 0..32 {
            out[lane] = f(x[lane], y[lane], z[lane]);
        }
    } else {
        lanes(mask).for_each(|lane| out[lane] = f(x[lane], y[lane], z[lane]));
    }
}

pub(super) fn execute(r: &mut Registers, code: &Code, mask: u32) {
    match *code {
        Code::Int32 { op, signed, width: Width::Full, to, a, b, c } => int32(r, op, signed, [to, a, b, c], mask),
        Code::Int32 { op, signed, width, to, a, b, c } => int16(r, op, signed, width, [to, a, b, c], mask),
        Code::Int64 { op, signed, to, a, b, c } => int64(r, op, signed, [to, a, b, c], mask),
        Code::Bits64 { op, signed, to, a } => bits64(r, op, signed, to, a, mask),
        Code::Wide { signed, to, a, b, add } => wide(r, signed, [to, a, b], add, mask),
        Code::BitInsert { wide, to, a, b, from, length } => bit_insert(r, wide, [to, a, b, from, length], mask),
        Code::Float32 { op, round, flush, saturate, to, a, b, c } => {
            float32(r, op, round, (flush, saturate), [to, a, b, c], mask);
        }
        Code::Float64 { op, to, a, b, c } => each3(&mut r.w64, [to, a, b, c], mask, |x, y, z| {
            float::double(op, f64::from_bits(x), f64::from_bits(y), f64::from_bits(z)).to_bits()
        }),
        Code::Convert { .. } => convert::convert(r, code, mask),
        Code::Pack16 { to_type, to, high, low } => convert::pack(r, to_type, [to, high, low], mask),
        Code::Compare { of, compare, flush, to, negation, a, b, with } => {
            let mut bits = compared(r, of, compare, flush, a, b);
            let mut inverse = !bits;
            if let Some((logic, source)) = with {
                let other = r.predicate(source);
                (bits, inverse) = (combine(logic, bits, other), combine(logic, inverse, other));
            }
            r.set_predicate(to, mask, bits);
            if let Some(row) = negation {
                r.set_predicate(row, mask, inverse);
            }
        }
        Code::Logic { op, to, a, b } => {
            let bits = combine(op, r.predicate(a), r.predicate(b));
            r.set_predicate(to, mask, bits);
        }
        Code::SetPredicate { to, value } => r.set_predicate(to, mask, if value { u32::MAX } else { 0 }),
        Code::MovePred { to, a } => {
            let bits = r.predicate(a);
            r.set_predicate(to, mask, bits);
        }
        Code::Select32 { to, a, b, by } => select(&mut r.w32, [to, a, b], mask, choice(&r.predicates, by)),
        Code::Select64 { to, a, b, by } => select(&mut r.w64, [to, a, b], mask, choice(&r.predicates, by)),
        Code::Join { wide, to, low, high } => join(r, wide, to, low, high, mask),
        Code::Split { wide, low, high, a } => split(r, wide, low, high, a, mask),
        ref other => unreachable!("{other:?} does not only touch registers"),
    }
}

fn choice(predicates: &[u32], by: PredSource) -> u32 {
    let bits = predicates[by.row as usize];
    if by.negated { !bits } else { bits }
}

fn select<T: Copy>(file: &mut [[T; 32]], [to, a, b]: [Row; 3], mask: u32, choice: u32) {
    let (x, y) = (file[a as usize], file[b as usize]);
    let out = &mut file[to as usize];
    for lane in lanes(mask) {
        out[lane] = if choice >> lane & 1 == 1 { x[lane] } else { y[lane] };
    }
}

fn combine(op: Logic, a: u32, b: u32) -> u32 {
    match op {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}

fn int32(r: &mut Registers, op: Int, signed: bool, rows: [Row; 4], mask: u32) {
    let [to, a, b, _] = rows;
    let file = &mut r.w32;
    let two = [to, a, b];
    match op {
        Int::Move => each1(file, to, a, mask, |x| x),
        Int::Add => each2(file, two, mask, u32::wrapping_add),
        Int::Sub => each2(file, two, mask, u32::wrapping_sub),
        Int::MulLo => each2(file, two, mask, u32::wrapping_mul),
        Int::MadLo => each3(file, rows, mask, |x, y, z| x.wrapping_mul(y).wrapping_add(z)),
        Int::And => each2(file, two, mask, |x, y| x & y),
        Int::Or => each2(file, two, mask, |x, y| x | y),
        Int::Xor => each2(file, two, mask, |x, y| x ^ y),
        Int::Not => each1(file, to, a, mask, |x| !x),
        Int::Shl => each2(file, two, mask, |x, y| x.checked_shl(y).unwrap_or(0)),
        Int::Shr if signed => each2(file, two, mask, |x, y| ((x as i32) >> y.min(31)) as u32),
        Int::Shr => each2(file, two, mask, |x, y| x.checked_shr(y).unwrap_or(0)),
        Int::Min if signed => each2(file, two, mask, |x, y| (x as i32).min(y as i32) as u32),
        Int::Min => each2(file, two, mask, u32::min),
        Int::Max if signed => each2(file, two, mask, |x, y| (x as i32).max(y as i32) as u32),
        Int::Max => each2(file, two, mask, u32::max),
        _ => each3(file, rows, mask, |x, y, z| rare32(op, signed, x, y, z)),
    }
}

/// The operations that are too rare for a loop of their own.
fn rare32(op: Int, signed: bool, x: u32, y: u32, z: u32) -> u32 {
    let high = || {
        if signed {
            ((i64::from(x as i32) * i64::from(y as i32)) >> 32) as u32
        } else {
            ((u64::from(x) * u64::from(y)) >> 32) as u32
        }
    };
    match op {
        Int::MulHi => high(),
        Int::MadHi => high().wrapping_add(z),
        // Dividing by zero gives some value, not a fault: all ones, as hardware does.
        Int::Div if y == 0 => u32::MAX,
        Int::Div if signed => (x as i32).wrapping_div(y as i32) as u32,
        Int::Div => x / y,
        Int::Rem if y == 0 => x,
        Int::Rem if signed => (x as i32).wrapping_rem(y as i32) as u32,
        Int::Rem => x % y,
        Int::Neg => x.wrapping_neg(),
        Int::Abs => (x as i32).unsigned_abs(),
        Int::Popc => x.count_ones(),
        Int::Clz => x.leading_zeros(),
        Int::Brev => x.reverse_bits(),
        Int::Bfind { shift_amount } => {
            let significant = if signed && (x as i32) < 0 { !x } else { x };
            bfind(u64::from(significant) << 32, 31, shift_amount)
        }
        Int::Bfe => {
            let wide = if signed { i64::from(x as i32) as u64 } else { u64::from(x) };
            bit_extract(wide, 32, signed, y, z) as u32
        }
        Int::Prmt => permute(x, y, z),
        Int::Lop3(table) => (0..8).filter(|at| table >> at & 1 == 1).fold(0, |found, at| {
            let pick = |value: u32, set: bool| if set { value } else { !value };
            found | (pick(x, at & 4 != 0) & pick(y, at & 2 != 0) & pick(z, at & 1 != 0))
        }),
        Int::ShfLeft { clamp } => {
            let by = if clamp { z.min(32) } else { z & 31 };
            ((u64::from(y) << 32 | u64::from(x)) << by >> 32) as u32
        }
        Int::ShfRight { clamp } => {
            let by = if clamp { z.min(32) } else { z & 31 };
            ((u64::from(y) << 32 | u64::from(x)) >> by) as u32
        }
        _ => unreachable!("{op:?} has a loop of its own"),
    }
}

/// The highest set bit's position (or its distance from the top); `value` is aligned to the top of 64 bits.
fn bfind(value: u64, top: u32, shift_amount: bool) -> u32 {
    match value.leading_zeros() {
        64 => u32::MAX,
        zeros if shift_amount => zeros,
        zeros => top - zeros,
    }
}

/// bfe: `length` bits from bit `from` on; the field's sign bit is the topmost bit that exists.
fn bit_extract(x: u64, bits: u32, signed: bool, from: u32, length: u32) -> u64 {
    let (from, length) = (from & 0xff, length & 0xff);
    let bit = |at: u32| x.checked_shr(at.min(bits - 1)).unwrap_or(0) & 1;
    let sign = signed && length > 0 && bit((from + length - 1).min(bits - 1)) == 1;
    (0..bits).fold(0, |found, at| {
        let inside = at < length && from + at < bits;
        let set = if inside { bit(from + at) == 1 } else { sign };
        found | u64::from(set) << at
    })
}

fn permute(x: u32, y: u32, selector: u32) -> u32 {
    let bytes = u64::from(y) << 32 | u64::from(x);
    (0..4).fold(0, |found, at| {
        let choice = selector >> (4 * at);
        let byte = (bytes >> (8 * (choice & 7))) as u8;
        let byte = if choice & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        found | u32::from(byte) << (8 * at)
    })
}

/// 16-bit operations: the operands are extended to 32 bits, the result is cut.
fn int16(r: &mut Registers, op: Int, signed: bool, width: Width, rows: [Row; 4], mask: u32) {
    let extend = |x: u32| if signed { x as u16 as i16 as i32 as u32 } else { x & 0xffff };
    let shift = matches!(op, Int::Shl | Int::Shr);
    each3(&mut r.w32, rows, mask, |x, y, z| {
        let x = extend(x);
        let y = if shift { y } else { extend(y) };
        let value = match op {
            Int::Move => x,
            Int::Add => x.wrapping_add(y),
            Int::Sub => x.wrapping_sub(y),
            Int::MulLo => x.wrapping_mul(y),
            Int::MadLo => x.wrapping_mul(y).wrapping_add(z),
            Int::And => x & y,
            Int::Or => x | y,
            Int::Xor => x ^ y,
            Int::Not => !x,
            Int::Shl => x.checked_shl(y).unwrap_or(0),
            Int::Shr if signed => ((x as i32) >> y.min(31)) as u32,
            Int::Shr => x.checked_shr(y).unwrap_or(0),
            Int::Min if signed => (x as i32).min(y as i32) as u32,
            Int::Min => x.min(y),
            Int::Max if signed => (x as i32).max(y as i32) as u32,
            Int::Max => x.max(y),
            _ => rare32(op, signed, x, y, z),
        };
        if width == Width::HalfToFull { value } else { value & 0xffff }
    });
}

fn int64(r: &mut Registers, op: Int, signed: bool, rows: [Row; 4], mask: u32) {
    let [to, a, b, c] = rows;
    let two = [to, a, b];
    // Shifts and bit fields take 32-bit rows.
    if matches!(op, Int::Shl | Int::Shr | Int::Bfe) {
        let (by, length) = (r.w32[b as usize], r.w32[c as usize]);
        let x = r.w64[a as usize];
        let out = &mut r.w64[to as usize];
        for lane in lanes(mask) {
            let (x, by) = (x[lane], by[lane]);
            out[lane] = match op {
                Int::Shl => x.checked_shl(by).unwrap_or(0),
                Int::Shr if signed => ((x as i64) >> by.min(63)) as u64,
                Int::Shr => x.checked_shr(by).unwrap_or(0),
                _ => bit_extract(x, 64, signed, by, length[lane]),
            };
        }
        return;
    }
    let file = &mut r.w64;
    match op {
        Int::Move => each1(file, to, a, mask, |x| x),
        Int::Add => each2(file, two, mask, u64::wrapping_add),
        Int::Sub => each2(file, two, mask, u64::wrapping_sub),
        Int::MulLo => each2(file, two, mask, u64::wrapping_mul),
        Int::And => each2(file, two, mask, |x, y| x & y),
        Int::Or => each2(file, two, mask, |x, y| x | y),
        _ => each3(file, rows, mask, |x, y, z| rare64(op, signed, x, y, z)),
    }
}

fn rare64(op: Int, signed: bool, x: u64, y: u64, z: u64) -> u64 {
    let high = || {
        if signed {
            ((i128::from(x as i64) * i128::from(y as i64)) >> 64) as u64
        } else {
            ((u128::from(x) * u128::from(y)) >> 64) as u64
        }
    };
    match op {
        Int::MulHi => high(),
        Int::MadHi => high().wrapping_add(z),
        Int::MadLo => x.wrapping_mul(y).wrapping_add(z),
        Int::Div if y == 0 => u64::MAX,
        Int::Div if signed => (x as i64).wrapping_div(y as i64) as u64,
        Int::Div => x / y,
        Int::Rem if y == 0 => x,
        Int::Rem if signed => (x as i64).wrapping_rem(y as i64) as u64,
        Int::Rem => x % y,
        Int::Min if signed => (x as i64).min(y as i64) as u64,
        Int::Min => x.min(y),
        Int::Max if signed => (x as i64).max(y as i64) as u64,
        Int::Max => x.max(y),
        Int::Neg => x.wrapping_neg(),
        Int::Abs => (x as i64).unsigned_abs(),
        Int::Xor => x ^ y,
        Int::Not => !x,
        Int::Brev => x.reverse_bits(),
        _ => unreachable!("the parser refuses {op:?} of 64 bits"),
    }
}

fn bits64(r: &mut Registers, op: Int, signed: bool, to: Row, a: Row, mask: u32) {
    let x = r.w64[a as usize];
    let out = &mut r.w32[to as usize];
    for lane in lanes(mask) {
        out[lane] = match op {
            Int::Popc => x[lane].count_ones(),
            Int::Clz => x[lane].leading_zeros(),
            Int::Bfind { shift_amount } => {
                let value = x[lane];
                bfind(if signed && (value as i64) < 0 { !value } else { value }, 63, shift_amount)
            }
            _ => unreachable!("{op:?} does not turn 64 bits into 32"),
        };
    }
}

fn wide(r: &mut Registers, signed: bool, [to, a, b]: [Row; 3], add: Option<Row>, mask: u32) {
    let (x, y) = (r.w32[a as usize], r.w32[b as usize]);
    let z = add.map_or([0; 32], |row| r.w64[row as usize]);
    let out = &mut r.w64[to as usize];
    for lane in lanes(mask) {
        let product = if signed {
            (i64::from(x[lane] as i32) * i64::from(y[lane] as i32)) as u64
        } else {
            u64::from(x[lane]) * u64::from(y[lane])
        };
        out[lane] = product.wrapping_add(z[lane]);
    }
}

fn bit_insert(r: &mut Registers, wide: bool, [to, a, b, from, length]: [Row; 5], mask: u32) {
    let (from, length) = (r.w32[from as usize], r.w32[length as usize]);
    let insert = |x: u64, into: u64, lane: usize| {
        let (from, length) = (from[lane] & 0xff, length[lane] & 0xff);
        let field = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
        let field = field.checked_shl(from).unwrap_or(0);
        (into & !field) | (x.checked_shl(from).unwrap_or(0) & field)
    };
    for lane in lanes(mask) {
        if wide {
            r.w64[to as usize][lane] = insert(r.w64[a as usize][lane], r.w64[b as usize][lane], lane);
        } else {
            let (x, into) = (r.w32[a as usize][lane], r.w32[b as usize][lane]);
            r.w32[to as usize][lane] = insert(u64::from(x), u64::from(into), lane) as u32;
        }
    }
}

fn float32(r: &mut Registers, op: Float, round: Round, (flush, saturate): (bool, bool), rows: [Row; 4], mask: u32) {
    let [to, a, b, _] = rows;
    let file = &mut r.w32;
    let two = [to, a, b];
    let f = f32::from_bits;
    if flush || saturate || round != Round::Nearest {
        return each3(file, rows, mask, |x, y, z| modified(op, round, (flush, saturate), [f(x), f(y), f(z)]).to_bits());
    }
    match op {
        Float::Add => each2(file, two, mask, |x, y| (f(x) + f(y)).to_bits()),
        Float::Sub => each2(file, two, mask, |x, y| (f(x) - f(y)).to_bits()),
        Float::Mul => each2(file, two, mask, |x, y| (f(x) * f(y)).to_bits()),
        Float::Fma => each3(file, rows, mask, |x, y, z| f(x).mul_add(f(y), f(z)).to_bits()),
        Float::Div => each2(file, two, mask, |x, y| (f(x) / f(y)).to_bits()),
        Float::Min => each2(file, two, mask, |x, y| float::min(f(x), f(y)).to_bits()),
        Float::Max => each2(file, two, mask, |x, y| float::max(f(x), f(y)).to_bits()),
        Float::Neg => each1(file, to, a, mask, |x| x ^ (1 << 31)),
        Float::Abs => each1(file, to, a, mask, |x| x & !(1 << 31)),
        Float::CopySign => each2(file, two, mask, |x, y| f(y).copysign(f(x)).to_bits()),
        _ => each1(file, to, a, mask, |x| float::unary(op, f(x)).to_bits()),
    }
}

/// An operation with `.ftz`, `.sat` or a directed rounding.
fn modified(op: Float, round: Round, (flush, saturate): (bool, bool), operands: [f32; 3]) -> f32 {
    let [x, y, z] = if flush { operands.map(float::flush) } else { operands };
    let value = match op {
        Float::Add => x + y,
        Float::Sub => x - y,
        Float::Mul => x * y,
        Float::Fma => float::fma_rounded(x, y, z, round),
        Float::Div => x / y,
        Float::Min => float::min(x, y),
        Float::Max => float::max(x, y),
        Float::CopySign => y.copysign(x),
        _ => float::unary(op, x),
    };
    let value = if flush { float::flush(value) } else { value };
    if saturate { float::saturate(value) } else { value }
}

fn compared(r: &Registers, of: Type, compare: Compare, flush: bool, a: Row, b: Row) -> u32 {
    let (a, b) = (a as usize, b as usize);
    let half = |x: u32| x as u16 as i16;
    match of {
        Type::F32 if flush => {
            let f = |x| float::flush(f32::from_bits(x));
            ordered(compare, r.w32[a].map(f), r.w32[b].map(f))
        }
        Type::F32 => ordered(compare, r.w32[a].map(f32::from_bits), r.w32[b].map(f32::from_bits)),
        Type::F64 => ordered(compare, r.w64[a].map(f64::from_bits), r.w64[b].map(f64::from_bits)),
        Type::S64 => ordered(compare, r.w64[a].map(|x| x as i64), r.w64[b].map(|x| x as i64)),
        Type::U64 | Type::B64 => ordered(compare, r.w64[a], r.w64[b]),
        Type::S32 => ordered(compare, r.w32[a].map(|x| x as i32), r.w32[b].map(|x| x as i32)),
        Type::S16 => ordered(compare, r.w32[a].map(half), r.w32[b].map(half)),
        _ => ordered(compare, r.w32[a], r.w32[b]),
    }
}

fn ordered<T: PartialOrd + Copy>(compare: Compare, x: [T; 32], y: [T; 32]) -> u32 {
    fn bits<T: Copy>(x: [T; 32], y: [T; 32], f: impl Fn(T, T) -> bool) -> u32 {
        (0..32).fold(0, |found, lane| found | u32::from(f(x[lane], y[lane])) << lane)
    }
    let number = |x: T, y: T| x.partial_cmp(&y).is_some();
    match compare {
        Compare::Eq => bits(x, y, |x, y| x == y),
        Compare::Ne => bits(x, y, |x, y| x != y && number(x, y)),
        Compare::Lt => bits(x, y, |x, y| x < y),
        Compare::Le => bits(x, y, |x, y| x <= y),
        Compare::Gt => bits(x, y, |x, y| x > y),
        Compare::Ge => bits(x, y, |x, y| x >= y),
        Compare::EqU => bits(x, y, |x, y| x == y || !number(x, y)),
        Compare::NeU => bits(x, y, |x, y| x != y),
        Compare::LtU => bits(x, y, |x, y| x < y || !number(x, y)),
        Compare::LeU => bits(x, y, |x, y| x <= y || !number(x, y)),
        Compare::GtU => bits(x, y, |x, y| x > y || !number(x, y)),
        Compare::GeU => bits(x, y, |x, y| x >= y || !number(x, y)),
        Compare::Num => bits(x, y, number),
        Compare::Nan => bits(x, y, |x, y| !number(x, y)),
    }
}

fn join(r: &mut Registers, wide: bool, to: Row, low: Row, high: Row, mask: u32) {
    let (low, high) = (r.w32[low as usize], r.w32[high as usize]);
    for lane in lanes(mask) {
        if wide {
            r.w64[to as usize][lane] = u64::from(high[lane]) << 32 | u64::from(low[lane]);
        } else {
            r.w32[to as usize][lane] = high[lane] << 16 | (low[lane] & 0xffff);
        }
    }
}

fn split(r: &mut Registers, wide: bool, low: Option<Row>, high: Option<Row>, a: Row, mask: u32) {
    let (lows, highs): ([u32; 32], [u32; 32]) = if wide {
        let x = r.w64[a as usize];
        (x.map(|x| x as u32), x.map(|x| (x >> 32) as u32))
    } else {
        let x = r.w32[a as usize];
        (x.map(|x| x & 0xffff), x.map(|x| x >> 16))
    };
    for (row, values) in [(low, lows), (high, highs)] {
        let Some(row) = row else { continue };
        lanes(mask).for_each(|lane| r.w32[row as usize][lane] = values[lane]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_fields_extract_with_their_sign() {
        assert_eq!(bit_extract(0xabcd, 32, false, 4, 8), 0xbc);
        assert_eq!(bit_extract(0xffff_fff0_u32 as i32 as i64 as u64, 32, true, 4, 4) as u32, u32::MAX);
        assert_eq!(bit_extract(0x7, 32, true, 2, 1) as u32, u32::MAX);
        assert_eq!(bit_extract(0xff, 32, false, 0, 0), 0);
        assert_eq!(bit_extract(0x8000_0000, 32, false, 31, 5), 1);
    }

    #[test]
    fn bytes_permute_and_spread_their_sign() {
        assert_eq!(permute(0x3322_1100, 0x7766_5544, 0x5410), 0x5544_1100);
        assert_eq!(permute(0x0000_8000, 0, 0x9), 0xff);
    }

    #[test]
    fn tables_and_funnels() {
        assert_eq!(rare32(Int::Lop3(0x96), false, 5, 9, 3), 5 ^ 9 ^ 3);
        assert_eq!(rare32(Int::Lop3(0xea), false, 5, 9, 3), (5 & 9) | 3);
        assert_eq!(rare32(Int::ShfLeft { clamp: false }, false, 0x8000_0001, 1, 4), 0x18);
        assert_eq!(rare32(Int::ShfRight { clamp: true }, false, 0x8000_0001, 7, 40), 7);
    }
}
