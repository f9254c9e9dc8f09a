//! A report as Markdown, for a lab book or a pull request.

use super::{Report, rows};

/// The whole report as Markdown.
pub fn render(report: &Report) -> String {
    let p = &report.provenance;
    let mut text = format!("# {} on {}\n", p.recipe.name, p.corpus.name);
    let mut section = |title: &str, rows: &rows::Rows| {
        text += &format!("\n## {title}\n\n{}", table(rows));
    };
    section("Test split, per cent", &rows::summary(report));
    if let Some(epochs) = rows::epochs(report) {
        section("Epochs", &epochs);
    }
    for arm in &report.arms {
        let title = rows::title(report, arm);
        section(&format!("Labels, {title}, per cent"), &rows::labels(arm));
        section(&format!("Confusion, {title}"), &rows::confusion(arm, usize::MAX));
    }
    section("Cost", &rows::cost(report));
    if let Some(rows) = rows::endpoint(report) {
        section("Cost of the endpoint", &rows);
    }
    if !report.warnings.is_empty() {
        text += "\n## Warnings\n\n";
        text.extend(report.warnings.iter().map(|warning| format!("- {}\n", escaped(warning))));
    }
    text += "\n## Provenance\n\n";
    for (name, value) in rows::provenance(report) {
        text += &format!("- {name}: {}\n", escaped(&value));
    }
    text
}

fn table(rows: &rows::Rows) -> String {
    let line = |cells: &Vec<String>| {
        let cells: Vec<_> = cells.iter().map(|cell| escaped(cell)).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let (header, body) = rows.split_first().expect("a table has a header");
    let rule = format!("|---|{}\n", "---:|".repeat(header.len() - 1));
    line(header) + &rule + &body.iter().map(line).collect::<String>()
}

/// Labels and names are people's text: what Markdown would take for a column or a tag is escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace(['\r', '\n'], " ")
}
