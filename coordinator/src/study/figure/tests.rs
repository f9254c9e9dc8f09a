use super::*;
use crate::report::Confusion;

/// Panics where elements do not nest, as XML asks.
fn check_xml(svg: &str) {
    let mut open: Vec<&str> = Vec::new();
    for part in svg.split('<').skip(1) {
        let (tag, text) = part.split_once('>').expect("a tag ends");
        assert!(!text.contains('>'), "{text}");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "in {svg}"),
            None => open.push(tag.split_whitespace().next().expect("a tag has a name")),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

fn points() -> Vec<ScalingPoint> {
    let point = |corpus: &str, mix, share: &str, weighted_f1: f64| ScalingPoint {
        corpus: corpus.into(),
        mix,
        share: share.parse().unwrap(),
        weighted_f1,
        interval: Some(Interval { low: weighted_f1 - 0.03, high: weighted_f1 + 0.03 }),
    };
    let mixes = |corpus: &'static str, start: f64| {
        Mix::ALL.into_iter().enumerate().flat_map(move |(n, mix)| {
            let shares = ["1", "1/2", "1/4", "1/8", "1/16", "1/32", "1/64"].into_iter().enumerate();
            shares.map(move |(k, share)| point(corpus, mix, share, start - 0.02 * n as f64 - 0.025 * k as f64))
        })
    };
    mixes("iemocap", 0.62).chain(mixes("meld", 0.60)).chain(mixes("emorynlp", 0.36)).collect()
}

#[test]
fn the_scaling_figure_has_a_panel_for_each_corpus_and_every_point_of_both() {
    let svg = scaling(&points(), &Published::instructerc());
    check_xml(&svg);
    for name in ["IEMOCAP", "MELD", "EmoryNLP", "total mix, ours", "single, paper, LLaMA2-7B", "1/64"] {
        assert!(svg.contains(name), "{name}");
    }
    assert_eq!((svg.matches(", ours: ").count(), svg.matches(", paper: ").count()), (63, 63));
    assert!(svg.contains("MELD, ratio mix, 1/16, ours: 48.00 (95%: 45.00 to 51.00)"));
    assert!(svg.contains("IEMOCAP, single, 1/64, paper: 30.34"));
    assert!(svg.contains("stroke-dasharray"));
}

#[test]
fn a_corpus_the_paper_lacks_has_a_panel_of_its_own_and_text_is_escaped() {
    let point =
        |window, weighted_f1, interval| WindowPoint { corpus: "a<b & \"c\"".into(), window, weighted_f1, interval };
    let svg = window(&[point(3, 0.5, None), point(4, f64::NAN, None)], &Published::instructerc());
    check_xml(&svg);
    assert!(svg.contains("a&lt;b &amp; &quot;c&quot;, InstructERC, 3, ours: 50.00"), "{svg}");
    assert!(!svg.contains("NaN"));
}

#[test]
fn a_figure_of_nothing_says_so() {
    let nothing = Published { sources: Default::default(), rows: vec![] };
    let svg = scaling(&[], &nothing);
    check_xml(&svg);
    assert!(svg.contains("no results") && !svg.contains("NaN") && !svg.contains("inf"));
}

#[test]
fn a_confusion_shows_parts_of_each_row_and_the_unreadable_apart() {
    let names = ["happy", "a label that is far too long for it", "sad\u{1}"].map(String::from).to_vec();
    let columns = names.iter().cloned().chain(["unreadable".to_owned()]).collect();
    let counts = vec![vec![3, 0, 0, 1], vec![0, 0, 0, 0], vec![0, 1, 1, 0]];
    let svg = confusion("MELD, trained", &Confusion { rows: names, columns, counts });
    check_xml(&svg);
    for text in [">75.0<", ">25.0<", ">50.0<", ">4 utterances<", ">unreadable<", "sad\u{fffd}"] {
        assert!(svg.contains(text), "{text}");
    }
    assert_eq!(svg.matches(">-<").count(), 4, "a row of no utterances has no parts");
    assert!(svg.contains(">a label that\u{2026}<"), "{svg}");
}

#[test]
fn ticks_are_round_numbers_within_their_range() {
    let texts = |low, high| chart::heights((low, high)).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
    assert_eq!(texts(28.0, 73.0), ["30", "40", "50", "60", "70"]);
    assert_eq!(texts(40.1, 41.4), ["40.5", "41.0"]);
    assert_eq!(texts(0.0, 10.0), ["0", "2", "4", "6", "8", "10"]);
}
