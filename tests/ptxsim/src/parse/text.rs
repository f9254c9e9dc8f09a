//! PTX text to statements: comments go, lines are remembered, nothing is interpreted yet.
//!
//! A statement ends at `;`, at a newline for the few directives that have no `;`, at `:` for a label, and at a brace
//! that opens or closes a scope. A brace inside a statement is an operand's (`{%r1, %r2}`) or an initialiser's.

/// One piece of the text and the line (from 1) on which it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Statement {
    pub line: u32,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// What stands before a `;`, or a directive that ends with its line; spaces collapsed.
    Text(String),
    /// What stands before the `{` of a function's body.
    Header(String),
    Label(String),
    Open,
    Close,
}

const LINE_DIRECTIVES: [&str; 6] = [".version", ".target", ".address_size", ".file", ".loc", ".section"];

/// Splits the text; an unfinished last statement comes back as a `Text`, which the parser refuses.
pub(super) fn statements(text: &str) -> Vec<Statement> {
    let mut splitter = Splitter { out: Vec::new(), held: String::new(), started: 0 };
    let mut in_comment = false;
    for (index, raw) in text.lines().enumerate() {
        let line = uncommented(raw, &mut in_comment);
        splitter.take_line(index as u32 + 1, &line);
    }
    splitter.flush(Kind::Text);
    splitter.out
}

/// The line without `//` and `/* */` comments; `in_comment` carries an open `/*` over lines.
fn uncommented(raw: &str, in_comment: &mut bool) -> String {
    let mut out = String::new();
    let mut rest = raw;
    loop {
        if *in_comment {
            let Some(end) = rest.find("*/") else { return out };
            *in_comment = false;
            rest = &rest[end + 2..];
        }
        let block = rest.find("/*").unwrap_or(usize::MAX);
        let line = rest.find("//").unwrap_or(usize::MAX);
        if block < line {
            out.push_str(&rest[..block]);
            out.push(' ');
            *in_comment = true;
            rest = &rest[block + 2..];
        } else {
            out.push_str(&rest[..line.min(rest.len())]);
            return out;
        }
    }
}

struct Splitter {
    out: Vec<Statement>,
    held: String,
    started: u32,
}

impl Splitter {
    fn take_line(&mut self, line: u32, text: &str) {
        let mut characters = text.chars().peekable();
        while let Some(c) = characters.next() {
            let empty = self.held.is_empty();
            match c {
                ';' => self.flush(Kind::Text),
                '{' if empty => self.out.push(Statement { line, kind: Kind::Open }),
                '}' if empty => self.out.push(Statement { line, kind: Kind::Close }),
                '{' if is_header(&self.held) => self.flush(Kind::Header),
                ':' if characters.peek() != Some(&':') && is_label(&self.held) => self.flush(Kind::Label),
                c if c.is_whitespace() => self.space(),
                c => {
                    if empty {
                        self.started = line;
                    }
                    self.held.push(c);
                }
            }
        }
        let first = self.held.split(' ').next().unwrap_or_default();
        if LINE_DIRECTIVES.contains(&first) {
            self.flush(Kind::Text);
        }
        self.space();
    }

    fn space(&mut self) {
        if !self.held.is_empty() && !self.held.ends_with(' ') {
            self.held.push(' ');
        }
    }

    fn flush(&mut self, kind: impl Fn(String) -> Kind) {
        let held = std::mem::take(&mut self.held);
        let text = held.trim_end();
        if !text.is_empty() {
            self.out.push(Statement { line: self.started, kind: kind(text.to_owned()) });
        }
    }
}

fn is_header(held: &str) -> bool {
    held.starts_with('.') && held.split(' ').any(|word| word == ".entry" || word == ".func")
}

fn is_label(held: &str) -> bool {
    !held.is_empty() && !held.contains([' ', '.', ':', '@', '%'])
}

/// Splits at the commas outside of brackets and braces.
pub(super) fn operands(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut depth, mut from) = (0_i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(text[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    if !text[from..].trim().is_empty() {
        out.push(text[from..].trim());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_keep_their_lines_and_braces_their_meaning() {
        let text = ".version 7.0\n.visible .entry k(\n .param .u64 a\n)\n.maxntid 32, 1, 1\n{ // body\nL1:\n{ .reg .pred q; mov.b64 {%r1,%r2}, /* odd */ %rd1; }\n@q bra L1; ret;\n}";
        let got: Vec<(u32, Kind)> = statements(text).into_iter().map(|s| (s.line, s.kind)).collect();
        let text = |s: &str| Kind::Text(s.to_owned());
        assert_eq!(
            got,
            vec![
                (1, text(".version 7.0")),
                (2, Kind::Header(".visible .entry k( .param .u64 a ) .maxntid 32, 1, 1".to_owned())),
                (7, Kind::Label("L1".to_owned())),
                (8, Kind::Open),
                (8, text(".reg .pred q")),
                (8, text("mov.b64 {%r1,%r2}, %rd1")),
                (8, Kind::Close),
                (9, text("@q bra L1")),
                (9, text("ret")),
                (10, Kind::Close),
            ]
        );
    }

    #[test]
    fn operands_split_outside_of_brackets_only() {
        assert_eq!(operands("{%r1, %r2}, [%rd1+4], -1"), vec!["{%r1, %r2}", "[%rd1+4]", "-1"]);
    }
}
