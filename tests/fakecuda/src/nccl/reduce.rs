//! Element types and reductions. Contributions are combined in the order of their ranks, each step rounded to the
//! element's type, so that the result does not depend on who came first. The mean divides the sum once, at the end.

use half::{bf16, f16};

/// `ncclDataType_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are NCCL's")]
pub enum Type {
    Int8,
    Uint8,
    Int32,
    Uint32,
    Int64,
    Uint64,
    Float16,
    Float32,
    Float64,
    Bfloat16,
}

/// `ncclRedOp_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are NCCL's")]
pub enum Op {
    Sum,
    Product,
    Max,
    Min,
    Mean,
}

const TYPES: [Type; 10] = [
    Type::Int8,
    Type::Uint8,
    Type::Int32,
    Type::Uint32,
    Type::Int64,
    Type::Uint64,
    Type::Float16,
    Type::Float32,
    Type::Float64,
    Type::Bfloat16,
];

const OPS: [Op; 5] = [Op::Sum, Op::Product, Op::Max, Op::Min, Op::Mean];

impl Type {
    /// The type with NCCL's number; float8 is not modelled.
    pub fn from_number(number: i32) -> Option<Type> {
        TYPES.get(usize::try_from(number).ok()?).copied()
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Type::Int8 | Type::Uint8 => 1,
            Type::Float16 | Type::Bfloat16 => 2,
            Type::Int32 | Type::Uint32 | Type::Float32 => 4,
            Type::Int64 | Type::Uint64 | Type::Float64 => 8,
        }
    }
}

impl Op {
    /// The operation with NCCL's number.
    pub fn from_number(number: i32) -> Option<Op> {
        OPS.get(usize::try_from(number).ok()?).copied()
    }
}

/// Combines equally long contributions, one a rank, in the order given.
pub fn reduce(kind: Type, op: Op, contributions: &[Vec<u8>]) -> Vec<u8> {
    let Some((first, others)) = contributions.split_first() else { return Vec::new() };
    let mut total = first.clone();
    others.iter().for_each(|other| combine(kind, op, &mut total, other));
    if op == Op::Mean {
        divide(kind, &mut total, contributions.len());
    }
    total
}

macro_rules! elements {
    ($type:ty, $total:ident, $other:ident, |$x:ident, $y:ident| $result:expr) => {
        for (total, other) in $total.as_chunks_mut().0.iter_mut().zip($other.as_chunks().0) {
            let ($x, $y) = (<$type>::from_le_bytes(*total), <$type>::from_le_bytes(*other));
            *total = <$type>::to_le_bytes($result);
        }
    };
}

macro_rules! integers {
    ($type:ty, $op:ident, $total:ident, $other:ident) => {
        elements!($type, $total, $other, |x, y| match $op {
            Op::Sum | Op::Mean => x.wrapping_add(y),
            Op::Product => x.wrapping_mul(y),
            Op::Max => x.max(y),
            Op::Min => x.min(y),
        })
    };
}

macro_rules! floats {
    ($type:ty, $op:ident, $total:ident, $other:ident) => {
        elements!($type, $total, $other, |x, y| match $op {
            Op::Sum | Op::Mean => x + y,
            Op::Product => x * y,
            Op::Max => x.max(y),
            Op::Min => x.min(y),
        })
    };
}

fn combine(kind: Type, op: Op, total: &mut [u8], other: &[u8]) {
    match kind {
        Type::Int8 => integers!(i8, op, total, other),
        Type::Uint8 => integers!(u8, op, total, other),
        Type::Int32 => integers!(i32, op, total, other),
        Type::Uint32 => integers!(u32, op, total, other),
        Type::Int64 => integers!(i64, op, total, other),
        Type::Uint64 => integers!(u64, op, total, other),
        Type::Float16 => floats!(f16, op, total, other),
        Type::Float32 => floats!(f32, op, total, other),
        Type::Float64 => floats!(f64, op, total, other),
        Type::Bfloat16 => floats!(bf16, op, total, other),
    }
}

fn divide(kind: Type, total: &mut [u8], by: usize) {
    macro_rules! each {
        ($type:ty, $by:expr) => {
            for bytes in total.as_chunks_mut().0 {
                *bytes = (<$type>::from_le_bytes(*bytes) / $by).to_le_bytes();
            }
        };
    }
    match kind {
        Type::Int8 => each!(i8, by as i8),
        Type::Uint8 => each!(u8, by as u8),
        Type::Int32 => each!(i32, by as i32),
        Type::Uint32 => each!(u32, by as u32),
        Type::Int64 => each!(i64, by as i64),
        Type::Uint64 => each!(u64, by as u64),
        Type::Float16 => each!(f16, f16::from_f32(by as f32)),
        Type::Float32 => each!(f32, by as f32),
        Type::Float64 => each!(f64, by as f64),
        Type::Bfloat16 => each!(bf16, bf16::from_f32(by as f32)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn every_operation_combines_in_the_order_of_ranks() {
        let ranks = [floats(&[1e8, 2.0]), floats(&[1.0, -3.0]), floats(&[-1e8, 4.0])];
        let expected =
            [(Op::Sum, [0.0, 3.0]), (Op::Product, [-1e16, -24.0]), (Op::Max, [1e8, 4.0]), (Op::Min, [-1e8, -3.0])];
        for (op, values) in expected {
            assert_eq!(reduce(Type::Float32, op, &ranks), floats(&values), "{op:?}");
        }
        // Had the ranks been added in another order, the 1 would have survived.
        let turned = [ranks[0].clone(), ranks[2].clone(), ranks[1].clone()];
        assert_eq!(reduce(Type::Float32, Op::Sum, &turned), floats(&[1.0, 3.0]));
        assert_eq!(reduce(Type::Float32, Op::Mean, &ranks), floats(&[0.0, 1.0]));
    }

    #[test]
    fn every_type_adds_its_own_numbers() {
        macro_rules! check {
            ($($kind:ident $type:ty, $number:expr;)*) => { $({
                let number: fn(u8) -> $type = $number;
                let bytes = |x: u8| number(x).to_le_bytes().repeat(2);
                let sum = reduce(Type::$kind, Op::Sum, &[bytes(3), bytes(4)]);
                assert_eq!(sum, bytes(7), "{:?}", Type::$kind);
                assert_eq!(reduce(Type::$kind, Op::Mean, &[bytes(3), bytes(5)]), bytes(4));
                assert_eq!(Type::$kind.bytes() * 2, sum.len());
            })* };
        }
        check! {
            Int8 i8, |x| x as i8; Uint8 u8, |x| x; Int32 i32, i32::from; Uint32 u32, u32::from; Int64 i64, i64::from;
            Uint64 u64, u64::from; Float16 f16, |x| f16::from_f32(x.into()); Float32 f32, f32::from;
            Float64 f64, f64::from; Bfloat16 bf16, |x| bf16::from_f32(x.into());
        }
    }

    #[test]
    fn numbers_are_those_of_the_header() {
        assert_eq!([0, 7, 9].map(Type::from_number), [Some(Type::Int8), Some(Type::Float32), Some(Type::Bfloat16)]);
        assert_eq!((Type::from_number(10), Op::from_number(4), Op::from_number(5)), (None, Some(Op::Mean), None));
    }
}
