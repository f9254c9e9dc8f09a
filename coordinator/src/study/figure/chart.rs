//! Lines over one axis in panels side by side, and a legend over them.

use maud::{Markup, html};

use super::{COLOURS, WIDTH, clean, cut, document, px, text_width};
use crate::study::statistics::Interval;

/// Panels in a row.
const ACROSS: usize = 3;
/// A panel's plot, pixels.
const PLOT: (f64, f64) = (246.0, 250.0);
/// Room left of a plot for its numbers, and above it for its name.
const MARGIN: (f64, f64) = (44.0, 24.0);
/// Room under a plot for ticks and the axis' name.
const BELOW: f64 = 46.0;
/// Room left of all panels for the name of their y axis.
const SIDE: f64 = 22.0;
/// Height of a legend's row.
const ROW: f64 = 20.0;
/// Pixels that a series is moved aside of the next, so that intervals do not hide each other.
const ASIDE: f64 = 5.0;

/// A chart; `y` is in per cent.
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x_label: String,
    pub(super) y_label: String,
    /// Ascending.
    pub(super) ticks: Vec<Tick>,
    /// What a line's `series` is called.
    pub(super) series: Vec<String>,
    pub(super) panels: Vec<Panel>,
}

/// A mark on the x axis.
pub(super) struct Tick {
    pub(super) x: f64,
    pub(super) text: String,
}

/// One plot.
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) lines: Vec<Line>,
}

/// One series of one source.
pub(super) struct Line {
    pub(super) series: usize,
    pub(super) published: bool,
    /// Ascending in x, all finite.
    pub(super) points: Vec<Point>,
}

/// One result.
#[derive(Clone, Copy)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) interval: Option<Interval>,
}

impl Point {
    pub(super) fn is_finite(&self) -> bool {
        let ends = self.interval.map_or([0.0; 2], |i| [i.low, i.high]);
        [self.x, self.y, ends[0], ends[1]].iter().all(|number| number.is_finite())
    }
}

/// The chart as an SVG document.
pub(super) fn draw(chart: &Chart) -> String {
    let legend = legend(chart);
    let top = 40.0 + legend.1;
    let cell = (MARGIN.0 + PLOT.0, MARGIN.1 + PLOT.1 + BELOW);
    let rows = chart.panels.len().div_ceil(ACROSS).max(1);
    let place = |index: usize| {
        let (column, row) = ((index % ACROSS) as f64, (index / ACROSS) as f64);
        (SIDE + MARGIN.0 + column * cell.0, top + MARGIN.1 + row * cell.1)
    };
    let height = top + rows as f64 * cell.1 + 4.0;
    let middle = top + MARGIN.1 + PLOT.1 / 2.0;
    let body = html! {
        text x=(px(SIDE)) y="24" font-size="15" font-weight="bold" { (clean(&chart.title)) }
        (legend.0)
        text transform={"translate(14 " (px(middle)) ") rotate(-90)"} text-anchor="middle" { (chart.y_label) }
        @if chart.panels.is_empty() {
            text x=(px(WIDTH / 2.0)) y=(px(middle)) text-anchor="middle" { "no results" }
        }
        @for (index, panel) in chart.panels.iter().enumerate() { (plot(chart, panel, place(index))) }
    };
    document(&chart.title, WIDTH, height, &body)
}

/// A row for each source that has lines, and the rows' height.
fn legend(chart: &Chart) -> (Markup, f64) {
    let lines = || chart.panels.iter().flat_map(|panel| &panel.lines);
    let sources = [(false, "ours, 95% interval"), (true, "paper, LLaMA2-7B")];
    let used: Vec<_> =
        sources.into_iter().filter(|(published, _)| lines().any(|l| l.published == *published)).collect();
    let has = |series: usize, published: bool| lines().any(|l| l.series == series && l.published == published);
    let column = (WIDTH - SIDE - 20.0) / chart.series.len().max(3) as f64;
    let markup = html! {
        @for (row, (published, source)) in used.iter().enumerate() {
            @for (index, name) in chart.series.iter().enumerate().filter(|(index, _)| has(*index, *published)) {
                @let (x, y) = (SIDE + column * index as f64, 46.0 + ROW * row as f64);
                (stroke(index, *published, &[(x, y - 4.0), (x + 34.0, y - 4.0)]))
                (marker(index, *published, (x + 17.0, y - 4.0)))
                text x=(px(x + 42.0)) y=(px(y)) { (clean(name)) ", " (source) }
            }
        }
    };
    (markup, ROW * used.len() as f64)
}

/// Maps a panel's values to pixels.
struct Scale {
    origin: (f64, f64),
    x: (f64, f64),
    y: (f64, f64),
}

impl Scale {
    fn of(chart: &Chart, panel: &Panel, origin: (f64, f64)) -> Self {
        let points = || panel.lines.iter().flat_map(|line| &line.points);
        let heights =
            points().flat_map(|p| [Some(p.y), p.interval.map(|i| i.low), p.interval.map(|i| i.high)]).flatten();
        let xs = chart.ticks.iter().map(|tick| tick.x);
        let (x, y) = (padded(span(xs), 0.05), padded(span(heights), 0.06));
        Self { origin, x, y: (y.0.max(0.0), y.1.min(100.0).max(y.0.max(0.0) + 1.0)) }
    }

    fn x(&self, value: f64) -> f64 {
        self.origin.0 + PLOT.0 * (value - self.x.0) / (self.x.1 - self.x.0)
    }

    fn y(&self, value: f64) -> f64 {
        self.origin.1 + PLOT.1 * (self.y.1 - value) / (self.y.1 - self.y.0)
    }
}

fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

fn padded((low, high): (f64, f64), part: f64) -> (f64, f64) {
    let room = if high > low { (high - low) * part } else { 0.5 };
    (low - room, high + room)
}

fn plot(chart: &Chart, panel: &Panel, origin: (f64, f64)) -> Markup {
    let scale = Scale::of(chart, panel, origin);
    let (right, bottom) = (origin.0 + PLOT.0, origin.1 + PLOT.1);
    html! {
        g {
            text x=(px(origin.0)) y=(px(origin.1 - 8.0)) font-weight="bold" { (cut(&panel.title, 34)) }
            @for (value, text) in heights(scale.y) {
                @let y = px(scale.y(value));
                line x1=(px(origin.0)) x2=(px(right)) y1=(y) y2=(y) stroke="currentColor" stroke-opacity="0.15" {}
                text x=(px(origin.0 - 6.0)) y=(px(scale.y(value) + 4.0)) text-anchor="end" { (text) }
            }
            @for (tick, shown) in chart.ticks.iter().zip(with_room(chart, &scale)) {
                @let x = px(scale.x(tick.x));
                line x1=(x) x2=(x) y1=(px(bottom)) y2=(px(bottom + 5.0)) stroke="currentColor" {}
                @if shown { text x=(x) y=(px(bottom + 18.0)) text-anchor="middle" { (tick.text) } }
            }
            path d={"M" (px(origin.0)) " " (px(origin.1)) "V" (px(bottom)) "H" (px(right))} fill="none"
                stroke="currentColor" {}
            text x=(px(origin.0 + PLOT.0 / 2.0)) y=(px(bottom + 36.0)) text-anchor="middle" { (chart.x_label) }
            @for line in &panel.lines { (series(chart, panel, line, &scale)) }
        }
    }
}

/// Which ticks have room for their text beside the one before.
fn with_room(chart: &Chart, scale: &Scale) -> Vec<bool> {
    let mut end = f64::NEG_INFINITY;
    let shown = |tick: &Tick| {
        let (x, half) = (scale.x(tick.x), text_width(&tick.text) / 2.0);
        let fits = x - half > end;
        if fits {
            end = x + half + 3.0;
        }
        fits
    };
    chart.ticks.iter().map(shown).collect()
}

/// A handful of round numbers between two.
pub(super) fn heights((low, high): (f64, f64)) -> Vec<(f64, String)> {
    let rough = (high - low) / 6.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let decimals = usize::from(step < 1.0) + usize::from(step < 0.1);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|n| n as f64 * step).map(|value| (value, format!("{value:.decimals$}"))).collect()
}

fn series(chart: &Chart, panel: &Panel, line: &Line, scale: &Scale) -> Markup {
    let aside =
        if line.published { 0.0 } else { (line.series as f64 - (chart.series.len() as f64 - 1.0) / 2.0) * ASIDE };
    let at = |point: &Point| (scale.x(point.x) + aside, scale.y(point.y));
    let places: Vec<_> = line.points.iter().map(at).collect();
    let colour = COLOURS[line.series % COLOURS.len()];
    let name = chart.series.get(line.series).map_or("", String::as_str);
    html! {
        @if places.len() > 1 { (stroke(line.series, line.published, &places)) }
        @for (point, place) in line.points.iter().zip(&places) {
            g {
                title { (clean(&told(chart, panel, name, line.published, point))) }
                @if let Some(interval) = point.interval {
                    @let (x, low, high) = (place.0, scale.y(interval.low), scale.y(interval.high));
                    path d={
                        "M" (px(x)) " " (px(low)) "V" (px(high))
                        "M" (px(x - 3.0)) " " (px(low)) "h6" "M" (px(x - 3.0)) " " (px(high)) "h6"
                    } fill="none" stroke=(colour) stroke-width="1.2" {}
                }
                (marker(line.series, line.published, *place))
            }
        }
    }
}

/// A point in words, for whoever points at it.
fn told(chart: &Chart, panel: &Panel, name: &str, published: bool, point: &Point) -> String {
    let at = chart.ticks.iter().find(|tick| tick.x == point.x).map_or("", |tick| tick.text.as_str());
    let source = if published { "paper" } else { "ours" };
    let interval = point.interval.map(|i| format!(" (95%: {:.2} to {:.2})", i.low, i.high)).unwrap_or_default();
    format!("{}, {name}, {at}, {source}: {:.2}{interval}", panel.title, point.y)
}

fn stroke(series: usize, published: bool, places: &[(f64, f64)]) -> Markup {
    let points: Vec<_> = places.iter().map(|(x, y)| format!("{},{}", px(*x), px(*y))).collect();
    let (dashes, opacity) = if published { (Some("5 4"), "0.8") } else { (None, "1") };
    html! {
        polyline points=(points.join(" ")) fill="none" stroke=(COLOURS[series % COLOURS.len()]) stroke-width="1.8"
            stroke-linejoin="round" stroke-opacity=(opacity) stroke-dasharray=[dashes] {}
    }
}

/// Circle, square, triangle, in turn; hollow where published.
fn marker(series: usize, published: bool, (x, y): (f64, f64)) -> Markup {
    let d = match series % 3 {
        0 => format!("M{} {}a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z", px(x - 3.6), px(y)),
        1 => format!("M{} {}h6.4v6.4h-6.4z", px(x - 3.2), px(y - 3.2)),
        _ => format!("M{} {}l4.2 7.4h-8.4z", px(x), px(y - 4.6)),
    };
    let colour = COLOURS[series % COLOURS.len()];
    let (fill, width) = if published { ("none", "1.2") } else { (colour, "0") };
    html! { path d=(d) fill=(fill) stroke=(colour) stroke-width=(width) {} }
}
