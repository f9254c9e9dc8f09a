//! A study as Markdown, for a lab book or a pull request. Figures are links to `ID.svg` beside it.

use super::{
    Study,
    layout::{self, Entry, Grid, Line},
};
use crate::study::{figure::corpus_name, published::Published};

/// The whole study as Markdown.
pub fn render(study: &Study, published: &Published) -> String {
    let mut text = format!("# {}\n\n{}.\n", escaped(&study.title), escaped(&study.notes_line()));
    if !study.warnings.is_empty() {
        text += "\n## Warnings\n\n";
        study.warnings.iter().for_each(|warning| text += &format!("- {}\n", escaped(warning)));
    }
    for grid in layout::grids(study, published) {
        text += &format!("\n## {}\n\n{}", escaped(grid.title), table(&grid));
    }
    for figure in &study.figures {
        let (title, caption) = (escaped(&figure.title), escaped(&figure.caption));
        text += &format!("\n## {title}\n\n![{title}]({}.svg)\n\n{caption}\n", escaped(&figure.id));
    }
    text + &provenance(study, published)
}

fn table(grid: &Grid) -> String {
    let joined = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let sources = grid.lines.iter().any(|line| matches!(line, Line::Row { source: Some(_), .. }));
    let lead = if sources { vec![String::new(), "source".into()] } else { vec![String::new()] };
    let head = |column: &layout::Column| escaped(format!("{} {}", column.group, column.name).trim());
    let mut text = joined(lead.iter().cloned().chain(grid.columns.iter().map(head)).collect());
    text += &format!("|{}{}\n", "---|".repeat(lead.len()), "---:|".repeat(grid.columns.len()));
    for line in &grid.lines {
        text += &joined(match line {
            Line::Section(title) => {
                let blank = vec![String::new(); lead.len() - 1 + grid.columns.len()];
                [format!("**{}**", escaped(title))].into_iter().chain(blank).collect()
            }
            Line::Row { head, source, entries } => {
                let source = source.map(|source| source.as_str().to_owned());
                [escaped(head)].into_iter().chain(source).chain(entries.iter().map(cell)).collect()
            }
        });
    }
    text.push('\n');
    for (index, note) in grid.footnotes.iter().enumerate() {
        text += &format!("<sup>{}</sup> {}\n\n", index + 1, escaped(note));
    }
    text + &grid.about.join(" ") + "\n"
}

fn cell(entry: &Entry) -> String {
    let small: String = entry.small.iter().map(|small| format!(" {}", escaped(small))).collect();
    let note = entry.footnote.map(|number| format!(" <sup>{number}</sup>")).unwrap_or_default();
    format!("{}{small}{note}", escaped(&entry.text))
}

fn provenance(study: &Study, published: &Published) -> String {
    let mut text = String::from("\n## Provenance\n\nPublished numbers:\n\n");
    for (key, note) in &published.sources {
        text += &format!("- {}: {}\n", escaped(key), escaped(note));
    }
    text += "\n<details><summary>Jobs of each number</summary>\n\n| number | seeds | samples | updates | jobs |\n|---|---|---:|---:|---|\n";
    let count = |count: Option<u64>| count.map_or("-".into(), |count| count.to_string());
    for c in study.cells.iter().filter(|cell| !cell.jobs.is_empty()) {
        let mix = c.mix.map(|mix| format!(", {}", mix.as_str())).unwrap_or_default();
        let number = format!("{:?}: {}{mix}, {}", c.table, c.row, corpus_name(&c.corpus));
        let seeds = c.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        let cells = [escaped(&number), seeds, count(c.samples), count(c.updates), escaped(&c.jobs.join(" "))];
        text += &format!("| {} |\n", cells.join(" | "));
    }
    for figure in study.figures.iter().filter(|figure| !figure.jobs.is_empty()) {
        text += &format!("| {} |  |  |  | {} |\n", escaped(&figure.title), escaped(&figure.jobs.join(" ")));
    }
    text += "\n</details>\n\n<details><summary>What each job was made from</summary>\n\n";
    text += "| job | name | corpus | corpus digest | base | base digest | seed | commit | recipe |\n";
    text += &format!("|{}\n", "---|".repeat(9));
    for j in &study.jobs {
        let seed = j.seed.to_string();
        let cells =
            [&j.job, &j.name, &j.corpus, &j.corpus_digest, &j.base, &j.base_digest, &seed, &j.commit, &j.recipe];
        text += &format!("| {} |\n", cells.map(|cell| escaped(cell)).join(" | "));
    }
    text + "\n</details>\n"
}

/// People's text: whatever Markdown would take for its own is escaped.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\\' | '|' | '*' | '_' | '`' | '[' | ']' | '~' => safe.extend(['\\', letter]),
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '&' => safe += "&amp;",
            '\r' | '\n' => safe.push(' '),
            _ => safe.push(letter),
        }
    }
    safe
}
