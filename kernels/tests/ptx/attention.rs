//! Attention forward and backward: forests, parts of them, and other sights, at every width of head.

use half::bf16;
use insula_kernels::cuda::launch;
use insula_kernels::{Attention, Backend, Cpu, Sight};

use crate::args;
use crate::device::{Device, Outcome, Programs, bf16_values, close, narrow, wide};
use crate::forest::{Chance, Sights, forest};

/// One product of attention: who sees whom, and the heads.
pub struct Case {
    pub sights: Sights,
    pub shape: Attention,
}

pub fn case(sights: Sights, heads: usize, kv_heads: usize, head_dim: usize) -> Case {
    Case { sights, shape: Attention { heads, kv_heads, head_dim } }
}

/// Inputs in bfloat16, and the CPU's float32 results of them.
struct Meaning {
    q: Vec<bf16>,
    k: Vec<bf16>,
    v: Vec<bf16>,
    dout: Vec<bf16>,
    out: Vec<f32>,
    lse: Vec<f32>,
    /// Of `out` as it is kept between the passes, rounded.
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Meaning {
    fn of(case: &Case) -> Self {
        let cpu = Cpu::new(1).expect("one thread starts");
        let Case { sights, shape } = case;
        let (queries, keys) = (sights.query.len(), sights.start.len());
        let (query_width, key_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        // Queries larger than keys, so that softmaxes have peaks.
        let q: Vec<f32> = wide(&bf16_values(queries * query_width, 1)).iter().map(|x| 4.0 * x).collect();
        let q = narrow(&q);
        let [k, v] = [2, 3].map(|seed| bf16_values(keys * key_width, seed));
        let dout = bf16_values(queries * query_width, 4);
        let upload = |x: &[bf16]| cpu.upload(&wide(x)).expect("host memory");
        let [query, start, end] =
            [&sights.query, &sights.start, &sights.end].map(|x| cpu.indices(x).expect("host memory"));
        let sight = Sight { query: &query, start: &start, end: &end };
        let (uq, uk, uv, udout) = (upload(&q), upload(&k), upload(&v), upload(&dout));
        let mut out = upload(&q);
        let mut lse = cpu.alloc([queries, shape.heads]).expect("host memory");
        cpu.attention(*shape, &sight, &uq, &uk, &uv, &mut out, &mut lse).expect("the CPU computes");
        let kept = upload(&narrow(&out));
        let (mut dq, mut dk, mut dv) = (upload(&q), upload(&k), upload(&v));
        cpu.attention_back(*shape, &sight, &uq, &uk, &uv, &kept, &lse, &udout, &mut dq, &mut dk, &mut dv)
            .expect("the CPU computes");
        let [out, lse, dq, dk, dv] = [out, lse, dq, dk, dv].map(|x| cpu.take(x).expect("host memory"));
        Self { q, k, v, dout, out, lse, dq, dk, dv }
    }
}

/// How far results in bfloat16 may be off, all together: the root of the squared errors' sum over that of the squares.
/// Weights and the result are rounded to 8 bits each, which leaves 0.0016 of either, on average, 0.0023 of both.
const SPREAD: f64 = 0.004;
/// How far any one result may be off, relative to the greatest: some roundings of one term, all at their worst.
const WORST: f32 = 1.0 / 64.0;

fn near(what: &str, ours: &[bf16], expected: &[f32]) -> Outcome {
    assert_eq!(ours.len(), expected.len(), "{what}");
    // Where a query sees one key its gradients are 0 but for what rounds, of terms around 1.
    let most = expected.iter().fold(1e-2, |most: f32, x| most.max(x.abs()));
    close(what, &wide(ours), expected, WORST, most)?;
    let square = |x: f64| x * x;
    let errors: f64 = ours.iter().zip(expected).map(|(a, b)| square(f64::from(a.to_f32()) - f64::from(*b))).sum();
    let squares: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    let spread = (errors / (squares + 1e-6 * expected.len() as f64)).sqrt();
    if spread > SPREAD {
        return Err(format!("{what}: off by {spread:.5} of its size, {SPREAD} at most"));
    }
    Ok(())
}

pub fn check(programs: &Programs, case: &Case) -> Outcome {
    let meaning = Meaning::of(case);
    let Case { sights, shape: Attention { heads, kv_heads, head_dim } } = case;
    let (queries, keys) = (sights.query.len(), sights.start.len());
    let (nq, nk, h, g, d) = (queries as u32, keys as u32, *heads as u32, *kv_heads as u32, *head_dim as u32);
    let scale = (*head_dim as f32).sqrt().recip();
    let device = Device::new(programs);
    let [q, k, v, dout] = [&meaning.q, &meaning.k, &meaning.v, &meaning.dout].map(|x| device.put(x));
    let [query, start, end] = [&sights.query, &sights.start, &sights.end].map(|x| device.put(x));

    let (out, lse) = (device.room::<bf16>(meaning.out.len()), device.room::<f32>(queries * heads));
    device.run(
        launch::attention(queries, keys, *heads, *head_dim),
        args![q, k, v, out, lse, query, start, end, nq, nk, h, g, d, scale],
    )?;
    near("out", &device.get(out, meaning.out.len()), &meaning.out)?;
    // Scores are sums of exact products in float32.
    close("lse", &device.get::<f32>(lse, meaning.lse.len()), &meaning.lse, 1e-5, 1.0)?;

    let delta = device.room::<f32>(queries * heads);
    device.run(launch::attention_delta(queries, *heads, *head_dim), args![out, dout, delta, h, d])?;
    let dq = device.room::<bf16>(meaning.dq.len());
    device.run(
        launch::attention_dq(queries, keys, *heads, *head_dim),
        args![q, k, v, dout, lse, delta, query, start, end, dq, nq, nk, h, g, d, scale],
    )?;
    let (dk, dv) = (device.room::<bf16>(meaning.dk.len()), device.room::<bf16>(meaning.dv.len()));
    device.run(
        launch::attention_dkv(queries, keys, *kv_heads, *head_dim),
        args![q, k, v, dout, lse, delta, query, start, end, dk, dv, nq, nk, h, g, d, scale],
    )?;
    near("dv", &device.get(dv, meaning.dv.len()), &meaning.dv)?;
    near("dk", &device.get(dk, meaning.dk.len()), &meaning.dk)?;
    near("dq", &device.get(dq, meaning.dq.len()), &meaning.dq)
}

fn check_all(programs: &Programs, cases: impl IntoIterator<Item = Case>) {
    for case in cases {
        let (shape, sights) = (case.shape, &case.sights);
        let what = format!("{} queries, {} keys, {shape:?}", sights.query.len(), sights.start.len());
        check(programs, &case).unwrap_or_else(|trouble| panic!("{what}: {trouble}"));
    }
}

/// Heads narrower than, as wide as, and wider than what they are computed in.
const HEAD_DIMS: [usize; 10] = [8, 16, 24, 40, 64, 72, 80, 96, 128, 256];

#[test]
fn every_width_of_head_is_the_cpus() {
    check_all(&Programs::shipped(), HEAD_DIMS.map(|head_dim| case(forest(77, 12, 2, 1), 2, 1, head_dim)));
}

#[test]
fn one_token_and_sizes_around_a_tile_are_the_cpus() {
    let sizes = [1, 2, 15, 16, 17, 63, 64, 65, 129];
    check_all(&Programs::shipped(), sizes.map(|tokens| case(forest(tokens, 5, 2, 2), 1, 1, 16)));
    check_all(&Programs::shipped(), [1, 33, 64].map(|tokens| case(forest(tokens, 5, 2, 2), 1, 1, 256)));
}

#[test]
fn deep_and_wide_forests_are_the_cpus() {
    let deep = forest(300, 40, 1, 3);
    let wide = forest(300, 3, 6, 4);
    let stump = Sights { end: vec![300; 300], ..forest(300, 300, 1, 5) };
    check_all(&Programs::shipped(), [deep, wide, stump].map(|sights| case(sights, 2, 2, 32)));
}

#[test]
fn kv_heads_may_be_shared_by_some_or_all_heads() {
    let groups = [(4, 4), (4, 2), (6, 2), (5, 1)];
    check_all(&Programs::shipped(), groups.map(|(heads, kv_heads)| case(forest(90, 9, 2, 6), heads, kv_heads, 24)));
}

#[test]
fn parts_of_a_forest_with_gaps_are_the_cpus() {
    let forest = || forest(260, 11, 3, 7);
    let late = forest().of_queries(|query| query >= 200);
    let gaps = forest().of_queries(|query| query % 5 != 1 && !(60..140).contains(&query));
    let holes = forest().of_keys(|key| key % 3 != 0 && !(70..150).contains(&key));
    let both = forest().of_queries(|query| query % 7 == 3).of_keys(|key| key % 2 == 0);
    check_all(&Programs::shipped(), [late, gaps, holes, both].map(|sights| case(sights, 2, 1, 64)));
}

#[test]
fn sights_that_no_forest_has_are_the_cpus() {
    let sights = [Sights::all(70, 130), Sights::tangled(150, 140, 8), Sights::tangled(40, 300, 9)];
    check_all(&Programs::shipped(), sights.map(|sights| case(sights, 2, 1, 48)));
}

#[test]
fn copies_that_land_at_once_change_nothing() {
    check_all(&Programs::eager(), [case(forest(150, 12, 2, 1), 2, 1, 64), case(forest(40, 12, 2, 1), 2, 1, 256)]);
}

/// Neighbouring queries of a tile share what they walk over, and must not share who they are.
#[test]
fn more_than_sixteen_tiles_are_walked_over() {
    let last = forest(1100, 30, 2, 10).of_queries(|query| query >= 1060);
    let first = forest(1100, 30, 2, 10).of_queries(|query| query % 101 == 0);
    check_all(&Programs::shipped(), [last, first].map(|sights| case(sights, 1, 1, 16)));
    let keys = forest(1100, 30, 2, 10).of_keys(|key| key >= 1090);
    check_all(&Programs::shipped(), [case(keys, 1, 1, 16)]);
}

/// Forests, heads and parts as they come.
#[test]
fn random_forests_and_shapes_are_the_cpus() {
    for seed in 100..130 {
        let mut chance = Chance::new(seed);
        let tokens = 1 + chance.below(260);
        let (longest, wide) = (1 + chance.below(40), 1 + chance.below(5));
        let whole = forest(tokens, longest, wide, seed);
        let (step, hole) = (2 + chance.below(5), chance.below(tokens));
        let sights = match chance.below(4) {
            0 => whole.of_queries(|query| query == 0 || !(query as usize).is_multiple_of(step)),
            1 => whole.of_keys(|key| !(hole..hole + 70).contains(&key)),
            2 => Sights::tangled(tokens, 1 + chance.below(200), seed),
            _ => whole,
        };
        let kv_heads = 1 + chance.below(2);
        let (heads, head_dim) = (kv_heads * (1 + chance.below(3)), 8 * (1 + chance.below(16)));
        let what = format!("seed {seed}: {} queries, {} keys", sights.query.len(), sights.start.len());
        let random = case(sights, heads, kv_heads, head_dim);
        let trouble = check(&Programs::shipped(), &random);
        trouble.unwrap_or_else(|trouble| panic!("{what}, {:?}: {trouble}", random.shape));
    }
}
