//! Kernels broken on purpose: each break must be seen, by one of the interpreter's checks or by the comparison.
//!
//! A break is one line of the shipped PTX changed (or left out), so no compiler is needed, and the line must be found:
//! after a regeneration that moves it, the table says what it was looking for.

use insula_kernels::cuda::ptx::MODULES;

use crate::attention::{case, check};
use crate::device::{Outcome, Programs};
use crate::forest::{Sights, forest};
use crate::{elementwise, logits, norm, rows};

/// What happens to the line.
enum Edit {
    /// It is left out.
    Without,
    /// A part of it reads otherwise.
    Reads(&'static str, &'static str),
    /// As [`Edit::Reads`], in every such line.
    Everywhere(&'static str, &'static str),
    /// Two of its registers, counted from 0, change places.
    Swapped(usize, usize),
}
use Edit::{Everywhere, Reads, Swapped, Without};

struct Planted {
    what: &'static str,
    kernel: &'static str,
    /// What the line contains, and which such line of the kernel it is, counted from 0.
    line: (&'static str, usize),
    edit: Edit,
    /// What runs the kernel.
    case: fn(&Programs) -> Outcome,
    /// What the finding says: a check's words, or an output's name.
    seen_as: &'static str,
}

/// Rows and keys that fill no tile, a head narrower than its kernel's.
fn ragged(programs: &Programs) -> Outcome {
    check(programs, &case(forest(150, 12, 2, 1), 2, 1, 40))
}

/// Siblings that must not see each other, queries that see little more than themselves, and tiles out of reach.
fn siblings(programs: &Programs) -> Outcome {
    check(programs, &case(forest(200, 8, 6, 4), 2, 1, 64))
}

/// A chain of several tiles: every query sees itself and all before it.
fn chain(programs: &Programs) -> Outcome {
    check(programs, &case(forest(300, 300, 1, 5), 1, 1, 64))
}

/// Several heads on one kv head.
fn grouped(programs: &Programs) -> Outcome {
    check(programs, &case(Sights::all(70, 130), 3, 1, 32))
}

#[rustfmt::skip]
const PLANTED: &[Planted] = &[
    Planted { what: "a barrier of a block's sum is gone", kernel: "rms_norm", line: ("bar.sync", 0), edit: Without,
        case: norm::rms_norm, seen_as: "before it is written" },
    Planted { what: "a sum's shuffle takes half the distance twice", kernel: "rms_norm_back", line: (", 16;", 0),
        edit: Reads("16;", "8;"), case: norm::rms_norm, seen_as: "rms_norm_back" },
    Planted { what: "a root forgotten", kernel: "rms_norm", line: ("rsqrt.approx", 0),
        edit: Reads("rsqrt.approx", "rcp.approx"), case: norm::rms_norm, seen_as: "rms_norm" },
    Planted { what: "a vector access at any address", kernel: "rms_norm_back", line: (", 15;", 0),
        edit: Reads("15", "0"), case: norm::rms_norm, seen_as: "misaligned" },
    Planted { what: "a gain's gradient that takes a row twice", kernel: "gain_gradient", line: (", 96;", 0),
        edit: Reads("96;", "64;"), case: norm::many_rows, seen_as: "gain_gradient" },
    Planted { what: "a rotation that turns one half the wrong way", kernel: "rotary", line: ("sub.f32", 0),
        edit: Reads("sub", "add"), case: norm::rotary, seen_as: "rotary" },
    Planted { what: "one element past the end", kernel: "to_bf16", line: ("setp.lt.u64", 1), edit: Reads("lt", "le"),
        case: elementwise::casts, seen_as: "no live allocation" },
    Planted { what: "neighbours stored the wrong way round", kernel: "swiglu", line: ("st.global.v4", 0),
        edit: Swapped(1, 2), case: elementwise::swiglu, seen_as: "swiglu" },
    Planted { what: "decay that grows", kernel: "adamw", line: ("sub.f32", 0), edit: Reads("sub", "add"),
        case: elementwise::adamw, seen_as: "params" },
    Planted { what: "sums of warps read before they are written", kernel: "sum_squares", line: ("bar.sync", 0),
        edit: Without, case: elementwise::sum_squares, seen_as: "before it is written" },
    Planted { what: "rows of half as many blocks", kernel: "dequantise_q8", line: ("shr.u32", 0),
        edit: Reads("5;", "6;"), case: rows::quantised_rows, seen_as: "dequantise" },
    Planted { what: "the low nibble for the high one", kernel: "embed_q4", line: ("shr.u32", 9), edit: Reads("12;", "8;"),
        case: rows::quantised_rows, seen_as: "embed" },
    Planted { what: "mentions noted before the others read the last ones", kernel: "scatter_add_rows",
        line: ("bar.sync", 1), edit: Without, case: rows::scatter, seen_as: "race" },
    Planted { what: "a repeated row left to its later mentions", kernel: "scatter_add_rows", line: ("setp.eq.s32", 1),
        edit: Reads("eq", "ne"), case: rows::scatter, seen_as: "scatter_add_rows" },
    Planted { what: "the least logit for the greatest", kernel: "cross_entropy", line: ("max.f32", 0),
        edit: Reads("max", "min"), case: logits::cross_entropy, seen_as: "loss" },
    Planted { what: "the last of equals for the first", kernel: "read_out", line: ("setp.lt.u32", 3),
        edit: Reads("lt", "gt"), case: logits::read_out, seen_as: "best" },
    Planted { what: "a tile read before its copy has landed", kernel: "attention_64", line: ("cp.async.wait_group", 1),
        edit: Reads("1;", "2;"), case: ragged, seen_as: "unfinished copy" },
    Planted { what: "a tile overwritten while others read it", kernel: "attention_64", line: ("bar.sync", 3),
        edit: Without, case: chain, seen_as: "race" },
    Planted { what: "a tile read by those who did not copy it", kernel: "attention_64", line: ("bar.sync", 2),
        edit: Without, case: ragged, seen_as: "race" },
    Planted { what: "a narrow head's rest not filled with zeros", kernel: "attention_64", line: ("16, 0, %p", 0),
        edit: Everywhere("16, 0,", "16, 16,"), case: ragged, seen_as: "out" },
    Planted { what: "operands of a product in the wrong order", kernel: "attention_64", line: ("mma.sync", 0),
        edit: Swapped(5, 6), case: ragged, seen_as: "out" },
    Planted { what: "values not transposed", kernel: "attention_64", line: (".trans.", 0), edit: Reads(".trans", ""),
        case: ragged, seen_as: "out" },
    Planted { what: "a query that does not see itself", kernel: "attention_64", line: ("setp.gt.u32", 1),
        edit: Reads("gt", "ge"), case: siblings, seen_as: "out" },
    Planted { what: "a key seen by the first query past its subtree", kernel: "attention_64", line: ("setp.le.u32", 16),
        edit: Reads("le", "lt"), case: siblings, seen_as: "out" },
    Planted { what: "every other tile skipped", kernel: "attention_64", line: (", 1;", 11), edit: Reads("1;", "2;"),
        case: siblings, seen_as: "out" },
    Planted { what: "a row past the last is stored", kernel: "attention_64", line: ("setp.ge.u32", 19),
        edit: Reads("ge", "gt"), case: ragged, seen_as: "no live allocation" },
    Planted { what: "half of a head's products left out of delta", kernel: "attention_delta", line: ("shr.u32", 1),
        edit: Reads(", 1;", ", 2;"), case: siblings, seen_as: "d" },
    Planted { what: "delta added", kernel: "attention_dq_64", line: ("sub.f32", 2), edit: Reads("sub", "add"),
        case: siblings, seen_as: "dq" },
    Planted { what: "dq's keys read before their copy has landed", kernel: "attention_dq_64",
        line: ("cp.async.wait_group", 1), edit: Without, case: siblings, seen_as: "unfinished copy" },
    Planted { what: "dq's bounds overwritten while others read them", kernel: "attention_dq_64", line: ("bar.sync", 3),
        edit: Without, case: chain, seen_as: "race" },
    Planted { what: "dkv's queries skipped", kernel: "attention_dkv_32", line: (", 1;", 12), edit: Reads("1;", "2;"),
        case: grouped, seen_as: "dv" },
    Planted { what: "dkv's gradients of weights with the wrong sign", kernel: "attention_dkv_64", line: ("sub.f32", 1),
        edit: Reads("sub", "add"), case: siblings, seen_as: "dk" },
    Planted { what: "dkv's covers read before they are noted", kernel: "attention_dkv_32", line: ("bar.sync", 0),
        edit: Without, case: grouped, seen_as: "race" },
];

/// The module's text with one line of one kernel edited.
fn edited(planted: &Planted) -> (&'static str, String) {
    let module = MODULES.iter().find(|module| module.kernels.contains(&planted.kernel)).expect("a shipped kernel");
    let entry = format!(".entry {}(\n", planted.kernel);
    let start = module.text.find(&entry).expect("a listed kernel has an entry");
    let end = start + module.text[start..].find("\n}\n").expect("a kernel has an end");
    let (needle, nth) = planted.line;
    let mut lines: Vec<String> = module.text[start..end].lines().map(str::to_owned).collect();
    let found = lines.iter_mut().filter(|line| line.contains(needle)).skip(nth);
    let (mut seen, mut changed) = (false, 0);
    for line in found.take(if let Everywhere(..) = planted.edit { usize::MAX } else { 1 }) {
        let new = match planted.edit {
            Without => String::new(),
            Reads(from, to) | Everywhere(from, to) => line.replacen(from, to, 1),
            Swapped(one, other) => swapped(line, one, other),
        };
        seen = true;
        changed += usize::from(new != *line);
        *line = new;
    }
    assert!(seen, "{}: {} has no line {nth} with {needle:?}", planted.what, planted.kernel);
    assert!(changed > 0, "{}: the edit changes nothing", planted.what);
    (module.name, format!("{}{}{}", &module.text[..start], lines.join("\n"), &module.text[end..]))
}

/// A line with two of its registers exchanged.
fn swapped(line: &str, one: usize, other: usize) -> String {
    let name = |c: char| c == '%' || c.is_ascii_alphanumeric();
    let mut parts: Vec<&str> = vec![];
    let mut rest = line;
    while let Some(at) = rest.find('%') {
        let (before, after) = rest.split_at(at);
        let (register, others) = after.split_at(after.find(|c| !name(c)).unwrap_or(after.len()));
        parts.extend([before, register]);
        rest = others;
    }
    parts.swap(2 * one + 1, 2 * other + 1);
    parts.concat() + rest
}

#[test]
fn every_planted_bug_is_seen() {
    let mut unseen = vec![];
    for planted in PLANTED {
        let (module, text) = edited(planted);
        let finding = Programs::with(module, &text).and_then(|programs| (planted.case)(&programs));
        match finding {
            Err(finding) if finding.contains(planted.seen_as) => println!("{}: {finding}", planted.what),
            other => unseen.push(format!("{}: {:?} expected, {other:?}", planted.what, planted.seen_as)),
        }
    }
    assert!(unseen.is_empty(), "\n{}", unseen.join("\n"));
}
