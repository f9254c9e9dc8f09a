//! PTX text to decoded kernels. Whatever is not understood is refused with its line and text; nothing is skipped but
//! `.file`, `.loc`, `.section` and `.pragma "nounroll"`, which change nothing.

mod arithmetic;
mod decode;
mod memory;
mod names;
mod text;
mod warp;

use std::collections::{BTreeMap, HashMap};

use crate::module::{Kernel, Module, Param};
use crate::program::{Code, Guard, Instruction, Program, Site, Type};
use names::Names;
use text::{Kind, Statement};

/// Why a text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ptx line {line}: {reason}: `{text}`")]
pub struct ParseError {
    /// The line, from 1.
    pub line: u32,
    /// The statement.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl ParseError {
    fn new(line: u32, text: &str, reason: impl Into<String>) -> ParseError {
        ParseError { line, text: text.to_owned(), reason: reason.into() }
    }
}

/// A variable outside of functions.
#[derive(Debug, Clone, Copy)]
enum Outer {
    /// Offset within the module's `.const` memory.
    Const(u64),
    /// `.extern .shared`: begins after the kernel's own shared memory, at this alignment.
    DynamicShared { align: usize },
    /// `.shared` at module level: bytes and alignment, placed in a kernel that names it.
    Shared { bytes: usize, align: usize },
    /// `.global`: known so that naming it can be refused; the compiler leaves unused ones behind.
    Global,
}

#[derive(Debug, Default)]
struct ModuleParser {
    kernels: BTreeMap<String, Kernel>,
    outer: HashMap<String, Outer>,
    constants: Vec<u8>,
}

/// One kernel while it is parsed.
#[derive(Debug, Default)]
struct Body {
    names: Names,
    params: HashMap<String, u64>,
    /// Shared and local variables of the function: address within their space.
    variables: HashMap<String, u64>,
    shared_bytes: usize,
    local_bytes: usize,
    labels: HashMap<String, u32>,
    /// Branches: instruction, label; resolved at the end.
    jumps: Vec<(usize, String)>,
    /// Constant rows that wait for the dynamic shared memory's start: row in the 32-bit (false) or 64-bit file.
    dynamic: Vec<(bool, usize, u64)>,
    dynamic_align: usize,
    program: Program,
    depth: u32,
}

pub(crate) fn module(text: &str) -> Result<Module, ParseError> {
    let statements = text::statements(text);
    let mut parser = ModuleParser::default();
    let mut rest = statements.iter();
    while let Some(statement) = rest.next() {
        match &statement.kind {
            Kind::Text(text) => parser.outer_statement(statement.line, text)?,
            Kind::Header(header) => parser.kernel(statement.line, header, &mut rest)?,
            other => return Err(ParseError::new(statement.line, &format!("{other:?}"), "outside of a function")),
        }
    }
    let constants = std::mem::take(&mut parser.constants);
    for kernel in parser.kernels.values_mut() {
        kernel.program.constants = constants.clone();
    }
    Ok(Module { kernels: parser.kernels })
}

impl ModuleParser {
    fn outer_statement(&mut self, line: u32, text: &str) -> Result<(), ParseError> {
        let error = |reason: &str| ParseError::new(line, text, reason);
        let first = text.split(' ').next().unwrap_or_default();
        match first {
            ".version" | ".target" | ".file" | ".loc" | ".section" => return Ok(()),
            ".address_size" if text.ends_with("64") => return Ok(()),
            _ => {}
        }
        let variable = Variable::parse(text).map_err(|reason| error(&reason))?;
        let outer = match variable.space {
            "const" => {
                let at = self.constants.len().next_multiple_of(variable.align);
                self.constants.resize(at, 0);
                self.constants.extend(variable.initial().map_err(|reason| error(&reason))?);
                Outer::Const(at as u64)
            }
            "global" => Outer::Global,
            "shared" if variable.external => Outer::DynamicShared { align: variable.align },
            "shared" => Outer::Shared { bytes: variable.bytes, align: variable.align },
            _ => return Err(error("unsupported directive")),
        };
        self.outer.insert(variable.name.to_owned(), outer);
        Ok(())
    }

    fn kernel<'s>(
        &mut self,
        line: u32,
        header: &str,
        rest: &mut impl Iterator<Item = &'s Statement>,
    ) -> Result<(), ParseError> {
        let (name, params, max_threads) = parse_header(header).map_err(|r| ParseError::new(line, header, r))?;
        let mut body = Body { depth: 1, dynamic_align: 1, ..Body::default() };
        body.names.open();
        for (param_name, param) in &params {
            body.params.insert(param_name.clone(), param.offset as u64);
        }
        for statement in rest.by_ref() {
            let at = |text: &str, reason: String| ParseError::new(statement.line, text, reason);
            match &statement.kind {
                Kind::Open => {
                    body.depth += 1;
                    body.names.open();
                }
                Kind::Close => {
                    body.depth -= 1;
                    body.names.close();
                    if body.depth == 0 {
                        break;
                    }
                }
                Kind::Label(label) => {
                    let here = body.program.instructions.len() as u32;
                    if body.labels.insert(label.clone(), here).is_some() {
                        return Err(at(label, "the label stands twice".to_owned()));
                    }
                }
                Kind::Text(text) => {
                    self.statement(&mut body, statement.line, text).map_err(|reason| at(text, reason))?
                }
                Kind::Header(text) => return Err(at(text, "a function within a function".to_owned())),
            }
        }
        if body.depth != 0 {
            return Err(ParseError::new(line, header, "the body does not end"));
        }
        let kernel = body.finish(name.clone(), params.into_iter().map(|(_, param)| param).collect(), max_threads)?;
        self.kernels.insert(name, kernel);
        Ok(())
    }

    fn statement(&mut self, body: &mut Body, line: u32, text: &str) -> Result<(), String> {
        if let Some(registers) = text.strip_prefix(".reg ") {
            return body.names.declare(registers);
        }
        if text.starts_with('.') {
            return body.directive(text);
        }
        let (guard, operation) = match text.strip_prefix('@') {
            Some(guarded) => {
                let (predicate, operation) = guarded.split_once(' ').ok_or("a guard without an instruction")?;
                let source = body.names.predicate(predicate)?;
                (Some(Guard { row: source.row, negated: source.negated }), operation.trim())
            }
            None => (None, text),
        };
        let (opcode, arguments) = operation.split_once(' ').unwrap_or((operation, ""));
        let (code, float_operations) = decode::instruction(body, &self.outer, opcode, &text::operands(arguments))?;
        body.program.instructions.push(Instruction { code, guard });
        body.program.sites.push(Site { line, text: text.to_owned(), opcode: opcode.to_owned(), float_operations });
        Ok(())
    }
}

impl Body {
    fn directive(&mut self, text: &str) -> Result<(), String> {
        let first = text.split(' ').next().unwrap_or_default();
        match first {
            ".loc" | ".file" => return Ok(()),
            ".pragma" if text.contains("nounroll") => return Ok(()),
            ".shared" | ".local" => {}
            _ => return Err("unsupported directive".to_owned()),
        }
        let variable = Variable::parse(text)?;
        let size = if variable.space == "shared" { &mut self.shared_bytes } else { &mut self.local_bytes };
        let at = size.next_multiple_of(variable.align);
        *size = at + variable.bytes;
        self.variables.insert(variable.name.to_owned(), at as u64);
        Ok(())
    }

    fn finish(mut self, name: String, params: Vec<Param>, max_threads: Option<u32>) -> Result<Kernel, ParseError> {
        let dynamic_start = self.shared_bytes.next_multiple_of(self.dynamic_align);
        for &(wide, constant, offset) in &self.dynamic {
            let value = (dynamic_start as u64).wrapping_add(offset);
            if wide {
                self.names.files.constants64[constant].1 = value;
            } else {
                self.names.files.constants32[constant].1 = value as u32;
            }
        }
        let mut program = self.program;
        for (at, label) in &self.jumps {
            let site = &program.sites[*at];
            let Some(&found) = self.labels.get(label) else {
                return Err(ParseError::new(site.line, &site.text, format!("no label {label}")));
            };
            if let Code::Branch { target, .. } = &mut program.instructions[*at].code {
                *target = found;
            }
        }
        // A body may end without `ret`.
        program.instructions.push(Instruction { code: Code::Exit, guard: None });
        program.sites.push(Site {
            line: program.sites.last().map_or(0, |site| site.line),
            text: "end of the body".to_owned(),
            opcode: "ret".to_owned(),
            float_operations: 0,
        });
        program.files = self.names.files;
        program.local_bytes = self.local_bytes;
        (program.shared_grain, program.global_grain) = memory::grains(&program.instructions);
        let static_bytes = if self.dynamic.is_empty() { self.shared_bytes } else { dynamic_start };
        Ok(Kernel { name, params, shared_bytes: static_bytes, max_threads, program })
    }
}

type Header = (String, Vec<(String, Param)>, Option<u32>);

/// `.visible .entry name( .param .u64 a, ... ) .maxntid 128, 1, 1`.
fn parse_header(header: &str) -> Result<Header, String> {
    let (_, after) = header.split_once(".entry ").ok_or("device functions (.func) and calls are not supported")?;
    let open = after.find('(').unwrap_or(after.len());
    let close = after.rfind(')').unwrap_or(open);
    let name = after[..open].split(' ').next().unwrap_or_default().to_owned();
    let mut params = Vec::new();
    let mut offset = 0_usize;
    for text in after.get(open + 1..close).unwrap_or_default().split(',').map(str::trim).filter(|t| !t.is_empty()) {
        let variable = Variable::parse(text)?;
        offset = offset.next_multiple_of(variable.align);
        params.push((variable.name.to_owned(), Param { offset, size: variable.bytes }));
        offset += variable.bytes;
    }
    let mut max_threads = None;
    let directives = after.get(close + 1..).unwrap_or_default();
    for directive in directives.split('.').map(str::trim).filter(|d| !d.is_empty()) {
        match directive.split_once(' ') {
            Some(("maxntid", sizes)) => {
                let sizes: Result<Vec<u32>, _> = sizes.split(',').map(|size| size.trim().parse()).collect();
                max_threads = Some(sizes.map_err(|_| "maxntid")?.iter().product());
            }
            Some(("minnctapersm" | "maxnreg", _)) => {}
            _ => return Err(format!("unsupported directive .{directive}")),
        }
    }
    Ok((name, params, max_threads))
}

/// A declared variable: `.extern .shared .align 16 .b8 name[64] = {..}`.
#[derive(Debug)]
struct Variable<'t> {
    space: &'t str,
    external: bool,
    align: usize,
    element: Type,
    name: &'t str,
    bytes: usize,
    initialiser: Option<&'t str>,
}

impl<'t> Variable<'t> {
    fn parse(text: &'t str) -> Result<Variable<'t>, String> {
        let (declaration, initialiser) =
            text.split_once('=').map_or((text, None), |(left, right)| (left, Some(right.trim())));
        let mut variable =
            Variable { space: "", external: false, align: 0, element: Type::B8, name: "", bytes: 0, initialiser };
        let mut words = declaration.split_whitespace();
        while let Some(word) = words.next() {
            match word {
                ".const" | ".global" | ".shared" | ".local" | ".param" => variable.space = &word[1..],
                ".extern" => variable.external = true,
                ".visible" | ".weak" | ".ptr" => {}
                ".align" => {
                    variable.align = words.next().and_then(|align| align.parse().ok()).ok_or("alignment")?;
                }
                _ => match word.strip_prefix('.').map(Type::named) {
                    Some(Some(t)) => variable.element = t,
                    Some(None) => return Err(format!("unsupported directive {word}")),
                    None => variable.name = word,
                },
            }
        }
        if variable.name.is_empty() || variable.space.is_empty() {
            return Err("a statement that is no declaration".to_owned());
        }
        let (name, count) = match variable.name.split_once('[') {
            None => (variable.name, 1),
            Some((name, "]")) => (name, 0),
            Some((name, count)) => (name, count.trim_end_matches(']').parse().map_err(|_| "array length")?),
        };
        variable.name = name;
        variable.bytes = count * variable.element.bytes();
        variable.align = variable.align.max(variable.element.bytes());
        Ok(variable)
    }

    /// The bytes of the initialiser, filled up with zeros.
    fn initial(&self) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let listed = self.initialiser.unwrap_or_default().trim_matches(['{', '}', ' ']);
        let class = names::Class::of(self.element);
        for item in listed.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let value = names::immediate(item, class).ok_or_else(|| format!("initial value {item}"))?;
            bytes.extend(&value.to_le_bytes()[..self.element.bytes()]);
        }
        bytes.resize(self.bytes, 0);
        Ok(bytes)
    }
}
