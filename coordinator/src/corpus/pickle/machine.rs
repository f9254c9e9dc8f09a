//! The stack machine: one opcode after the other, each of which grows the table by one value at most.
//!
//! ```text
//! bytes --opcode--> stack of places --put--> memo
//!                       '--> values, by place
//! ```
//! A mark on the stack is kept as the stack's height, and no opcode reaches below the last one but those that are
//! meant to. Lengths are checked against what is left before anything of that length is made.

use std::collections::HashMap;

use super::{PickleError, Place, Problem, VALUES_MAX, Value, ops};

/// Letters of a name in a message: enough to know it by.
const NAME_LETTERS: usize = 80;

type Step<T = ()> = Result<T, Problem>;

/// The machine, reading one pickle.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Place>,
    marks: Vec<usize>,
    memo: HashMap<u64, Place>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, values: vec![], stack: vec![], marks: vec![], memo: HashMap::new() }
    }

    /// All values, and the one the pickle is of.
    pub(super) fn run(mut self) -> Result<(Vec<Value>, Place), PickleError> {
        loop {
            let at = self.at;
            let Some(&opcode) = self.bytes.get(at) else { return Err(PickleError { at, problem: Problem::Unended }) };
            self.at += 1;
            let step = if opcode == ops::STOP { self.pop(opcode).map(Some) } else { self.step(opcode).map(|()| None) };
            match step {
                Ok(None) => {}
                Ok(Some(root)) => return Ok((self.values, root)),
                Err(problem) => return Err(PickleError { at, problem }),
            }
        }
    }

    fn step(&mut self, opcode: u8) -> Step {
        match opcode {
            ops::PROTO => match self.byte(opcode)? {
                0..=5 => Ok(()),
                other => Err(Problem::Protocol(other)),
            },
            ops::FRAME => {
                let length = self.length(opcode, 8)?;
                self.check_left(opcode, length)
            }
            ops::MARK => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            ops::POP if self.marks.last() == Some(&self.stack.len()) => self.above_mark(opcode).map(drop),
            ops::POP => self.pop(opcode).map(drop),
            ops::POP_MARK => self.above_mark(opcode).map(drop),
            ops::DUP => {
                let top = self.top(opcode)?;
                self.stack.push(top);
                Ok(())
            }
            ops::PUT | ops::BINPUT | ops::LONG_BINPUT | ops::MEMOIZE => self.put(opcode),
            ops::GET | ops::BINGET | ops::LONG_BINGET => self.get(opcode),
            _ => self.build(opcode),
        }
    }

    /// Opcodes that make or fill a container.
    fn build(&mut self, opcode: u8) -> Step {
        match opcode {
            ops::EMPTY_LIST => self.push(Value::List(vec![])),
            ops::EMPTY_TUPLE => self.push(Value::Tuple(vec![])),
            ops::EMPTY_DICT => self.push(Value::Dict(vec![])),
            ops::EMPTY_SET => self.push(Value::Set(vec![])),
            ops::LIST => self.above_mark(opcode).and_then(|items| self.push(Value::List(items))),
            ops::TUPLE => self.above_mark(opcode).and_then(|items| self.push(Value::Tuple(items))),
            ops::FROZENSET => self.above_mark(opcode).and_then(|items| self.push(Value::Set(items))),
            ops::DICT => {
                let pairs = in_pairs(opcode, &self.above_mark(opcode)?)?;
                self.push(Value::Dict(pairs))
            }
            ops::TUPLE1 | ops::TUPLE2 | ops::TUPLE3 => {
                let count = usize::from(opcode - ops::TUPLE1) + 1;
                let mut items = vec![];
                for _ in 0..count {
                    items.push(self.pop(opcode)?);
                }
                items.reverse();
                self.push(Value::Tuple(items))
            }
            ops::APPEND => {
                let item = self.pop(opcode)?;
                self.fill(opcode, "a list", &[item])
            }
            ops::APPENDS => self.above_mark(opcode).and_then(|items| self.fill(opcode, "a list", &items)),
            ops::ADDITEMS => self.above_mark(opcode).and_then(|items| self.fill(opcode, "a set", &items)),
            ops::SETITEM => {
                let (value, key) = (self.pop(opcode)?, self.pop(opcode)?);
                self.fill(opcode, "a dict", &[key, value])
            }
            ops::SETITEMS => self.above_mark(opcode).and_then(|items| self.fill(opcode, "a dict", &items)),
            _ => self.scalar(opcode),
        }
    }

    /// Opcodes that carry a value in themselves.
    fn scalar(&mut self, opcode: u8) -> Step {
        let value = match opcode {
            ops::NONE => Value::None,
            ops::NEWTRUE => Value::Bool(true),
            ops::NEWFALSE => Value::Bool(false),
            ops::BININT1 => Value::Int(self.byte(opcode)?.into()),
            ops::BININT2 => Value::Int(number(self.take(opcode, 2)?)),
            ops::BININT => Value::Int(signed(self.take(opcode, 4)?)),
            ops::BINFLOAT => {
                let mut float = [0; 8];
                float.copy_from_slice(self.take(opcode, 8)?);
                Value::Float(f64::from_be_bytes(float))
            }
            ops::LONG1 | ops::LONG4 => {
                let digits = self.counted(opcode, if opcode == ops::LONG1 { 1 } else { 4 })?;
                if digits.len() > 8 {
                    return Err(malformed(opcode, "a whole number of at most 64 bits"));
                }
                Value::Int(signed(digits))
            }
            ops::SHORT_BINUNICODE => self.unicode(opcode, 1)?,
            ops::BINUNICODE => self.unicode(opcode, 4)?,
            ops::BINUNICODE8 => self.unicode(opcode, 8)?,
            ops::SHORT_BINSTRING | ops::SHORT_BINBYTES => Value::Bytes(self.counted(opcode, 1)?.to_vec()),
            ops::BINSTRING | ops::BINBYTES => Value::Bytes(self.counted(opcode, 4)?.to_vec()),
            ops::BINBYTES8 | ops::BYTEARRAY8 => Value::Bytes(self.counted(opcode, 8)?.to_vec()),
            ops::INT | ops::LONG | ops::FLOAT | ops::STRING | ops::UNICODE => written(opcode, self.line(opcode)?)?,
            _ => return self.code(opcode),
        };
        self.push(value)
    }

    /// Opcodes that name or call something: refused, but for sets.
    fn code(&mut self, opcode: u8) -> Step {
        let calls = match opcode {
            ops::GLOBAL | ops::INST => {
                let (module, name) = (self.line(opcode)?, self.line(opcode)?);
                if opcode == ops::GLOBAL && is_set_type(module, name) {
                    return self.push(Value::SetType);
                }
                format!("{}.{}", shown(module), shown(name))
            }
            ops::STACK_GLOBAL => {
                let (name, module) = (self.pop(opcode)?, self.pop(opcode)?);
                let (module, name) = (self.name_at(module), self.name_at(name));
                if is_set_type(module, name) {
                    return self.push(Value::SetType);
                }
                format!("{}.{}", shown(module), shown(name))
            }
            ops::REDUCE => {
                let (arguments, callee) = (self.pop(opcode)?, self.pop(opcode)?);
                if let Some(items) = self.set_items(callee, arguments) {
                    return self.push(Value::Set(items));
                }
                format!("{} with {}", self.kind(callee), self.kind(arguments))
            }
            ops::PERSID => format!("whatever the reader keeps under '{}'", shown(self.line(opcode)?)),
            ops::BINPERSID => "whatever the reader keeps under a value of the pickle".into(),
            ops::EXT1 | ops::EXT2 | ops::EXT4 => {
                let width = 1 << (opcode - ops::EXT1);
                format!("number {} of Python's registry of extensions", number(self.take(opcode, width)?))
            }
            ops::BUILD => {
                let (_state, object) = (self.pop(opcode)?, self.top(opcode)?);
                format!("__setstate__ of {}", self.kind(object))
            }
            ops::OBJ | ops::NEWOBJ | ops::NEWOBJ_EX => "the constructor of a class".into(),
            ops::NEXT_BUFFER | ops::READONLY_BUFFER => "for a buffer outside of the pickle".into(),
            other => return Err(Problem::NotAnOpcode(other)),
        };
        Err(Problem::Code { opcode: ops::name(opcode), calls })
    }

    /// The items of `set([...])`, the one call that is allowed.
    fn set_items(&self, callee: Place, arguments: Place) -> Option<Vec<Place>> {
        let Value::Tuple(arguments) = self.at(arguments) else { return None };
        match (self.at(callee), arguments.as_slice()) {
            (Value::SetType, [list]) => match self.at(*list) {
                Value::List(items) => Some(items.clone()),
                _ => None,
            },
            _ => None,
        }
    }

    fn put(&mut self, opcode: u8) -> Step {
        let memo = match opcode {
            ops::MEMOIZE => self.memo.len() as u64,
            _ => self.memo_number(opcode)?,
        };
        let top = self.top(opcode)?;
        if self.memo.len() >= VALUES_MAX {
            return Err(Problem::TooMany(VALUES_MAX));
        }
        self.memo.insert(memo, top);
        Ok(())
    }

    fn get(&mut self, opcode: u8) -> Step {
        let memo = self.memo_number(opcode)?;
        let place = *self.memo.get(&memo).ok_or(Problem::NoMemo { opcode: ops::name(opcode), memo })?;
        self.stack.push(place);
        Ok(())
    }

    fn memo_number(&mut self, opcode: u8) -> Step<u64> {
        match opcode {
            ops::BINPUT | ops::BINGET => self.length(opcode, 1),
            ops::LONG_BINPUT | ops::LONG_BINGET => self.length(opcode, 4),
            _ => {
                let line = std::str::from_utf8(self.line(opcode)?).ok();
                line.and_then(|l| l.trim().parse().ok()).ok_or(malformed(opcode, "a whole number of 0 or more"))
            }
        }
    }

    /// Adds items to the container on top of the stack.
    fn fill(&mut self, opcode: u8, expected: &'static str, items: &[Place]) -> Step {
        let place = self.top(opcode)?;
        let value = self.values.get_mut(place as usize).ok_or(Problem::EmptyStack(ops::name(opcode)))?;
        match value {
            Value::List(held) if expected == "a list" => held.extend(items),
            Value::Set(held) if expected == "a set" => held.extend(items),
            Value::Dict(held) if expected == "a dict" => held.extend(in_pairs(opcode, items)?),
            other => return Err(Problem::Kind { opcode: ops::name(opcode), found: other.kind(), expected }),
        }
        Ok(())
    }

    fn push(&mut self, value: Value) -> Step {
        let place = Place::try_from(self.values.len()).ok().filter(|&place| (place as usize) < VALUES_MAX);
        self.stack.push(place.ok_or(Problem::TooMany(VALUES_MAX))?);
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self, opcode: u8) -> Step<Place> {
        let top = self.top(opcode)?;
        self.stack.pop();
        Ok(top)
    }

    /// The top of the stack, above the last mark.
    fn top(&self, opcode: u8) -> Step<Place> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or(Problem::EmptyStack(ops::name(opcode)))
    }

    /// Everything above the last mark; the mark goes too.
    fn above_mark(&mut self, opcode: u8) -> Step<Vec<Place>> {
        let floor = self.marks.pop().ok_or(Problem::EmptyStack(ops::name(opcode)))?;
        Ok(self.stack.split_off(floor))
    }

    fn at(&self, place: Place) -> &Value {
        &self.values[place as usize]
    }

    fn kind(&self, place: Place) -> &'static str {
        self.at(place).kind()
    }

    /// A text as bytes; nothing for any other value.
    fn name_at(&self, place: Place) -> &[u8] {
        match self.at(place) {
            Value::Text(text) => text.as_bytes(),
            Value::Bytes(bytes) => bytes,
            _ => b"",
        }
    }

    fn check_left(&self, opcode: u8, announced: u64) -> Step {
        let left = (self.bytes.len() - self.at) as u64;
        if announced > left {
            return Err(Problem::Short { opcode: ops::name(opcode), announced, left });
        }
        Ok(())
    }

    fn take(&mut self, opcode: u8, length: u64) -> Step<&'a [u8]> {
        self.check_left(opcode, length)?;
        let end = self.at + usize::try_from(length).expect("no longer than what is left");
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self, opcode: u8) -> Step<u8> {
        Ok(self.take(opcode, 1)?[0])
    }

    /// A length or number without sign, of so many bytes.
    fn length(&mut self, opcode: u8, width: u64) -> Step<u64> {
        let mut bytes = [0; 8];
        let taken = self.take(opcode, width)?;
        bytes[..taken.len()].copy_from_slice(taken);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Bytes behind their length.
    fn counted(&mut self, opcode: u8, width: u64) -> Step<&'a [u8]> {
        let length = self.length(opcode, width)?;
        self.take(opcode, length)
    }

    fn unicode(&mut self, opcode: u8, width: u64) -> Step<Value> {
        let text = std::str::from_utf8(self.counted(opcode, width)?).map_err(|_| malformed(opcode, "UTF-8"))?;
        Ok(Value::Text(text.to_owned()))
    }

    /// What is left of the line, without its end.
    fn line(&mut self, opcode: u8) -> Step<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&b| b == b'\n').ok_or(malformed(opcode, "a line that ends"))?;
        self.at += length + 1;
        Ok(&rest[..length])
    }
}

fn malformed(opcode: u8, expected: &'static str) -> Problem {
    Problem::Malformed { opcode: ops::name(opcode), expected }
}

fn is_set_type(module: &[u8], name: &[u8]) -> bool {
    matches!(module, b"builtins" | b"__builtin__") && matches!(name, b"set" | b"frozenset")
}

/// A name for a message, without what would harm a terminal.
fn shown(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(&name[..name.len().min(4 * NAME_LETTERS)]);
    name.chars().take(NAME_LETTERS).flat_map(char::escape_debug).collect()
}

fn in_pairs(opcode: u8, items: &[Place]) -> Step<Vec<(Place, Place)>> {
    let pairs = items.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(malformed(opcode, "keys and values in pairs"));
    }
    Ok(pairs.map(|pair| (pair[0], pair[1])).collect())
}

/// Little-endian digits without sign, at most 4.
fn number(digits: &[u8]) -> i64 {
    digits.iter().rev().fold(0, |number, &digit| number << 8 | i64::from(digit))
}

/// Little-endian digits in two's complement, at most 8.
fn signed(digits: &[u8]) -> i64 {
    let negative = digits.last().is_some_and(|&digit| digit >= 0x80);
    let mut bytes = [if negative { 0xff } else { 0 }; 8];
    bytes[..digits.len()].copy_from_slice(digits);
    i64::from_le_bytes(bytes)
}

/// A value that is written out in letters, as protocol 0 does.
fn written(opcode: u8, line: &[u8]) -> Step<Value> {
    let text = || std::str::from_utf8(line).map(str::trim).map_err(|_| malformed(opcode, "ASCII"));
    match opcode {
        ops::INT if line == b"01" => Ok(Value::Bool(true)),
        ops::INT if line == b"00" => Ok(Value::Bool(false)),
        ops::FLOAT => text()?.parse().map(Value::Float).map_err(|_| malformed(opcode, "a number")),
        ops::STRING => unquoted(line).map(Value::Bytes).ok_or(malformed(opcode, "a quoted string")),
        ops::UNICODE => unescaped(line).map(Value::Text).ok_or(malformed(opcode, "raw-unicode-escape text")),
        _ => {
            let digits = text()?;
            let digits = digits.strip_suffix('L').unwrap_or(digits);
            digits.parse().map(Value::Int).map_err(|_| malformed(opcode, "a whole number of at most 64 bits"))
        }
    }
}

/// The bytes of a string as Python 2's `repr` wrote it.
fn unquoted(line: &[u8]) -> Option<Vec<u8>> {
    let (&quote, rest) = line.trim_ascii_end().split_first()?;
    let (&end, inner) = rest.split_last()?;
    if quote != end || !matches!(quote, b'\'' | b'"') {
        return None;
    }
    let (mut bytes, mut rest) = (Vec::new(), inner);
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let (&escape, tail) = rest.split_first()?;
        rest = tail;
        bytes.push(match escape {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'a' => 7,
            b'b' => 8,
            b'f' => 12,
            b'v' => 11,
            b'0'..=b'7' => {
                let more = rest.iter().take(2).take_while(|b| matches!(b, b'0'..=b'7')).count();
                let octal = rest[..more].iter().fold(u16::from(escape - b'0'), |n, b| n * 8 + u16::from(b - b'0'));
                rest = &rest[more..];
                u8::try_from(octal).ok()?
            }
            b'x' => {
                let digits = rest.get(..2)?;
                rest = &rest[2..];
                u8::try_from(hexadecimal(digits)?).ok()?
            }
            other => other,
        });
    }
    Some(bytes)
}

/// The text of a line in raw-unicode-escape: Latin-1, and `\uXXXX` or `\UXXXXXXXX` for the rest.
fn unescaped(line: &[u8]) -> Option<String> {
    let (mut units, mut rest): (Vec<u16>, _) = (Vec::new(), line);
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = match (byte, tail.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                units.push(byte.into());
                rest = tail;
                continue;
            }
        };
        let code = hexadecimal(tail.get(1..=digits)?)?;
        match (u16::try_from(code), char::from_u32(code)) {
            (Ok(unit), _) => units.push(unit), // perhaps half of a pair
            (_, Some(character)) => units.extend(character.encode_utf16(&mut [0; 2]).iter()),
            (Err(_), None) => return None,
        }
        rest = &tail[digits + 1..];
    }
    String::from_utf16(&units).ok()
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0u32, |n, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        n.checked_mul(16)?.checked_add(digit)
    })
}
