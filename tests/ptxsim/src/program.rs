//! Decoded kernels: what the parser makes and the executor runs. No names remain but those that faults print.
//!
//! Registers are rows of 32 lanes in one of three files: 32 bits (also holds 16-bit registers, zero-extended), 64 bits,
//! and predicates (one bit a lane). Immediates and special registers are rows too, filled in before a kernel runs, so
//! that an operand is always a row number.

pub(crate) use crate::types::{Special, Type};

/// A row of a register file.
pub(crate) type Row = u32;

/// Runs an instruction only in the lanes whose predicate is set (or clear, when negated).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guard {
    pub row: Row,
    pub negated: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Instruction {
    pub code: Code,
    pub guard: Option<Guard>,
}

/// Where an instruction stands in the text, and what it counts as.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub line: u32,
    pub text: String,
    pub opcode: String,
    /// Float operations of one lane.
    pub float_operations: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Int {
    Move,
    Add,
    Sub,
    MulLo,
    MulHi,
    MadLo,
    MadHi,
    Div,
    Rem,
    Min,
    Max,
    Neg,
    Abs,
    And,
    Or,
    Xor,
    Not,
    Shl,
    Shr,
    Bfe,
    Popc,
    Clz,
    Brev,
    Bfind { shift_amount: bool },
    Prmt,
    Lop3(u8),
    ShfLeft { clamp: bool },
    ShfRight { clamp: bool },
}

/// How a 16-bit operation reads its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    Full,
    /// 16 bits in, 16 bits out.
    Half,
    /// 16 bits in, 32 bits out; the third operand has 32 bits.
    HalfToFull,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Min,
    Max,
    Neg,
    Abs,
    CopySign,
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Tanh,
    Sin,
    Cos,
}

/// Rounding to the nearest even, towards zero, minus or plus infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    EqU,
    NeU,
    LtU,
    LeU,
    GtU,
    GeU,
    Num,
    Nan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Param,
    Const,
    Global,
    Shared,
    Local,
    Generic,
}

/// A predicate operand, read as it is or negated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PredSource {
    pub row: Row,
    pub negated: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Base {
    None,
    Row32(Row),
    Row64(Row),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub base: Base,
    pub offset: u64,
}

/// Up to four registers of one file, and how a loaded value is extended to their width.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elements {
    pub rows: [Row; 4],
    pub count: u8,
    /// Bytes of one element in memory.
    pub bytes: u8,
    /// The registers are of the 64-bit file.
    pub wide: bool,
    /// A load's sign extension: bits of the register, 0 for zero extension.
    pub sign_to: u8,
}

impl Elements {
    pub(crate) fn total_bytes(&self) -> usize {
        usize::from(self.count) * usize::from(self.bytes)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    Ballot,
    Any,
    All,
    Uniform,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
}

/// What a barrier gives back besides waiting.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reduction {
    None,
    Popc { to: Row, of: PredSource },
    Logic { op: Logic, to: Row, of: PredSource },
}

#[derive(Debug, Clone)]
pub(crate) enum Code {
    Int32 {
        op: Int,
        signed: bool,
        width: Width,
        to: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// Shift amounts and bit positions are rows of the 32-bit file.
    Int64 {
        op: Int,
        signed: bool,
        to: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// popc, clz and bfind of a 64-bit value give a 32-bit one.
    Bits64 {
        op: Int,
        signed: bool,
        to: Row,
        a: Row,
    },
    /// 32 x 32 -> 64 bits, and a 64-bit addend.
    Wide {
        signed: bool,
        to: Row,
        a: Row,
        b: Row,
        add: Option<Row>,
    },
    Float32 {
        op: Float,
        round: Round,
        flush: bool,
        saturate: bool,
        to: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    Float64 {
        op: Float,
        to: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    Convert {
        from: Type,
        to_type: Type,
        integral: Option<Round>,
        saturate: bool,
        flush: bool,
        to: Row,
        a: Row,
    },
    /// bfi: `length` bits of `a` into `b` at bit `from`.
    BitInsert {
        wide: bool,
        to: Row,
        a: Row,
        b: Row,
        from: Row,
        length: Row,
    },
    /// Two float32 to one packed pair; `high` is the first operand in the text.
    Pack16 {
        to_type: Type,
        to: Row,
        high: Row,
        low: Row,
    },
    Compare {
        of: Type,
        compare: Compare,
        flush: bool,
        to: Row,
        negation: Option<Row>,
        a: Row,
        b: Row,
        with: Option<(Logic, PredSource)>,
    },
    Logic {
        op: Logic,
        to: Row,
        a: PredSource,
        b: PredSource,
    },
    SetPredicate {
        to: Row,
        value: bool,
    },
    MovePred {
        to: Row,
        a: PredSource,
    },
    Select32 {
        to: Row,
        a: Row,
        b: Row,
        by: PredSource,
    },
    Select64 {
        to: Row,
        a: Row,
        b: Row,
        by: PredSource,
    },
    /// `mov.b64 %rd, {%r1, %r2}` and `mov.b32 %r, {%rs1, %rs2}`.
    Join {
        wide: bool,
        to: Row,
        low: Row,
        high: Row,
    },
    Split {
        wide: bool,
        low: Option<Row>,
        high: Option<Row>,
        a: Row,
    },
    Load {
        space: Space,
        read_only: bool,
        to: Elements,
        from: Address,
    },
    Store {
        space: Space,
        from: Elements,
        to: Address,
    },
    Atomic {
        space: Space,
        op: Atomic,
        of: Type,
        to: Option<Row>,
        address: Address,
        a: Row,
        b: Row,
    },
    CopyAsync {
        to: Address,
        from: Address,
        bytes: u8,
        source_bytes: Option<Row>,
    },
    CopyCommit,
    /// Waits until at most `pending` of the lane's groups are under way; `None`: all copies, committed or not.
    CopyWait {
        pending: Option<u32>,
    },
    LoadMatrix {
        transposed: bool,
        count: u8,
        to: [Row; 4],
        from: Address,
    },
    Mma {
        to: [Row; 4],
        a: [Row; 4],
        b: [Row; 2],
        c: [Row; 4],
    },
    Shuffle {
        mode: Shuffle,
        to: Row,
        valid: Option<Row>,
        a: Row,
        by: Row,
        clamp: Row,
        members: Row,
    },
    Vote {
        mode: Vote,
        to: Row,
        of: PredSource,
        members: Row,
    },
    Reduce {
        op: Atomic,
        signed: bool,
        to: Row,
        a: Row,
        members: Row,
    },
    ActiveMask {
        to: Row,
    },
    SyncWarp {
        members: Row,
    },
    Fence,
    Barrier {
        reduction: Reduction,
    },
    Branch {
        target: u32,
        uniform: bool,
    },
    Exit,
}

/// Sizes of the register files and what stands in them before the first instruction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    pub rows32: usize,
    pub rows64: usize,
    pub predicates: usize,
    pub constants32: Vec<(Row, u32)>,
    pub constants64: Vec<(Row, u64)>,
    pub specials: Vec<(Row, Special)>,
}

/// The instructions of one kernel with all that running them needs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Program {
    pub instructions: Vec<Instruction>,
    pub sites: Vec<Site>,
    pub files: Files,
    /// Bytes of `.local` memory of one thread.
    pub local_bytes: usize,
    /// The module's `.const` memory.
    pub constants: Vec<u8>,
    /// The narrowest shared and the narrowest global access in bytes: the grain at which races are looked for. All
    /// accesses are aligned to their width, so each covers whole grains.
    pub shared_grain: usize,
    pub global_grain: usize,
}

/// Shared memory's place in the generic address space; allocations lie far below.
pub(crate) const SHARED_WINDOW: u64 = 0x4000_0000_0000_0000;
/// Local memory's place in the generic address space.
pub(crate) const LOCAL_WINDOW: u64 = 0x6000_0000_0000_0000;
/// Bytes of either window.
pub(crate) const WINDOW_BYTES: u64 = 1 << 32;
