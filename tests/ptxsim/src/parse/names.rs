//! Register names to rows: declarations with their scopes, immediates and special registers as rows.

use std::collections::HashMap;

use crate::program::{Files, PredSource, Row, Special, Type};

/// Which file a register lives in, and its width in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class {
    pub bits: u32,
}

impl Class {
    pub(super) const PRED: Class = Class { bits: 1 };

    pub(super) fn of(t: Type) -> Class {
        Class { bits: if t == Type::Pred { 1 } else { (t.bytes() as u32 * 8).max(16) } }
    }
}

#[derive(Debug, Default)]
struct Scope {
    /// Registers declared one by one.
    single: HashMap<String, Class>,
    /// `%r<54>`: prefix, how many, class.
    ranges: Vec<(String, u32, Class)>,
    rows: HashMap<String, (Row, Class)>,
}

/// The registers of one kernel while it is parsed.
#[derive(Debug, Default)]
pub(super) struct Names {
    scopes: Vec<Scope>,
    pub files: Files,
    immediates32: HashMap<u32, Row>,
    immediates64: HashMap<u64, Row>,
    specials: HashMap<String, Row>,
}

impl Names {
    pub(super) fn open(&mut self) {
        self.scopes.push(Scope::default());
    }

    pub(super) fn close(&mut self) {
        self.scopes.pop();
    }

    /// `.reg .b32 %r<54>` or `.reg .pred p, q`, without the `.reg`.
    pub(super) fn declare(&mut self, text: &str) -> Result<(), String> {
        let (type_name, names) = text.trim().split_once(' ').ok_or("a register declaration needs a type and names")?;
        let t = Type::named(type_name.trim_start_matches('.')).ok_or_else(|| format!("type {type_name}"))?;
        let class = Class::of(t);
        let scope = self.scopes.last_mut().ok_or("registers are declared inside a function only")?;
        for name in names.split(',').map(str::trim) {
            match name.split_once('<') {
                Some((prefix, count)) => {
                    let count = count.trim_end_matches('>').parse().map_err(|_| format!("count in {name}"))?;
                    scope.ranges.push((prefix.to_owned(), count, class));
                }
                None => {
                    scope.single.insert(name.to_owned(), class);
                }
            }
        }
        Ok(())
    }

    /// The row of a declared register; `None` when no scope declares the name.
    pub(super) fn register(&mut self, name: &str) -> Option<(Row, Class)> {
        let digits = name.len() - name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (prefix, number) = name.split_at(digits);
        for scope in self.scopes.iter_mut().rev() {
            if let Some(&found) = scope.rows.get(name) {
                return Some(found);
            }
            let class = scope.single.get(name).copied().or_else(|| {
                let number: u32 = number.parse().ok()?;
                let range = scope.ranges.iter().find(|(p, count, _)| p == prefix && number < *count)?;
                Some(range.2)
            });
            if let Some(class) = class {
                let row = new_row(&mut self.files, class);
                scope.rows.insert(name.to_owned(), (row, class));
                return Some((row, class));
            }
        }
        None
    }

    /// A register written by an instruction of the given class.
    pub(super) fn destination(&mut self, name: &str, class: Class) -> Result<Row, String> {
        let (row, found) = self.register(name).ok_or_else(|| format!("{name} is no declared register"))?;
        if found != class {
            return Err(format!("{name} has {} bits, the instruction {}", found.bits, class.bits));
        }
        Ok(row)
    }

    /// A source of the given class: a register, a special register or an immediate.
    pub(super) fn source(&mut self, text: &str, class: Class) -> Result<Row, String> {
        if let Some((row, found)) = self.register(text) {
            if found != class {
                return Err(format!("{text} has {} bits, the instruction {}", found.bits, class.bits));
            }
            return Ok(row);
        }
        if let Some(special) = Special::named(text) {
            if class.bits == 64 {
                return Err(format!("{text} has 32 bits"));
            }
            return Ok(self.special(text, special));
        }
        let value = immediate(text, class).ok_or_else(|| format!("operand {text}"))?;
        Ok(if class.bits == 64 { self.constant64(value) } else { self.constant32(value as u32, class) })
    }

    /// A predicate source, perhaps negated with `!`.
    pub(super) fn predicate(&mut self, text: &str) -> Result<PredSource, String> {
        let (negated, name) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
        let (row, class) = self.register(name).ok_or_else(|| format!("{name} is no declared register"))?;
        if class != Class::PRED {
            return Err(format!("{name} is no predicate"));
        }
        Ok(PredSource { row, negated })
    }

    pub(super) fn constant32(&mut self, value: u32, class: Class) -> Row {
        let value = if class.bits == 16 { value & 0xffff } else { value };
        let files = &mut self.files;
        *self.immediates32.entry(value).or_insert_with(|| {
            let row = new_row(files, Class { bits: 32 });
            files.constants32.push((row, value));
            row
        })
    }

    pub(super) fn constant64(&mut self, value: u64) -> Row {
        let files = &mut self.files;
        *self.immediates64.entry(value).or_insert_with(|| {
            let row = new_row(files, Class { bits: 64 });
            files.constants64.push((row, value));
            row
        })
    }

    fn special(&mut self, name: &str, special: Special) -> Row {
        if let Some(&row) = self.specials.get(name) {
            return row;
        }
        let row = new_row(&mut self.files, Class { bits: 32 });
        self.files.specials.push((row, special));
        self.specials.insert(name.to_owned(), row);
        row
    }
}

fn new_row(files: &mut Files, class: Class) -> Row {
    let count = match class.bits {
        1 => &mut files.predicates,
        64 => &mut files.rows64,
        _ => &mut files.rows32,
    };
    *count += 1;
    (*count - 1) as Row
}

/// The bits of an immediate: `12`, `-1`, `0x1f`, `0f3F800000`, `0d3FF0000000000000`, `1.5`, `WARP_SZ`.
pub(super) fn immediate(text: &str, class: Class) -> Option<u64> {
    let (negative, body) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    if body == "WARP_SZ" {
        return Some(32);
    }
    if let Some(hex) = body.strip_prefix("0f").or_else(|| body.strip_prefix("0F")) {
        let bits = u32::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 8 && class.bits == 32)?;
        return Some(u64::from(if negative { bits ^ (1 << 31) } else { bits }));
    }
    if let Some(hex) = body.strip_prefix("0d").or_else(|| body.strip_prefix("0D")) {
        let bits = u64::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 16)?;
        let value = if negative { bits ^ (1 << 63) } else { bits };
        return Some(if class.bits == 64 { value } else { u64::from((f64::from_bits(value) as f32).to_bits()) });
    }
    if body.contains('.') {
        let value: f64 = text.parse().ok()?;
        return Some(if class.bits == 64 { value.to_bits() } else { u64::from((value as f32).to_bits()) });
    }
    let digits = body.trim_end_matches('U');
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    Some(if negative { value.wrapping_neg() } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn immediates_have_their_bits() {
        let of = |text, bits| immediate(text, Class { bits });
        assert_eq!(of("-1", 64), Some(u64::MAX));
        assert_eq!(of("0x1FU", 32), Some(31));
        assert_eq!(of("0f3F800000", 32), Some(0x3f80_0000));
        assert_eq!(of("0d3FF0000000000000", 64), Some(1.0_f64.to_bits()));
        assert_eq!(of("0f3F8", 32), None);
        assert_eq!(of("%r1", 32), None);
    }

    #[test]
    fn an_inner_scope_hides_and_forgets() {
        let mut names = Names::default();
        names.open();
        names.declare(".b32 %r<3>").expect("a range");
        let outer = names.destination("%r2", Class { bits: 32 }).expect("declared");
        names.open();
        names.declare(".pred q").expect("one name");
        assert!(names.predicate("!q").expect("declared").negated);
        assert_eq!(names.source("%r2", Class { bits: 32 }), Ok(outer));
        names.close();
        assert!(names.predicate("q").is_err());
        assert!(names.source("%r3", Class { bits: 32 }).is_err(), "beyond the range");
        assert!(names.source("%r2", Class { bits: 64 }).is_err(), "another width");
    }
}
