//! Figures as SVG: scores over the share of the data, scores over the window, and who was taken for whom.
//!
//! Text is real text in the reader's own sans-serif, so no font is needed to draw it. Ink is `currentColor` and the
//! ground has the class `ground`, so that a page in dark colours can show a figure in its own. Series are told apart by
//! colour (Okabe and Ito's, for every kind of colour vision), by marker, and published ones by dashes.

mod chart;
mod heat;

use insula_proto::job::Share;
use maud::{Markup, html};

use self::chart::{Chart, Line, Panel, Point, Tick};
use super::{
    published::{CORPORA, Group, Mix, Published},
    statistics::Interval,
};
pub use heat::confusion;

/// Pixels from left to right: what a page or a slide has room for.
const WIDTH: f64 = 900.0;

/// Okabe and Ito's blue, vermillion, bluish green, reddish purple and orange.
const COLOURS: [&str; 5] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"];

/// One result of ours in the figure of data scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalingPoint {
    /// Key of the corpus.
    pub corpus: String,
    /// How the corpora were put together.
    pub mix: Mix,
    /// Part of the training samples.
    pub share: Share,
    /// Weighted F1, a fraction.
    pub weighted_f1: f64,
    /// 95%, fractions.
    pub interval: Option<Interval>,
}

/// One result of ours in the figure of windows.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowPoint {
    /// Key of the corpus.
    pub corpus: String,
    /// Preceding utterances shown.
    pub window: u32,
    /// Weighted F1, a fraction.
    pub weighted_f1: f64,
    /// 95%, fractions.
    pub interval: Option<Interval>,
}

/// Weighted F1 over the share of the training data, a panel for each corpus: ours solid, with 95% intervals; the paper's
/// dashed.
pub fn scaling(points: &[ScalingPoint], published: &Published) -> String {
    let ours = points.iter().map(|p| {
        let point = Point { x: logarithm(p.share), y: 100.0 * p.weighted_f1, interval: p.interval.map(per_cent) };
        (p.corpus.as_str(), p.mix as usize, p.share.to_string(), point)
    });
    let theirs = published.group(Group::DataScaling).flat_map(|row| {
        let share = row.setting.as_deref().and_then(|text| text.parse::<Share>().ok());
        let of = move |(corpus, score): (&'static str, f64)| {
            let (share, mix) = share.zip(row.mix)?;
            Some((corpus, mix as usize, share.to_string(), Point { x: logarithm(share), y: score, interval: None }))
        };
        scores(&row.scores).filter_map(of)
    });
    chart(
        ours.collect(),
        theirs.collect(),
        Frame {
            title: "Weighted F1 over the share of the training data",
            x: "share of the training samples (log2)",
            series: Mix::ALL.map(|mix| mix.as_str().to_owned()).to_vec(),
        },
    )
}

/// Weighted F1 over the window, a panel for each corpus: ours solid, with 95% intervals; the paper's dashed.
pub fn window(points: &[WindowPoint], published: &Published) -> String {
    let ours = points.iter().map(|p| {
        let point = Point { x: f64::from(p.window), y: 100.0 * p.weighted_f1, interval: p.interval.map(per_cent) };
        (p.corpus.as_str(), 0, p.window.to_string(), point)
    });
    let theirs = published.group(Group::Window).flat_map(|row| {
        let window = row.setting.as_deref().and_then(|text| text.parse::<u32>().ok());
        scores(&row.scores).filter_map(move |(corpus, score)| {
            let window = window?;
            Some((corpus, 0, window.to_string(), Point { x: f64::from(window), y: score, interval: None }))
        })
    });
    chart(
        ours.collect(),
        theirs.collect(),
        Frame {
            title: "Weighted F1 over the window",
            x: "window (preceding utterances)",
            series: vec!["InstructERC".into()],
        },
    )
}

/// What a chart says besides its points.
struct Frame {
    title: &'static str,
    x: &'static str,
    series: Vec<String>,
}

/// Corpus, series, text of the tick, point.
type Placed<'a> = (&'a str, usize, String, Point);

fn chart(ours: Vec<Placed>, theirs: Vec<Placed>, frame: Frame) -> String {
    let mut ticks: Vec<Tick> = Vec::new();
    for (_, _, text, point) in ours.iter().chain(&theirs) {
        if ticks.iter().all(|tick| tick.text != *text) {
            ticks.push(Tick { x: point.x, text: text.clone() });
        }
    }
    ticks.sort_by(|a, b| a.x.total_cmp(&b.x));
    let mut corpora: Vec<&str> = CORPORA.iter().map(|(key, _)| *key).collect();
    for (corpus, ..) in &ours {
        if !corpora.contains(corpus) {
            corpora.push(corpus);
        }
    }
    let panel = |corpus: &str| {
        let line = |published: bool, placed: &[Placed], series: usize| {
            let of_line = placed.iter().filter(|(c, s, ..)| *c == corpus && *s == series);
            let mut points: Vec<_> = of_line.map(|(_, _, _, point)| *point).filter(Point::is_finite).collect();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            Line { series, published, points }
        };
        let series = 0..frame.series.len();
        let theirs = series.clone().map(|series| line(true, &theirs, series));
        let lines = theirs.chain(series.map(|series| line(false, &ours, series)));
        Panel { title: corpus_name(corpus), lines: lines.filter(|line| !line.points.is_empty()).collect() }
    };
    let panels = corpora.iter().map(|corpus| panel(corpus)).filter(|panel| !panel.lines.is_empty()).collect();
    let (title, x_label) = (frame.title.into(), frame.x.into());
    chart::draw(&Chart { title, x_label, y_label: "weighted F1, per cent".into(), ticks, series: frame.series, panels })
}

fn scores(scores: &std::collections::BTreeMap<String, f64>) -> impl Iterator<Item = (&'static str, f64)> + '_ {
    CORPORA.iter().filter_map(|(key, _)| scores.get(*key).map(|score| (*key, *score)))
}

fn logarithm(share: Share) -> f64 {
    const WHOLE: u64 = 1 << 40; // a share of it is exact enough for a pixel
    (share.of(WHOLE) as f64 / WHOLE as f64).log2()
}

fn per_cent(interval: Interval) -> Interval {
    Interval { low: 100.0 * interval.low, high: 100.0 * interval.high }
}

/// The name people read, or the key where the paper has no such corpus.
pub(super) fn corpus_name(key: &str) -> String {
    CORPORA.iter().find(|(known, _)| *known == key).map_or(key, |(_, name)| name).to_owned()
}

/// A whole SVG document of this height around `body`.
fn document(title: &str, width: f64, height: f64, body: &Markup) -> String {
    let title = clean(title);
    let markup = html! {
        svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label=(title) color="#1f2328" font-family="sans-serif"
            font-size="12" width=(px(width)) height=(px(height)) viewBox={"0 0 " (px(width)) " " (px(height))} {
            title { (title) }
            rect class="ground" width=(px(width)) height=(px(height)) fill="#ffffff" {}
            g fill="currentColor" { (body) }
        }
    };
    markup.into_string()
}

/// A length in pixels with one decimal at most.
fn px(length: f64) -> String {
    let tenths = (length * 10.0).round() / 10.0;
    if tenths == 0.0 { "0".into() } else { tenths.to_string() }
}

/// People's text without what XML cannot hold.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { '\u{fffd}' } else { c }).collect()
}

/// At most `letters` letters.
fn cut(text: &str, letters: usize) -> String {
    let text = clean(text);
    if text.chars().count() <= letters {
        return text;
    }
    text.chars().take(letters.saturating_sub(1)).chain(['\u{2026}']).collect()
}

/// How wide a text of 12 pixels is, about: real widths are the reader's font's.
fn text_width(text: &str) -> f64 {
    6.8 * text.chars().count() as f64
}

#[cfg(test)]
mod tests;
