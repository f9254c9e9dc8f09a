//! A corpus's description for a terminal 80 columns wide.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};
use insula_coordinator::corpus::{
    describe::{Description, Prompts, SplitDescription, Spread},
    preflight::{Finding, Severity},
};

/// A rule under the header and nothing else.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// Columns of a terminal.
const WIDTH: u16 = 80;

/// How lengths spread, part by part.
const SPREAD: [(&str, PartOf); 4] =
    [("min", |s| s.min), ("median", |s| s.median), ("p95", |s| s.p95), ("max", |s| s.max)];

/// A part of how lengths spread.
type PartOf = fn(Spread) -> u64;

/// Rows of a table, the first being its header.
type Rows = Vec<Vec<String>>;

/// The whole description as text.
pub fn text(description: &Description, window: u32, findings: &[Finding]) -> String {
    let mut parts = vec![
        format!("{} (layout {}), window {window}", description.name, description.layout),
        table(&counts(description), 1),
        table(&labels(description), 1),
    ];
    if !description.leakage.is_empty() {
        parts.push(table(&leakage(description), 1));
    }
    if description.texts_compared_one_in > 1 {
        let one_in = description.texts_compared_one_in;
        parts.push(format!("Texts were compared one in {one_in}; counts of texts are estimates."));
    }
    if !findings.is_empty() {
        parts.push(table(&found(findings), usize::MAX));
    }
    parts.join("\n\n") + "\n"
}

/// Columns from `numbers` on are aligned to the right.
fn table(rows: &Rows, numbers: usize) -> String {
    let mut table = Table::new();
    table.load_style(STYLE).set_width(WIDTH);
    // Words wrap, numbers do not.
    if numbers == usize::MAX {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    if let Some((header, body)) = rows.split_first() {
        table.set_header(header);
        table.add_rows(body);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// One row for each count, one column for each split.
fn counts(description: &Description) -> Rows {
    let splits: Vec<&SplitDescription> = description.splits.values().collect();
    let header = std::iter::once(String::new()).chain(description.splits.keys().map(ToString::to_string)).collect();
    let mut rows: Rows = vec![header];
    let mut row = |name: &str, cell: &dyn Fn(&SplitDescription) -> Option<String>| {
        let cells: Vec<Option<String>> = splits.iter().map(|split| cell(split)).collect();
        if cells.iter().any(Option::is_some) {
            rows.push(
                std::iter::once(name.to_owned()).chain(cells.into_iter().map(Option::unwrap_or_default)).collect(),
            );
        }
    };
    let some = |number: u64| Some(number.to_string());
    let any = |number: u64| (number > 0).then(|| number.to_string());
    row("dialogues", &|s| some(s.dialogues));
    row("utterances", &|s| some(s.samples));
    row("most speakers in a dialogue", &|s| some(s.most_speakers));
    row("left out: without a label", &|s| any(s.left_out.unlabelled));
    row("left out: other labels", &|s| any(s.left_out.other_label));
    row("left out: without text", &|s| any(s.left_out.empty));
    row("left out: whole dialogues", &|s| any(s.left_out.dialogues));
    row("words", &|s| some(s.words.total));
    for (name, part) in SPREAD {
        row(&format!("  of an utterance: {name}"), &|s| some(part(s.words)));
    }
    row("different texts", &|s| some(s.distinct_texts));
    row("  with several labels", &|s| some(s.texts_with_several_labels));
    row("commonest label", &|s| s.majority.as_ref().map(|m| m.label.clone()));
    row("  its weighted F1, %", &|s| s.majority.as_ref().map(|m| format!("{:.2}", 100.0 * m.weighted_f1)));
    let mut prompts = |name: &str, cell: &dyn Fn(&Prompts) -> Option<String>| {
        row(name, &|s| s.prompts.as_ref().and_then(cell));
    };
    for (name, part) in SPREAD {
        prompts(&format!("prompt tokens: {name}"), &|p| some(part(p.prompt_tokens)));
    }
    prompts("tokens with labels", &|p| some(p.tokens));
    prompts("  as token trees", &|p| some(p.tree_tokens));
    prompts("  times fewer", &|p| Some(format!("{:.2}", p.tokens as f64 / p.tree_tokens.max(1) as f64)));
    prompts("prompts cut to the context", &|p| some(p.truncated_prompts));
    prompts("  oldest utterances cut", &|p| some(p.dropped_utterances));
    rows
}

/// One row for each label; two columns for each split.
fn labels(description: &Description) -> Rows {
    let mut header = vec!["label".to_owned()];
    header.extend(description.splits.keys().flat_map(|split| [split.to_string(), "%".to_owned()]));
    let mut rows = vec![header];
    for label in &description.label_set {
        let mut row = vec![label.clone()];
        for split in description.splits.values() {
            let count = split.labels.get(label).and_then(serde_json::Value::as_u64).unwrap_or(0);
            row.extend([count.to_string(), format!("{:.1}", 100.0 * count as f64 / split.samples.max(1) as f64)]);
        }
        rows.push(row);
    }
    rows
}

/// One row for each pair of splits.
fn leakage(description: &Description) -> Rows {
    let mut rows = vec![["seen before", "whole dialogues", "utterances' texts", "%"].map(String::from).to_vec()];
    for leakage in &description.leakage {
        rows.push(vec![
            format!("{} in {}", leakage.of, leakage.within),
            leakage.dialogues.to_string(),
            leakage.utterances.to_string(),
            format!("{:.1}", 100.0 * leakage.share),
        ]);
    }
    rows
}

fn found(findings: &[Finding]) -> Rows {
    let mut rows = vec![["a job would be", "because"].map(String::from).to_vec()];
    for finding in findings {
        let fate = match finding.severity {
            Severity::Refuse => "refused",
            Severity::Warn => "warned of",
        };
        rows.push(vec![fate.to_owned(), finding.text.clone()]);
    }
    rows
}
