//! An opcode with its modifiers to a `Code`: the table that says which instructions exist.

use std::collections::HashMap;

use super::names::Class;
use super::{Body, Outer, arithmetic, memory, warp};
use crate::program::{Address, Base, Code, PredSource, Row, Type};

/// An instruction under decoding: modifiers are taken one by one, and what is left over at the end is refused.
pub(super) struct Decoder<'p> {
    pub body: &'p mut Body,
    pub outer: &'p HashMap<String, Outer>,
    modifiers: Vec<&'p str>,
    pub operands: &'p [&'p str],
}

/// Decodes one instruction; also the float operations that one lane of it does.
pub(super) fn instruction<'p>(
    body: &'p mut Body,
    outer: &'p HashMap<String, Outer>,
    opcode: &'p str,
    operands: &'p [&'p str],
) -> Result<(Code, u64), String> {
    let mut parts = opcode.split('.');
    let root = parts.next().unwrap_or_default();
    let mut decoder = Decoder { body, outer, modifiers: parts.collect(), operands };
    let code = decoder.decode(root)?;
    if let Some(left) = decoder.modifiers.first() {
        return Err(format!("unsupported modifier .{left}"));
    }
    let float_operations = arithmetic::float_operations(&code);
    Ok((code, float_operations))
}

impl<'p> Decoder<'p> {
    fn decode(&mut self, root: &str) -> Result<Code, String> {
        match root {
            "mov" => arithmetic::mov(self),
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "neg" | "abs" | "and" | "or"
            | "xor" | "not" | "shl" | "shr" | "bfe" | "bfi" | "popc" | "clz" | "brev" | "bfind" | "prmt" | "lop3"
            | "shf" | "copysign" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "tanh" | "sin" | "cos" => {
                arithmetic::arithmetic(self, root)
            }
            "setp" => arithmetic::setp(self),
            "selp" => arithmetic::selp(self),
            "cvt" => arithmetic::cvt(self),
            "cvta" => arithmetic::cvta(self),
            "ld" => memory::load(self),
            "st" => memory::store(self),
            "atom" | "red" => memory::atomic(self, root == "atom"),
            "cp" => memory::copy_async(self),
            "ldmatrix" => warp::load_matrix(self),
            "mma" => warp::mma(self),
            "shfl" => warp::shuffle(self),
            "vote" => warp::vote(self),
            "redux" => warp::redux(self),
            "activemask" => {
                self.need("b32")?;
                self.count(1)?;
                Ok(Code::ActiveMask { to: self.to(0, Type::B32)? })
            }
            "bar" | "barrier" => warp::barrier(self),
            "membar" | "fence" => self.fence(),
            "bra" => self.branch(),
            "ret" | "exit" => {
                self.take("uni");
                self.count(0)?;
                Ok(Code::Exit)
            }
            _ => Err(format!("unsupported opcode {root}")),
        }
    }

    /// Takes a modifier if it is there.
    pub fn take(&mut self, name: &str) -> bool {
        let at = self.modifiers.iter().position(|m| *m == name);
        at.map(|at| self.modifiers.remove(at)).is_some()
    }

    pub fn need(&mut self, name: &str) -> Result<(), String> {
        if self.take(name) { Ok(()) } else { Err(format!("the modifier .{name} is missing")) }
    }

    /// Takes the first of the modifiers that stands in the table.
    pub fn one_of<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        table.iter().find(|(name, _)| self.take(name)).map(|&(_, value)| value)
    }

    pub fn take_all(&mut self, names: &[&str]) {
        for name in names {
            self.take(name);
        }
    }

    /// Takes the last modifier, which has to be a type.
    pub fn last_type(&mut self) -> Result<Type, String> {
        let name = self.modifiers.pop().ok_or("the type is missing")?;
        Type::named(name).ok_or_else(|| format!("unsupported type .{name}"))
    }

    pub fn count(&self, n: usize) -> Result<(), String> {
        let found = self.operands.len();
        if found == n { Ok(()) } else { Err(format!("{found} operands instead of {n}")) }
    }

    pub fn operand(&self, at: usize) -> Result<&'p str, String> {
        self.operands.get(at).copied().ok_or_else(|| format!("operand {} is missing", at + 1))
    }

    pub fn to(&mut self, at: usize, t: Type) -> Result<Row, String> {
        let text = self.operand(at)?;
        self.body.names.destination(text, Class::of(t))
    }

    pub fn from(&mut self, at: usize, t: Type) -> Result<Row, String> {
        let text = self.operand(at)?;
        self.body.names.source(text, Class::of(t))
    }

    pub fn predicate(&mut self, at: usize) -> Result<PredSource, String> {
        let text = self.operand(at)?;
        self.body.names.predicate(text)
    }

    /// The elements of `{a, b}`, or the one operand itself.
    pub fn vector(&self, at: usize) -> Result<Vec<&'p str>, String> {
        let text = self.operand(at)?;
        Ok(match text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(inside) => inside.split(',').map(str::trim).collect(),
            None => vec![text],
        })
    }

    /// `N` registers of a vector operand.
    pub fn rows<const N: usize>(&mut self, at: usize, t: Type, destination: bool) -> Result<[Row; N], String> {
        let names = self.vector(at)?;
        if names.len() != N {
            return Err(format!("operand {} has {} registers instead of {N}", at + 1, names.len()));
        }
        let mut rows = [0; N];
        for (row, name) in rows.iter_mut().zip(names) {
            let class = Class::of(t);
            *row = if destination {
                self.body.names.destination(name, class)?
            } else {
                self.body.names.source(name, class)?
            };
        }
        Ok(rows)
    }

    /// `[%rd1+8]`, `[name+4]` or `[name]`.
    pub fn address(&mut self, at: usize) -> Result<Address, String> {
        let text = self.operand(at)?;
        let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).ok_or("an address in [ ]")?.trim();
        let (base, offset) = match inside.split_once('+') {
            Some((base, offset)) => {
                let offset: i64 = offset.trim().parse().map_err(|_| format!("offset {offset}"))?;
                (base.trim(), offset as u64)
            }
            None => (inside, 0),
        };
        if let Some((row, class)) = self.body.names.register(base) {
            let base = match class.bits {
                64 => Base::Row64(row),
                32 => Base::Row32(row),
                _ => return Err(format!("{base} is no address")),
            };
            return Ok(Address { base, offset });
        }
        match self.symbol(base)? {
            Symbol::Fixed(address) => Ok(Address { base: Base::None, offset: address.wrapping_add(offset) }),
            Symbol::Dynamic => Ok(Address { base: Base::Row64(self.dynamic(true, offset)), offset: 0 }),
        }
    }

    /// The address of a variable or parameter within its space.
    pub fn symbol(&mut self, name: &str) -> Result<Symbol, String> {
        if let Some(&address) = self.body.variables.get(name).or_else(|| self.body.params.get(name)) {
            return Ok(Symbol::Fixed(address));
        }
        match self.outer.get(name) {
            Some(Outer::Const(address)) => Ok(Symbol::Fixed(*address)),
            Some(&Outer::DynamicShared { align }) => {
                self.body.dynamic_align = self.body.dynamic_align.max(align);
                Ok(Symbol::Dynamic)
            }
            Some(&Outer::Shared { bytes, align }) => {
                let address = self.body.shared_bytes.next_multiple_of(align);
                self.body.shared_bytes = address + bytes;
                self.body.variables.insert(name.to_owned(), address as u64);
                Ok(Symbol::Fixed(address as u64))
            }
            Some(Outer::Global) => Err(format!("module-level .global variables are not supported ({name})")),
            None => Err(format!("{name} is declared nowhere")),
        }
    }

    /// A row that will hold the dynamic shared memory's start plus an offset, known when the body has ended.
    pub fn dynamic(&mut self, wide: bool, offset: u64) -> Row {
        let files = &mut self.body.names.files;
        if wide {
            files.rows64 += 1;
            let row = (files.rows64 - 1) as Row;
            files.constants64.push((row, 0));
            self.body.dynamic.push((true, files.constants64.len() - 1, offset));
            row
        } else {
            files.rows32 += 1;
            let row = (files.rows32 - 1) as Row;
            files.constants32.push((row, 0));
            self.body.dynamic.push((false, files.constants32.len() - 1, offset));
            row
        }
    }

    fn branch(&mut self) -> Result<Code, String> {
        let uniform = self.take("uni");
        self.count(1)?;
        let label = self.operand(0)?.to_owned();
        self.body.jumps.push((self.body.program.instructions.len(), label));
        Ok(Code::Branch { target: 0, uniform })
    }

    fn fence(&mut self) -> Result<Code, String> {
        self.take_all(&["gl", "cta", "sys", "acq_rel", "sc", "gpu"]);
        self.count(0)?;
        Ok(Code::Fence)
    }
}

/// Where a named variable lies.
pub(super) enum Symbol {
    Fixed(u64),
    Dynamic,
}
