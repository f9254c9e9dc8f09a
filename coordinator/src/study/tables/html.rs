//! A study as one HTML page that needs nothing else: styles and figures are in it, in light and dark.

use insula_proto::VERSION;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    Figure, JobSource, Study,
    layout::{self, Column, Entry, Grid, Line, Source},
};
use crate::{
    report::COMMIT,
    study::{figure::corpus_name, published::Published},
};

const STYLE: &str = include_str!("style.css");

/// The whole study as a page.
pub fn render(study: &Study, published: &Published) -> String {
    let grids = layout::grids(study, published);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (study.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (study.title) }
                    p.notes { (study.notes_line()) "." }
                    nav {
                        @for grid in &grids { a href={"#" (grid.id)} { (short(grid.title)) } " " }
                        @for figure in &study.figures { a href={"#figure-" (figure.id)} { "Figure: " (figure.title) } " " }
                        a href="#provenance" { "Provenance" }
                    }
                }
                main {
                    (warnings(study))
                    p.key { span.tag.ours { "ours" } " computed by insula for this page; " span.tag { "published" } " copied from print, run by nobody here." }
                    @for grid in &grids { (table(grid)) }
                    @for figure in &study.figures { (drawn(figure)) }
                    (provenance(study, published))
                }
                footer { "insula " (VERSION) " (" (COMMIT) ")" }
            }
        }
    };
    page.into_string()
}

/// A title up to its first comma or colon, for the list of links.
fn short(title: &str) -> &str {
    title.split([',', ':']).next().unwrap_or(title)
}

fn warnings(study: &Study) -> Markup {
    html! {
        @if !study.warnings.is_empty() {
            section.warnings {
                h2 { "Warnings" }
                ul { @for warning in &study.warnings { li { (warning) } } }
            }
        }
    }
}

fn table(grid: &Grid) -> Markup {
    html! {
        section id=(grid.id) {
            h2 { (grid.title) }
            div.scroll {
                table {
                    thead { (heads(&grid.columns)) }
                    tbody { @for line in &grid.lines { (row(line, &grid.columns)) } }
                }
            }
            @if !grid.footnotes.is_empty() {
                ol.footnotes { @for note in &grid.footnotes { li { (note) } } }
            }
            @for about in &grid.about { p.about { (about) } }
        }
    }
}

/// One row of heads, or two where columns have groups.
fn heads(columns: &[Column]) -> Markup {
    let groups: Vec<&[Column]> = columns.chunk_by(|a, b| a.group == b.group).collect();
    let grouped = columns.iter().any(|column| !column.group.is_empty());
    html! {
        @if grouped {
            tr { th rowspan="2" {} @for group in &groups { th.group.first scope="colgroup" colspan=(group.len()) { (group[0].group) } } }
        }
        tr { @if !grouped { th {} } @for group in &groups { @for (place, column) in group.iter().enumerate() {
            th.first[grouped && place == 0] scope="col" { (column.name) }
        } } }
    }
}

fn row(line: &Line, columns: &[Column]) -> Markup {
    let wide = columns.len() + 1;
    let begins = |place: usize| place == 0 || columns[place].group != columns[place - 1].group;
    let grouped = columns.iter().any(|column| !column.group.is_empty());
    match line {
        Line::Section(title) => html! { tr.section { th scope="rowgroup" colspan=(wide) { (title) } } },
        Line::Row { head, source, entries } => html! {
            tr.ours[*source == Some(Source::Ours)].published[*source == Some(Source::Published)] {
                th scope="row" {
                    (head)
                    @if let Some(source) = source { " " span.tag.ours[*source == Source::Ours] { (source.as_str()) } }
                }
                @for (place, entry) in entries.iter().enumerate() { (cell(entry, grouped && begins(place))) }
            }
        },
    }
}

/// `first`: a new group of columns begins here.
fn cell(entry: &Entry, first: bool) -> Markup {
    html! {
        td.first[first] {
            span.value { (entry.text) }
            @if let Some(number) = entry.footnote { sup { (number) } }
            @for small in &entry.small { div.small { (small) } }
        }
    }
}

fn drawn(figure: &Figure) -> Markup {
    html! {
        section id={"figure-" (figure.id)} {
            h2 { "Figure: " (figure.title) }
            figure {
                div.scroll { (PreEscaped(&figure.svg)) }
                figcaption { (figure.caption) }
            }
        }
    }
}

fn provenance(study: &Study, published: &Published) -> Markup {
    html! {
        section id="provenance" {
            h2 { "Provenance" }
            p { "Published numbers:" }
            ul { @for (key, note) in &published.sources { li { b { (key) } ": " (note) } } }
            details {
                summary { "Jobs of each number" }
                div.scroll { table.plain {
                    thead { tr { @for head in ["number", "seeds", "samples", "updates", "jobs"] { th scope="col" { (head) } } } }
                    tbody { (numbers(study)) }
                } }
            }
            details {
                summary { "What each job was made from (" (study.jobs.len()) ")" }
                @for job in &study.jobs { (source(job)) }
            }
        }
    }
}

fn numbers(study: &Study) -> Markup {
    let links = |jobs: &[String]| {
        html! { @for job in jobs { a href={"#job-" (job)} title=(job) { (job.chars().take(8).collect::<String>()) } " " } }
    };
    let count = |count: Option<u64>| count.map_or("-".into(), |count| count.to_string());
    html! {
        @for c in study.cells.iter().filter(|cell| !cell.jobs.is_empty()) {
            tr {
                td { (format!("{:?}", c.table)) ": " (c.row) @if let Some(mix) = c.mix { ", " (mix.as_str()) } ", " (corpus_name(&c.corpus)) }
                td { @for seed in &c.seeds { (seed) " " } }
                td { (count(c.samples)) }
                td { (count(c.updates)) }
                td { (links(&c.jobs)) }
            }
        }
        @for figure in study.figures.iter().filter(|figure| !figure.jobs.is_empty()) {
            tr { td colspan="4" { "Figure: " (figure.title) } td { (links(&figure.jobs)) } }
        }
    }
}

fn source(job: &JobSource) -> Markup {
    let seed = job.seed.to_string();
    let lines = [
        ("job", &job.job),
        ("corpus", &job.corpus),
        ("corpus digest", &job.corpus_digest),
        ("base", &job.base),
        ("base digest", &job.base_digest),
        ("seed", &seed),
        ("commit", &job.commit),
    ];
    html! {
        div.job id={"job-" (job.job)} {
            h3 { (job.name) }
            dl {
                @for (name, value) in lines { dt { (name) } dd { code { (value) } } }
                dt { "recipe" } dd { pre { (job.recipe) } }
            }
        }
    }
}
