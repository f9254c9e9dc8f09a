//! A report for a terminal 80 columns wide.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

use super::{Report, rows};

/// A rule under the header and nothing else: seven labels' confusion fits, and rows stay together.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// Letters of a label over a column of the confusion: with them seven labels fit the width.
const LETTERS: usize = 5;

/// Digits shown of a digest; the JSON and the Markdown have all of them.
const DIGITS: usize = 16;

/// The whole report as text.
pub fn render(report: &Report) -> String {
    let mut parts = vec![table("Test split, per cent", &rows::summary(report))];
    if let Some(epochs) = rows::epochs(report) {
        parts.push(table("Epochs", &epochs));
    }
    for arm in rows::detailed(report) {
        let title = rows::title(report, arm);
        parts.push(table(&format!("Labels, {title}, per cent"), &rows::labels(arm)));
        parts.push(table(&format!("Confusion, {title}"), &rows::confusion(arm, LETTERS)));
    }
    parts.push(table("Cost", &rows::cost(report)));
    if let Some(rows) = rows::endpoint(report) {
        parts.push(table("Cost of the endpoint", &rows));
    }
    parts.extend(report.warnings.iter().map(|warning| format!("Warning: {warning}")));
    parts.push(provenance(report));
    parts.join("\n\n") + "\n"
}

fn table(title: &str, rows: &rows::Rows) -> String {
    let mut table = Table::new();
    table.load_style(STYLE).set_content_arrangement(ContentArrangement::Dynamic).set_width(80);
    let (header, body) = rows.split_first().expect("a table has a header");
    table.set_header(header);
    table.add_rows(body);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    format!("{title}\n{}", table.trim_fmt())
}

/// Name and value a line.
fn provenance(report: &Report) -> String {
    let line = |(name, value): (&str, String)| format!("  {name:<21} {}", shortened(value));
    let lines: Vec<_> = rows::provenance(report).into_iter().map(line).collect();
    format!("Provenance\n{}", lines.join("\n"))
}

fn shortened(value: String) -> String {
    match value.strip_prefix("sha256:") {
        Some(digits) if digits.len() > DIGITS => format!("sha256:{}...", &digits[..DIGITS]),
        _ => value,
    }
}
