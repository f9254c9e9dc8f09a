//! Why a pickle was not read: where, and at which opcode.

/// Why a pickle was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {problem}")]
pub struct PickleError {
    /// Byte offset of the opcode, from 0.
    pub at: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a pickle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// An opcode that names or calls something.
    #[error(
        "opcode {opcode} would call {calls}: a pickle with code in it; expected plain data: dict, list, tuple, set, text and numbers"
    )]
    Code {
        /// Its name.
        opcode: &'static str,
        /// What it would have called.
        calls: String,
    },
    /// A byte that is no opcode.
    #[error("0x{0:02x} is not an opcode of a pickle")]
    NotAnOpcode(u8),
    /// More is announced than is there.
    #[error("opcode {opcode} announces {announced} bytes, but {left} are left")]
    Short {
        /// Its name.
        opcode: &'static str,
        /// What it wants.
        announced: u64,
        /// What is there.
        left: u64,
    },
    /// The end before the end.
    #[error("ends without STOP: expected a whole pickle")]
    Unended,
    /// The stack is emptier than the opcode needs.
    #[error("opcode {0} finds too little on the stack")]
    EmptyStack(&'static str),
    /// An opcode's operand is of a kind it cannot work on.
    #[error("opcode {opcode} finds {found}: expected {expected}")]
    Kind {
        /// Its name.
        opcode: &'static str,
        /// What lies on the stack.
        found: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
    /// A text that is none, or a number that is none.
    #[error("opcode {opcode}: not {expected}")]
    Malformed {
        /// Its name.
        opcode: &'static str,
        /// What it should have been.
        expected: &'static str,
    },
    /// A memo that was never written.
    #[error("opcode {opcode} asks for memo {memo}, which was never put")]
    NoMemo {
        /// Its name.
        opcode: &'static str,
        /// The number.
        memo: u64,
    },
    /// A protocol of the future.
    #[error("protocol {0}: expected 0 to 5")]
    Protocol(u8),
    /// More values than a corpus has.
    #[error("more than {0} values: expected fewer in a corpus")]
    TooMany(usize),
}
