//! Results as grids of text, which Markdown and HTML draw each in their own way.

use super::{Cell, Significance, Study, TableName};
use crate::study::{
    figure::corpus_name,
    published::{CORPORA, Group, Mix, Published, PublishedRow},
    statistics::Interval,
};

/// A table of text.
pub(super) struct Grid {
    /// For links: letters and hyphens.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// What its columns share: a group's name over each, empty where there is none.
    pub(super) columns: Vec<Column>,
    pub(super) lines: Vec<Line>,
    /// Counted from 1 by [`Entry::footnote`].
    pub(super) footnotes: Vec<String>,
    /// Sentences under the table.
    pub(super) about: Vec<&'static str>,
}

/// The head of a column.
#[derive(Clone)]
pub(super) struct Column {
    pub(super) group: String,
    pub(super) name: String,
}

/// A line of a grid.
pub(super) enum Line {
    /// Says what the rows under it are.
    Section(String),
    /// A row.
    Row {
        head: String,
        /// Whose numbers they are; `None` where a table holds one kind alone.
        source: Option<Source>,
        entries: Vec<Entry>,
    },
}

/// Whose numbers a row has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Ours,
    Published,
}

impl Source {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Source::Ours => "ours",
            Source::Published => "published",
        }
    }
}

/// One number, or `-`.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) text: String,
    /// Spread, interval, updates.
    pub(super) small: Vec<String>,
    pub(super) footnote: Option<usize>,
}

/// Why a cell that nobody spoke of is empty.
const NOT_RUN: &str = "not run";
const NOT_PRINTED: &str = "not printed by its authors";
const SPREAD: &str =
    "Ours: mean over seeds, ± the seeds' standard deviation, [95% interval by bootstrap over dialogues].";

/// All tables that have something of ours; the main table always.
pub(super) fn grids(study: &Study, published: &Published) -> Vec<Grid> {
    let has = |table| study.cells.iter().any(|cell| cell.table == table);
    let mut grids = vec![main(study, published)];
    if has(TableName::AllParameters) {
        grids.push(all_parameters(study, published));
    }
    let keyed = [
        (TableName::Ablation, Group::Ablation, "ablation", "Ablation"),
        (TableName::Window, Group::Window, "window", "Window: preceding utterances shown"),
        (TableName::ImpactWeight, Group::ImpactWeight, "impact-weight", "Weight of the impact task"),
        (TableName::DataScaling, Group::DataScaling, "data-scaling", "Data scaling: share of the training samples"),
    ];
    for (table, group, id, title) in keyed.into_iter().filter(|(table, ..)| has(*table)) {
        grids.push(by_setting(study, published, table, group, (id, title)));
    }
    if !study.significance.is_empty() {
        grids.push(significance(&study.significance));
    }
    grids
}

/// Footnotes as they are met: the same reason is one note.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn number(&mut self, note: &str) -> usize {
        let place = self.0.iter().position(|known| known == note);
        place.unwrap_or_else(|| {
            self.0.push(note.to_owned());
            self.0.len() - 1
        }) + 1
    }

    fn missing(&mut self, reason: &str) -> Entry {
        Entry { text: "-".into(), small: vec![], footnote: Some(self.number(reason)) }
    }

    /// Our weighted F1; with updates where a table sets efforts side by side.
    fn ours(&mut self, cell: Option<&Cell>, updates: bool) -> Entry {
        let note = cell.and_then(|cell| cell.note.as_deref());
        let Some((cell, mean)) = cell.and_then(|cell| Some((cell, cell.mean?))) else {
            return self.missing(note.unwrap_or(NOT_RUN));
        };
        let spread = cell.sd.map(|sd| format!("±{}", percent(sd)));
        let steps = cell.updates.filter(|_| updates).map(counted);
        let strict = cell.strict.map(|strict| format!("strict {}", percent(strict)));
        let small = [spread, cell.interval.map(bracketed), strict, steps].into_iter().flatten().collect();
        Entry { text: percent(mean), small, footnote: note.map(|note| self.number(note)) }
    }

    fn accuracy(&mut self, cell: Option<&Cell>) -> Entry {
        match cell.and_then(|cell| cell.accuracy) {
            Some(accuracy) => Entry { text: percent(accuracy), ..Entry::default() },
            None => self.missing(cell.and_then(|cell| cell.note.as_deref()).unwrap_or(NOT_RUN)),
        }
    }

    fn published(&mut self, row: Option<&PublishedRow>, corpus: &str) -> Entry {
        match row.and_then(|row| row.scores.get(corpus)) {
            Some(score) => Entry { text: format!("{score:.2}"), ..Entry::default() },
            None => self.missing(NOT_PRINTED),
        }
    }
}

fn main(study: &Study, published: &Published) -> Grid {
    let corpora = corpora(study, TableName::Main);
    let mut notes = Notes::default();
    let groups = [
        (Group::ZeroShot, "Published: zero-shot, the bare model"),
        (Group::LoraBackbone, "Published: LoRA + backbone"),
        (Group::LoraInstructerc, "Published: LoRA + InstructERC"),
        (Group::Discriminative, "Published: discriminative systems"),
        (Group::Today, "Published since"),
    ];
    let mut lines = Vec::new();
    for (group, title) in groups {
        lines.push(Line::Section(title.into()));
        for row in published.group(group) {
            let pair = |corpus: &String| [notes.published(Some(row), corpus), bare_dash()];
            let entries = corpora.iter().flat_map(pair).collect();
            lines.push(Line::Row { head: row.system.clone(), source: Some(Source::Published), entries });
        }
    }
    lines.push(Line::Section(format!("Ours: {}", study.base)));
    for row in our_rows(study, TableName::Main) {
        let pair = |corpus: &String| {
            let cell = find(study, TableName::Main, &row, None, corpus);
            [notes.ours(cell, false), notes.accuracy(cell)]
        };
        let entries = corpora.iter().flat_map(pair).collect();
        lines.push(Line::Row { head: row.clone(), source: Some(Source::Ours), entries });
    }
    let column =
        |corpus: &String| ["W-F1", "accuracy"].map(|name| Column { group: corpus_name(corpus), name: name.into() });
    Grid {
        id: "main",
        title: "Main results, test split, per cent",
        columns: corpora.iter().flat_map(column).collect(),
        lines,
        footnotes: notes.0,
        about: vec![SPREAD, "Published systems print no accuracy."],
    }
}

fn all_parameters(study: &Study, published: &Published) -> Grid {
    let corpora = corpora(study, TableName::AllParameters);
    let mut notes = Notes::default();
    let mut lines = Vec::new();
    let groups = [
        (Group::AllParameters, "Published: all parameters"),
        (Group::LoraInstructerc, "Published: LoRA, same prompts and tasks"),
    ];
    for (group, title) in groups {
        lines.push(Line::Section(title.into()));
        for row in published.group(group) {
            let entries = corpora.iter().map(|corpus| notes.published(Some(row), corpus)).collect();
            lines.push(Line::Row { head: row.system.clone(), source: Some(Source::Published), entries });
        }
    }
    lines.push(Line::Section(format!("Ours: {}", study.base)));
    for row in our_rows(study, TableName::AllParameters) {
        let entry = |corpus: &String| notes.ours(find(study, TableName::AllParameters, &row, None, corpus), true);
        let entries = corpora.iter().map(entry).collect();
        lines.push(Line::Row { head: row.clone(), source: Some(Source::Ours), entries });
    }
    Grid {
        id: "all-parameters",
        title: "All parameters against LoRA, weighted F1, per cent",
        columns: corpora.iter().map(|corpus| Column { group: String::new(), name: corpus_name(corpus) }).collect(),
        lines,
        footnotes: notes.0,
        about: vec![SPREAD],
    }
}

/// A table whose rows are settings: the published row of a setting, and ours under it.
fn by_setting(
    study: &Study,
    published: &Published,
    table: TableName,
    group: Group,
    names: (&'static str, &'static str),
) -> Grid {
    let scaling = table == TableName::DataScaling;
    let mixes: Vec<Option<Mix>> = if scaling { Mix::ALL.map(Some).to_vec() } else { vec![None] };
    let corpora = corpora(study, table);
    let places: Vec<_> = corpora.iter().flat_map(|corpus| mixes.iter().map(move |mix| (corpus, *mix))).collect();
    let mut notes = Notes::default();
    let mut lines = Vec::new();
    let mut settings: Vec<String> = Vec::new();
    let printed = published.group(group).filter_map(|row| row.setting.clone());
    for setting in printed.chain(our_rows(study, table)) {
        if !settings.contains(&setting) {
            settings.push(setting);
        }
    }
    for setting in &settings {
        let row = |mix| published.group(group).find(|row| row.setting.as_ref() == Some(setting) && row.mix == mix);
        if mixes.iter().any(|mix| row(*mix).is_some()) {
            let entries = places.iter().map(|(corpus, mix)| notes.published(row(*mix), corpus)).collect();
            lines.push(Line::Row { head: setting.clone(), source: Some(Source::Published), entries });
        }
        let entry =
            |(corpus, mix): &(&String, Option<Mix>)| notes.ours(find(study, table, setting, *mix, corpus), true);
        let entries = places.iter().map(entry).collect();
        lines.push(Line::Row { head: setting.clone(), source: Some(Source::Ours), entries });
    }
    let column = |(corpus, mix): &(&String, Option<Mix>)| match mix {
        Some(mix) => Column { group: corpus_name(corpus), name: mix.as_str().into() },
        None => Column { group: String::new(), name: corpus_name(corpus) },
    };
    let mut about = vec![SPREAD];
    if scaling {
        about.push("At equal epochs a mix takes more updates than one corpus alone at the same share; compare the updates before the scores.");
    }
    Grid { id: names.0, title: names.1, columns: places.iter().map(column).collect(), lines, footnotes: notes.0, about }
}

fn significance(pairs: &[Significance]) -> Grid {
    let mut notes = Notes::default();
    let line = |pair: &Significance| {
        let text = |text: String| Entry { text, ..Entry::default() };
        let footnote = pair.note.as_ref().map(|note| notes.number(note));
        let entries = match pair.comparison {
            Some(c) => {
                let difference = Entry { text: format!("{:+.2}", 100.0 * c.difference), small: vec![], footnote };
                vec![text(corpus_name(&pair.corpus)), difference, text(bracketed(c.interval)), text(p_value(c.p_value))]
            }
            None => {
                let reason = pair.note.as_deref().unwrap_or(NOT_RUN);
                let [a, b, c] = [(); 3].map(|()| notes.missing(reason));
                vec![text(corpus_name(&pair.corpus)), a, b, c]
            }
        };
        Line::Row { head: format!("{} - {}", pair.first, pair.second), source: None, entries }
    };
    let lines = pairs.iter().map(line).collect();
    let columns = ["corpus", "difference, points", "95% interval", "p (two-sided)"];
    Grid {
        id: "significance",
        title: "Differences of weighted F1",
        columns: columns.map(|name| Column { group: String::new(), name: name.into() }).to_vec(),
        lines,
        footnotes: notes.0,
        about: vec![
            "Paired bootstrap: the same dialogues are drawn for both arms. p values are not corrected for the number of comparisons.",
        ],
    }
}

/// A dash that the table's own sentence explains.
fn bare_dash() -> Entry {
    Entry { text: "-".into(), ..Entry::default() }
}

/// The paper's corpora, then ours that it lacks.
fn corpora(study: &Study, table: TableName) -> Vec<String> {
    let mut corpora: Vec<String> = CORPORA.iter().map(|(key, _)| (*key).to_owned()).collect();
    for cell in study.cells.iter().filter(|cell| cell.table == table) {
        if !corpora.contains(&cell.corpus) {
            corpora.push(cell.corpus.clone());
        }
    }
    corpora
}

/// Our rows in the order they are met.
fn our_rows(study: &Study, table: TableName) -> Vec<String> {
    let mut rows: Vec<String> = Vec::new();
    for cell in study.cells.iter().filter(|cell| cell.table == table) {
        if !rows.contains(&cell.row) {
            rows.push(cell.row.clone());
        }
    }
    rows
}

fn find<'a>(study: &'a Study, table: TableName, row: &str, mix: Option<Mix>, corpus: &str) -> Option<&'a Cell> {
    study.cells.iter().find(|c| c.table == table && c.row == row && c.mix == mix && c.corpus == corpus)
}

fn percent(fraction: f64) -> String {
    format!("{:.2}", 100.0 * fraction)
}

fn bracketed(interval: Interval) -> String {
    format!("[{}, {}]", percent(interval.low), percent(interval.high))
}

fn counted(updates: u64) -> String {
    format!("{updates} update{}", if updates == 1 { "" } else { "s" })
}

/// Four decimals show all that two thousand draws can tell.
fn p_value(p: f64) -> String {
    format!("{p:.4}")
}
