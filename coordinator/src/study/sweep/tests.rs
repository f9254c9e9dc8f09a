use std::path::Path;

use insula_proto::{
    job::JobSpec,
    settings::{Layer, SettingsError, layered},
};
use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Sweep, SweepError> {
    Sweep::parse(Path::new("sweep.toml"), &format!("name = 's'\njob = 'job.toml'\n{text}"))
}

/// A job file that sets something, and a trial's assignments over it.
fn base(sets: &[String]) -> Result<JobSpec, SettingsError> {
    let file = Layer::File { path: "job.toml".into(), text: "corpus.path = 'somewhere'\ntrain.epochs = 2".into() };
    layered(&JobSpec::default(), &[file, Layer::CommandLine(sets.to_vec())])
}

fn trials(text: &str) -> Result<Vec<Trial>, SweepError> {
    expand(&parse(text)?, &base)
}

fn refusal(text: &str) -> String {
    trials(text).unwrap_err().to_string()
}

#[test]
fn a_grid_and_seeds_give_every_combination_seeds_fastest() {
    let text = "seeds = [1, 2]\n[set]\ntrain.batch = 8\n[grid]\ntrain.lr = [1e-4, 1e-3]\ndata.share = ['1', '1/2']";
    let trials = trials(text).unwrap();
    let names: Vec<_> = trials.iter().map(|trial| trial.name.as_str()).collect();
    let expected = [
        "s: share='1' lr=0.0001 seed=1",
        "s: share='1' lr=0.0001 seed=2",
        "s: share='1' lr=0.001 seed=1",
        "s: share='1' lr=0.001 seed=2",
        "s: share=1/2 lr=0.0001 seed=1",
        "s: share=1/2 lr=0.0001 seed=2",
        "s: share=1/2 lr=0.001 seed=1",
        "s: share=1/2 lr=0.001 seed=2",
    ];
    assert_eq!(names.iter().map(|name| name.replace('"', "'")).collect::<Vec<_>>(), expected);
    let last = &trials[7].spec;
    assert_eq!((last.seed, last.train.lr, last.train.batch, last.train.epochs), (2, 1e-3, 8, 2));
    assert_eq!((last.data.share.to_string(), last.corpus.path.as_str()), ("1/2".into(), "somewhere"));
    assert_eq!(last.name, trials[7].name);
    assert_eq!(trials.iter().map(|trial| trial.index).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
    let arms = arms(&trials);
    let places: Vec<_> = arms.iter().map(|(_, places)| places.clone()).collect();
    assert_eq!(places, [[0, 1], [2, 3], [4, 5], [6, 7]]);
    assert_eq!(arms[3].0, "data.share=1/2 train.lr=0.001");
}

#[test]
fn a_sweep_that_varies_nothing_is_its_job() {
    let trials = trials("").unwrap();
    assert_eq!((trials.len(), trials[0].name.as_str(), trials[0].arm().as_str()), (1, "s", ""));
    assert_eq!(trials[0].spec, JobSpec { name: "s".into(), ..base(&[]).unwrap() });
}

#[test]
fn lists_tables_and_texts_are_values_too() {
    let text = "[grid]\nadapter.targets = [['q'], ['q', 'v']]\ncorpus.rename = [{ Joy = 'a b' }, {}]\ncorpus.path = ['a#b', '7', ' c']";
    let trials = trials(text).unwrap();
    assert_eq!(trials.len(), 12);
    let spec = &trials[0].spec;
    assert_eq!((spec.corpus.path.as_str(), &spec.adapter.targets[..]), ("a#b", &["q".to_owned()][..]));
    assert_eq!(spec.corpus.rename["Joy"], "a b");
    let paths: Vec<_> = trials.iter().map(|trial| trial.spec.corpus.path.as_str()).collect();
    assert!(paths.contains(&"7") && paths.contains(&" c"), "{paths:?}");
}

#[test]
fn draws_lie_in_their_ranges_and_are_the_same_at_every_point_of_the_grid() {
    let text = "[grid]\ndata.window = [1, 5]\n[random]\ntrials = 20\nseed = 3\n[random.keys]\n\
        train.lr = { log = [1e-5, 1e-3] }\ntrain.warmup = { uniform = [0, 0.5] }\n\
        adapter.r = { integer = [4, 64] }\nadapter.alpha = { choice = [16, 32] }";
    let trials = trials(text).unwrap();
    assert_eq!(trials.len(), 40);
    for (one, five) in trials[..20].iter().zip(&trials[20..]) {
        assert_eq!((one.spec.data.window, five.spec.data.window), (1, 5));
        assert_eq!((&one.spec.train, &one.spec.adapter), (&five.spec.train, &five.spec.adapter));
        let (train, adapter) = (&one.spec.train, &one.spec.adapter);
        assert!((1e-5..=1e-3).contains(&train.lr) && (0.0..=0.5).contains(&train.warmup), "{one:?}");
        assert!((4..=64).contains(&adapter.r) && [16, 32].contains(&adapter.alpha), "{one:?}");
    }
    let small = trials[..20].iter().filter(|trial| trial.spec.train.lr < 1e-4).count();
    assert!((4..=16).contains(&small), "half of a logarithmic range lies below its middle: {small} of 20 do");
}

#[test]
fn another_key_changes_no_draw_and_another_seed_does() {
    let with = |seed: u32, more: &str| {
        let text =
            format!("[random]\ntrials = 9\nseed = {seed}\n[random.keys]\ntrain.lr = {{ log = [1e-5, 1e-3] }}\n{more}");
        trials(&text).unwrap().iter().map(|trial| trial.spec.train.lr).collect::<Vec<_>>()
    };
    assert_eq!(with(3, ""), with(3, "adapter.r = { integer = [4, 64] }"));
    assert_ne!(with(3, ""), with(4, ""));
}

#[test]
fn a_key_that_is_no_setting_is_refused_with_its_part_of_the_sweep_and_the_nearest_one() {
    let message = refusal("[grid]\ntrain.lrate = [1]");
    assert_eq!(message, "sweep.toml: unknown key 'train.lrate' in the sweep's [grid]: did you mean 'train.lr'?");
    let message = refusal("[random]\ntrials = 1\nseed = 1\n[random.keys]\ndata.windw = { integer = [1, 5] }");
    let expected = "unknown key 'data.windw' in the sweep's [random.keys]: did you mean 'data.window'?";
    assert_eq!(message, format!("sweep.toml: {expected}"));
    let message = refusal("[set]\nlr = 1e-4");
    assert_eq!(message, "sweep.toml: unknown key 'lr' in the sweep's [set]: did you mean 'train.lr'?");
    let message = refusal("[grid]\ntrain.epochs = [1, 'many']");
    assert!(message.contains("train.epochs") && message.contains("the sweep's [grid]"), "{message}");
}

#[test]
fn what_is_no_sweep_is_refused_with_what_was_expected() {
    let cases = [
        ("[grid]\ntrain.lr = 1e-4", "[grid] train.lr: expected a list of values, not empty"),
        ("[grid]\ntrain.lr = []", "[grid] train.lr: expected a list of values, not empty"),
        ("[grid]\ndata.window = [5, 1, 5]", "[grid] data.window: the value 5 stands there twice"),
        ("seeds = [1, 1]", "seeds: 1 stands there twice"),
        ("seeds = []", "seeds is empty: expected some seeds, or no such line"),
        ("seeds = [1]\n[grid]\nseed = [2]", "key 'seed' stands in [grid] and in seeds: expected one"),
        ("[set]\ntrain.lr = 1\n[grid]\ntrain.lr = [2]", "key 'train.lr' stands in [grid] and in [set]: expected one"),
        ("[grid]\nname = ['a']", "key 'name' in [grid]: a sweep names its trials itself"),
        ("[random]\ntrials = 0\nseed = 1\n[random.keys]", "[random] trials = 0: expected at least 1"),
        ("[random]\ntrials = 1\nseed = 1\n[random.keys]", "[random.keys] is empty: expected a key to draw"),
    ];
    for (text, expected) in cases {
        assert_eq!(refusal(text), format!("sweep.toml: {expected}"));
    }
    let unknown = refusal("[gird]\ntrain.lr = [1]");
    assert!(unknown.contains("unknown field `gird`"), "{unknown}");
    let matching = refusal("match = 'steps'");
    assert!(matching.contains("`epochs` or `updates`"), "{matching}");
    assert_eq!(parse("match = 'updates'").unwrap().matching, Match::Updates);
}

#[test]
fn a_range_that_is_none_is_refused() {
    let cases = [
        ("{ log = [0, 1] }", "expected two positive numbers, the smaller first"),
        ("{ log = [1e-3, 1e-5] }", "expected two positive numbers, the smaller first"),
        ("{ uniform = [1, 1] }", "expected two numbers, the smaller first"),
        ("{ uniform = [1] }", "expected two numbers, the smaller first"),
        ("{ integer = [1.5, 2] }", "expected two whole numbers, the smaller first"),
        ("{ choice = [] }", "expected some values"),
        ("{ log = [1, 2], uniform = [1, 2] }", "expected { choice = [..] }"),
        ("3", "expected { choice = [..] }"),
    ];
    for (range, expected) in cases {
        let message = refusal(&format!("[random]\ntrials = 1\nseed = 1\n[random.keys]\ntrain.lr = {range}"));
        assert!(message.contains("[random.keys] train.lr") && message.contains(expected), "{range}: {message}");
    }
}

#[test]
fn too_many_trials_and_too_few_draws_are_refused() {
    let seeds = |n: u32| format!("seeds = {:?}", (1..=n).collect::<Vec<_>>());
    let message = refusal(&format!("{}\n[grid]\ndata.window = {:?}", seeds(101), (0..100).collect::<Vec<_>>()));
    assert_eq!(message, "sweep 's' asks for 10100 trials: expected at most 10000");
    let random = |trials: u32| {
        let keys = "data.window = { integer = [1, 2] }\nadapter.r = { choice = [8, 16] }";
        format!("[random]\ntrials = {trials}\nseed = 5\n[random.keys]\n{keys}")
    };
    assert_eq!(trials(&random(4)).unwrap().len(), 4);
    let message = refusal(&random(5));
    assert!(message.contains("asks for 5 trials, but only 4 different ones were drawn"), "{message}");
}

#[test]
fn two_trials_of_one_job_are_refused_by_name() {
    let message = refusal("[grid]\ntrain.lr = [1, 1.0]");
    assert!(message.starts_with("trials 's: lr=1' and 's: lr=1.0' are the same job"), "{message}");
}

#[test]
fn with_equal_updates_a_corpus_alone_is_trained_as_long_as_the_mix_of_its_share() {
    // MELD alone and the mix of all three at 1/16, two epochs in updates of 16: 78 updates against 178.
    let job = |share: &str| {
        let mut job = JobSpec::default();
        (job.train.batch, job.train.epochs) = (16, 2);
        job.data.share = share.parse().unwrap();
        job
    };
    let mut jobs = [job("1/16"), job("1/16"), job("1/64")];
    let samples = [9989 / 16, (5163 + 9989 + 7551) / 16, 156];
    equal_updates(&mut jobs.iter_mut().collect::<Vec<_>>(), &samples);
    assert_eq!(jobs.map(|job| job.train.updates), [178, 178, 20]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_sweep_has_as_many_trials_as_its_sizes_multiply_to_and_repeats(
        windows in prop::collection::btree_set(0..40u32, 1..4),
        rates in prop::collection::btree_set(1..40u32, 1..4),
        seeds in prop::collection::btree_set(0..99u32, 1..3),
        draws in 1..4usize,
    ) {
        let rates: Vec<_> = rates.iter().map(|rate| f64::from(*rate) * 1e-5).collect();
        let windows: Vec<_> = windows.into_iter().collect();
        let lists = [format!("data.window = {windows:?}"), format!("train.lr = {rates:?}")];
        let written = |lists: [&String; 2]| format!(
            "seeds = {:?}\n[random]\ntrials = {draws}\nseed = 1\nkeys.adapter.r = {{ integer = [1, 64] }}\n[grid]\n{}\n{}",
            seeds.iter().collect::<Vec<_>>(), lists[0], lists[1],
        );
        let sweep = parse(&written([&lists[0], &lists[1]])).unwrap();
        let found = expand(&sweep, &base).unwrap();
        prop_assert_eq!(found.len(), windows.len() * rates.len() * seeds.len() * draws);
        prop_assert_eq!(found.len() as u64, sweep.count());
        // The order of the file's lines is nothing.
        prop_assert_eq!(&found, &expand(&parse(&written([&lists[1], &lists[0]])).unwrap(), &base).unwrap());
        // What a trial says it sets is what makes its job of the base's.
        for trial in &found {
            let sets: Vec<_> = trial.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
            prop_assert_eq!(&JobSpec { name: trial.name.clone(), ..base(&sets).unwrap() }, &trial.spec);
        }
        for (_, places) in arms(&found) {
            prop_assert_eq!(places.len(), seeds.len());
        }
    }
}
