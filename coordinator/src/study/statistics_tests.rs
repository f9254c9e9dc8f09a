use proptest::prelude::*;

use super::*;

fn answered(dialogue: &str, pairs: &[(u16, Option<u16>)]) -> Vec<Answered> {
    pairs.iter().map(|&(gold, label)| Answered { dialogue: dialogue.into(), gold, label }).collect()
}

/// Dialogues `0`, `1`, ... of these answers.
fn dialogues(parts: &[Vec<(u16, Option<u16>)>]) -> Vec<Answered> {
    parts.iter().enumerate().flat_map(|(name, pairs)| answered(&name.to_string(), pairs)).collect()
}

fn arm(parts: &[Vec<(u16, Option<u16>)>]) -> ArmAnswers {
    ArmAnswers::new(3, &[dialogues(parts)]).unwrap()
}

const FEW: Bootstrap = Bootstrap { draws: 200, seed: 7 };

#[test]
fn a_summary_has_the_sample_standard_deviation() {
    // numpy: np.std([2, 4, 4, 4, 5, 5, 7, 9], ddof=1) = 2.138089935299395
    let found = summary(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
    assert_eq!((found.count, found.mean), (8, 5.0));
    assert!((found.sd.unwrap() - 2.138089935299395).abs() < 1e-15);
    assert_eq!(summary(&[0.5]), Some(Summary { count: 1, mean: 0.5, sd: None }));
    assert_eq!(summary(&[]), None);
}

#[test]
fn percentiles_are_numpys() {
    // np.percentile(np.arange(2000.) ** 2, [2.5, 97.5]) = [2497.525, 3798698.475]
    let squares: Vec<_> = (0..2000).map(|n| f64::from(n * n)).collect();
    let found = percentiles(&squares);
    assert!((found.low - 2497.525).abs() < 1e-6 && (found.high - 3798698.475).abs() < 1e-6, "{found:?}");
}

#[test]
fn an_arm_that_is_always_right_is_certain_and_beats_one_that_is_always_wrong() {
    let gold = [vec![0, 1, 2], vec![1], vec![2, 2, 0]];
    let saying = |say: fn(u16) -> Option<u16>| -> Vec<_> {
        gold.iter().map(|dialogue| dialogue.iter().map(|&g| (g, say(g))).collect()).collect()
    };
    let (right, wrong) = (arm(&saying(Some)), arm(&saying(|g| Some((g + 1) % 3))));
    let unreadable = arm(&saying(|_| None));
    assert_eq!(interval(&right, Bootstrap::default()), Ok(Interval { low: 1.0, high: 1.0 }));
    assert_eq!(interval(&wrong, FEW), Ok(Interval { low: 0.0, high: 0.0 }));
    for loser in [&wrong, &unreadable] {
        let found = compare(&right, loser, Bootstrap::default()).unwrap();
        assert_eq!((found.difference, found.interval), (1.0, Interval { low: 1.0, high: 1.0 }));
        assert_eq!(found.p_value, 2.0 / 2001.0);
    }
}

#[test]
fn two_dialogues_of_which_one_is_right_say_nothing() {
    let half = arm(&[vec![(0, Some(0)), (1, Some(1))], vec![(0, None), (1, None)]]);
    // A quarter of the draws picks the right one twice, a quarter the wrong one twice.
    assert_eq!(interval(&half, FEW), Ok(Interval { low: 0.0, high: 1.0 }));
}

#[test]
fn the_interval_is_as_wide_as_the_normal_approximation_says() {
    // 400 dialogues of one utterance, two labels, 7 of 10 right in both: F1 is 0.7 and its deviation sqrt(.7 * .3 / 400).
    let parts: Vec<_> = (0..400u16).map(|n| vec![(n % 2, Some(if n % 20 < 14 { n % 2 } else { 1 - n % 2 }))]).collect();
    let arm = ArmAnswers::new(2, &[dialogues(&parts)]).unwrap();
    let found = interval(&arm, Bootstrap::default()).unwrap();
    let width = 2.0 * 1.96 * (0.7_f64 * 0.3 / 400.0).sqrt();
    // 2000 draws give the width to about 4%.
    assert!(((found.high - found.low) / width - 1.0).abs() < 0.12, "{found:?}, expected a width of {width}");
    assert!(((found.low + found.high) / 2.0 - 0.7).abs() < 0.01, "{found:?}");
}

#[test]
fn several_seeds_are_averaged_on_the_same_draw() {
    let (good, bad) = (vec![vec![(0, Some(0)), (1, Some(1))]; 4], vec![vec![(0, None), (1, None)]; 4]);
    let both = ArmAnswers::new(3, &[dialogues(&good), dialogues(&bad)]).unwrap();
    assert_eq!((both.seeds(), both.dialogues(), both.utterances()), (2, 4, 8));
    // Whatever is drawn, one seed has 1 and the other 0.
    assert_eq!(interval(&both, FEW), Ok(Interval { low: 0.5, high: 0.5 }));
    assert_eq!(both.metrics().iter().map(|m| m.weighted_f1).collect::<Vec<_>>(), [1.0, 0.0]);
}

#[test]
fn arms_that_did_not_answer_the_same_utterances_are_not_compared() {
    let refusal = |a: &[Vec<(u16, Option<u16>)>], b: &[Vec<(u16, Option<u16>)>]| {
        compare(&arm(a), &arm(b), FEW).unwrap_err().to_string()
    };
    let base = [vec![(0, Some(0)), (1, None)], vec![(2, Some(2))]];
    let message = refusal(&base, &base[..1]);
    assert_eq!(message, "the answers cannot be paired: dialogue '1' is in one alone (of 2 and 1 dialogues)");
    let message = refusal(&base, &[vec![(0, Some(0))], vec![(2, Some(2))]]);
    assert_eq!(message, "the answers cannot be paired: dialogue '0' has 2 answers in one and 1 in the other");
    let message = refusal(&base, &[vec![(0, Some(0)), (2, None)], vec![(2, Some(2))]]);
    assert_eq!(message, "the answers cannot be paired: dialogue '0' has other gold labels in one than in the other");
    let wide = ArmAnswers::new(4, &[dialogues(&base)]).unwrap();
    let message = compare(&arm(&base), &wide, FEW).unwrap_err().to_string();
    assert_eq!(message, "the answers cannot be paired: one is over 3 labels, the other over 4");
    let seeds = [dialogues(&base), dialogues(&base[..1])];
    assert!(matches!(ArmAnswers::new(3, &seeds), Err(StatisticsError::NotPaired(_))));
}

#[test]
fn what_cannot_be_computed_is_refused() {
    assert_eq!(ArmAnswers::new(3, &[]), Err(StatisticsError::Empty));
    assert_eq!(ArmAnswers::new(3, &[vec![]]), Err(StatisticsError::Empty));
    let outside = |gold, label| ArmAnswers::new(3, &[answered("d", &[(gold, label)])]).unwrap_err().to_string();
    assert_eq!(outside(0, Some(3)), "dialogue 'd': label 3 is none of 3 labels");
    assert_eq!(outside(4, None), "dialogue 'd': label 4 is none of 3 labels");
    let one = arm(&[vec![(0, Some(0))]]);
    assert_eq!(interval(&one, FEW), Err(StatisticsError::TooFewDialogues(1)));
    let two = arm(&[vec![(0, Some(0))], vec![(1, None)]]);
    assert_eq!(interval(&two, Bootstrap { draws: 39, seed: 1 }), Err(StatisticsError::TooFewDraws(39)));
}

fn parts(dialogues: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Vec<(u16, u16, u16)>>> {
    prop::collection::vec(prop::collection::vec((0..3u16, 0..4u16, 0..4u16), 1..6), dialogues)
}

/// Label 3 stands for an unreadable answer.
fn taking(parts: &[Vec<(u16, u16, u16)>], pick: fn(&(u16, u16, u16)) -> u16) -> Vec<Vec<(u16, Option<u16>)>> {
    let pair = |answer: &(u16, u16, u16)| (answer.0, Some(pick(answer)).filter(|label| *label < 3));
    parts.iter().map(|dialogue| dialogue.iter().map(pair).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_interval_repeats_and_stays_a_fraction(parts in parts(2..12), seed: u64) {
        let arm = arm(&taking(&parts, |a| a.1));
        let bootstrap = Bootstrap { draws: 100, seed };
        let found = interval(&arm, bootstrap).unwrap();
        prop_assert_eq!(found, interval(&arm, bootstrap).unwrap());
        prop_assert!(0.0 <= found.low && found.low <= found.high && found.high <= 1.0, "{:?}", found);
    }

    #[test]
    fn a_comparison_the_other_way_round_is_the_mirrored_one(parts in parts(2..12), seed: u64) {
        let (first, second) = (arm(&taking(&parts, |a| a.1)), arm(&taking(&parts, |a| a.2)));
        let bootstrap = Bootstrap { draws: 100, seed };
        let (one, other) = (compare(&first, &second, bootstrap).unwrap(), compare(&second, &first, bootstrap).unwrap());
        prop_assert_eq!(one.difference, -other.difference);
        prop_assert_eq!((one.interval.low, one.interval.high), (-other.interval.high, -other.interval.low));
        prop_assert_eq!(one.p_value, other.p_value);
        prop_assert!(0.0 < one.p_value && one.p_value <= 1.0);
        let same = compare(&first, &first, bootstrap).unwrap();
        prop_assert_eq!((same.difference, same.p_value), (0.0, 1.0));
    }

    #[test]
    fn metrics_are_those_of_the_whole_list_in_any_order(parts in parts(1..12)) {
        let mut answers = dialogues(&taking(&parts, |a| a.1));
        let mut whole = Tally::new(3);
        answers.iter().for_each(|a| whole.count(Label(a.gold), a.label.map(Label)));
        let arm = ArmAnswers::new(3, std::slice::from_ref(&answers)).unwrap();
        prop_assert_eq!(arm.metrics(), [Metric::of(&whole)]);
        answers.sort_by(|a, b| b.dialogue.cmp(&a.dialogue)); // stable: turns keep their order
        prop_assert_eq!(ArmAnswers::new(3, &[answers]).unwrap(), arm);
    }

    #[test]
    fn a_seed_given_twice_changes_no_interval(parts in parts(2..12)) {
        let answers = dialogues(&taking(&parts, |a| a.1));
        let one = ArmAnswers::new(3, std::slice::from_ref(&answers)).unwrap();
        let two = ArmAnswers::new(3, &[answers.clone(), answers]).unwrap();
        prop_assert_eq!(interval(&one, FEW), interval(&two, FEW));
    }
}
