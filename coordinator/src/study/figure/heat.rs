//! Who was taken for whom: counts, and per cent of each gold label.

use maud::{Markup, html};

use super::{clean, cut, document, px};
use crate::report::Confusion;

/// A cell, pixels.
const CELL: (f64, f64) = (76.0, 42.0);
/// Room left of the cells for gold labels.
const LEFT: f64 = 150.0;
/// Room above the cells for answers.
const TOP: f64 = 86.0;
/// Between the labels and the unreadable answers.
const GAP: f64 = 10.0;
/// Letters of a label that fit beside a row.
const LETTERS: usize = 13;
/// The blue of the ramp: opaque where all of a row is.
const INK: &str = "#0072B2";

/// A confusion as a heat map: each row is in per cent of its gold label's utterances, counts under the per cents, the
/// unreadable answers in a column apart.
pub fn confusion(title: &str, confusion: &Confusion) -> String {
    let columns = confusion.columns.len();
    let left = |column: usize| LEFT + CELL.0 * column as f64 + if column + 1 == columns { GAP } else { 0.0 };
    let rows = confusion.rows.len() as f64;
    // The last head leans to the right of its column.
    let (width, height) = (left(columns.saturating_sub(1)) + CELL.0 + 40.0, TOP + CELL.1 * rows + 34.0);
    let body = html! {
        text x="14" y="24" font-size="15" font-weight="bold" { (cut(title, (width / 9.0) as usize)) }
        @for (column, name) in confusion.columns.iter().enumerate() {
            @let (x, y) = (px(left(column) + CELL.0 / 2.0 - 8.0), px(TOP - 8.0));
            text transform={"translate(" (x) " " (y) ") rotate(-25)"} { title { (clean(name)) } (cut(name, LETTERS)) }
        }
        @for (row, (name, counts)) in confusion.rows.iter().zip(&confusion.counts).enumerate() {
            @let top = TOP + CELL.1 * row as f64;
            @let total: u64 = counts.iter().sum();
            text x=(px(LEFT - 8.0)) y=(px(top + CELL.1 / 2.0 - 1.0)) text-anchor="end" {
                title { (clean(name)) } (cut(name, LETTERS))
            }
            text x=(px(LEFT - 8.0)) y=(px(top + CELL.1 / 2.0 + 13.0)) text-anchor="end" font-size="10"
                fill-opacity="0.7" { (total) " utterances" }
            @for (column, count) in counts.iter().enumerate() {
                (cell((left(column), top), *count, total, row == column))
            }
        }
        text x=(px(LEFT)) y=(px(height - 12.0)) font-size="11" fill-opacity="0.7" {
            "rows: gold label; columns: answer; per cent of the row, count below"
        }
    };
    document(title, width, height, &body)
}

/// One cell; right answers are framed.
fn cell((left, top): (f64, f64), count: u64, total: u64, right: bool) -> Markup {
    let part = if total == 0 { 0.0 } else { count as f64 / total as f64 };
    let middle = px(left + CELL.0 / 2.0);
    // Below four fifths the ramp on white is so light that dark ink has the greater contrast.
    let ink = if part > 0.8 { "#ffffff" } else { "currentColor" };
    let (frame, strength) = if right { ("currentColor", "0.7") } else { ("currentColor", "0.12") };
    html! {
        rect x=(px(left + 1.0)) y=(px(top + 1.0)) width=(px(CELL.0 - 2.0)) height=(px(CELL.1 - 2.0)) fill=(INK)
            fill-opacity=(format!("{:.3}", part)) stroke=(frame) stroke-opacity=(strength) {}
        g text-anchor="middle" fill=(ink) {
            @if total == 0 {
                text x=(middle) y=(px(top + CELL.1 / 2.0 + 4.0)) { "-" }
            } @else {
                text x=(middle) y=(px(top + CELL.1 / 2.0 - 1.0)) { (format!("{:.1}", 100.0 * part)) }
                text x=(middle) y=(px(top + CELL.1 / 2.0 + 13.0)) font-size="10" { (count) }
            }
        }
    }
}
