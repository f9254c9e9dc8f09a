//! What the kernels ask of the memory: each byte once, whole sectors, no bank twice; no product out of reach.
#![expect(clippy::unwrap_used, reason = "a test whose fixture fails stops there")]

use half::bf16;
use insula_kernels::cuda::launch::{self, Launch, LaunchError};
use insula_kernels::{Attention, cuda::launch::attention_width};
use insula_ptxsim::Counts;

use crate::args;
use crate::device::{Arg, Device, Programs, bf16_values, values};
use crate::forest::{Sights, forest};

/// A row of a model of 7 billion parameters.
const WIDTH: usize = 3584;
const ROWS: usize = 4;
const ELEMENTS: usize = ROWS * WIDTH;

/// Runs one kernel and demands these bytes loaded and stored, all in whole 32-byte sectors; up to `shared` more bytes may
/// be loaded that several warps read alike, out of the cache.
fn once(
    run: &Device<'_>,
    launch: Result<Launch, LaunchError>,
    args: &[Arg],
    [loaded, stored]: [usize; 2],
    shared: usize,
) {
    let kernel = launch.as_ref().unwrap().kernel;
    let global = run.run(launch, args).unwrap().global;
    let (loaded, stored, shared) = (loaded as u64, stored as u64, shared as u64);
    assert!((loaded..=loaded + shared).contains(&global.loaded_bytes), "{kernel} loads {}", global.loaded_bytes);
    assert_eq!(global.stored_bytes, stored, "{kernel} stores");
    assert!(global.loaded_sectors * 32 <= loaded + shared, "{kernel} loads {} sectors", global.loaded_sectors);
    assert_eq!(global.stored_sectors * 32, stored, "{kernel} stores sectors");
}

#[test]
fn what_is_bound_by_memory_touches_every_byte_once() {
    let programs = Programs::shipped();
    let device = Device::new(&programs);
    let f32s = |seed| device.put(&values(ELEMENTS, seed));
    let bf16s = |seed| device.put(&bf16_values(ELEMENTS, seed));
    let (n, w, rows) = (ELEMENTS as u64, WIDTH as u32, device.put(&[2_u32, 0, 3, 1]));
    let (wide, narrow) = (4 * ELEMENTS, 2 * ELEMENTS);
    let run = |launch, args: &[Arg], bytes, shared| once(&device, launch, args, bytes, shared);
    let gain = device.put(&values(WIDTH, 9));
    let gains = ROWS * WIDTH * 4;
    run(launch::rms_norm(ROWS, WIDTH), args![f32s(1), gain, bf16s(2), w, 1e-5_f32], [wide + gains, narrow], 0);
    let (x, dy, dx) = (f32s(1), f32s(2), f32s(3));
    run(launch::rms_norm_back(ROWS, WIDTH), args![x, gain, dy, dx, w, 1e-5_f32], [3 * wide + gains, wide], 0);
    run(launch::swiglu(ELEMENTS), args![bf16s(1), bf16s(2), bf16s(3), n], [2 * narrow, narrow], 0);
    run(launch::swiglu_back(ELEMENTS), args![bf16s(1), bf16s(2), bf16s(3), bf16s(4), n], [3 * narrow, 2 * narrow], 0);
    run(launch::to_bf16(ELEMENTS), args![f32s(1), bf16s(2), n, 1.0_f32], [wide, narrow], 0);
    run(launch::to_f32(ELEMENTS), args![bf16s(1), f32s(2), n], [narrow, wide], 0);
    run(launch::merge(ELEMENTS), args![bf16s(1), f32s(2), bf16s(3), n], [narrow + wide, narrow], 0);
    // Every warp of a block reads its row's number, a sector.
    let numbers = ROWS * 8 * 32 * 4;
    run(launch::gather_rows_f32(ROWS, WIDTH), args![f32s(1), rows, f32s(2), w], [wide, wide], numbers);
    run(launch::gather_rows_bf16(ROWS, WIDTH), args![bf16s(1), rows, bf16s(2), w], [narrow, narrow], numbers);
    run(launch::embed_bf16(ROWS, WIDTH), args![bf16s(1), rows, f32s(2), w], [narrow, wide], numbers);
    let angles = device.put(&values(ROWS * 128, 5));
    // A row's angles are read by each of its 28 heads, out of the cache.
    let tables = ROWS * 28 * 128 * 4;
    run(launch::rotary(ROWS, 28, 128), args![bf16s(1), angles, 28_u32, 128_u32, 1.0_f32], [narrow, narrow], tables);
    let moments = [f32s(4), f32s(5)];
    let step = args![
        f32s(3),
        f32s(1),
        moments[0],
        moments[1],
        n,
        1e-3_f32,
        0.9_f32,
        0.99_f32,
        1e-8_f32,
        0.1_f32,
        0.1_f32,
        0.01_f32,
        1.0_f32
    ];
    run(launch::adamw(ELEMENTS), step, [4 * wide, 3 * wide], 0);
    let bytes = device.put(&vec![7_u8; ELEMENTS]);
    let scales = device.put(&bf16_values(ELEMENTS / 32, 6));
    // A scale of two bytes for 32 values, read by each of the threads that share it.
    let (r, planes) = (ROWS as u32, ELEMENTS / 32 * 2 * 4 * 2);
    run(launch::dequantise_q8(ROWS, WIDTH), args![bytes, scales, bf16s(1), r, w], [ELEMENTS, narrow], planes);
    run(
        launch::dequantise_q4(ROWS, WIDTH),
        args![bytes, scales, scales, bf16s(1), r, w],
        [ELEMENTS / 2, narrow],
        planes,
    );
}

/// Counts of the forward pass and of the two backward passes.
fn passes(sights: &Sights, shape: Attention) -> [Counts; 3] {
    let programs = Programs::shipped();
    let device = Device::new(&programs);
    let Attention { heads, kv_heads, head_dim } = shape;
    let (queries, keys) = (sights.query.len(), sights.start.len());
    let rows = |count: usize, heads: usize, seed| device.put(&bf16_values(count * heads * head_dim, seed));
    let (q, dout, out, dq) =
        (rows(queries, heads, 1), rows(queries, heads, 2), rows(queries, heads, 3), rows(queries, heads, 4));
    let (k, v, dk, dv) =
        (rows(keys, kv_heads, 5), rows(keys, kv_heads, 6), rows(keys, kv_heads, 7), rows(keys, kv_heads, 8));
    let [query, start, end] = [&sights.query, &sights.start, &sights.end].map(|x| device.put(x));
    let [lse, delta] = [0.0_f32, 0.0].map(|x| device.put(&vec![x; queries * heads]));
    let (nq, nk, h, g, d) = (queries as u32, keys as u32, heads as u32, kv_heads as u32, head_dim as u32);
    let forward = launch::attention(queries, keys, heads, head_dim);
    let of_queries = launch::attention_dq(queries, keys, heads, head_dim);
    let of_keys = launch::attention_dkv(queries, keys, kv_heads, head_dim);
    [
        device.run(forward, args![q, k, v, out, lse, query, start, end, nq, nk, h, g, d, 0.1_f32]),
        device.run(of_queries, args![q, k, v, dout, lse, delta, query, start, end, dq, nq, nk, h, g, d, 0.1_f32]),
        device.run(of_keys, args![q, k, v, dout, lse, delta, query, start, end, dk, dv, nq, nk, h, g, d, 0.1_f32]),
    ]
    .map(|counts| counts.unwrap())
}

#[test]
fn attention_meets_no_bank_conflicts_at_any_width() {
    for head_dim in [16, 32, 64, 80, 96, 128, 256] {
        for (pass, counts) in ["forward", "dq", "dkv"]
            .iter()
            .zip(passes(&forest(130, 12, 2, 1), Attention { heads: 2, kv_heads: 1, head_dim }))
        {
            assert_eq!(counts.shared_bank_conflicts, 0, "{pass} of heads of {head_dim}");
            assert_eq!(counts.local.loaded_bytes + counts.local.stored_bytes, 0, "{pass} of heads of {head_dim}");
        }
    }
}

/// Tiles of `own` queries and `walked` keys that have a pair in reach, by the numbers alone.
fn tiles_in_reach(sights: &Sights, own: usize, walked: usize) -> u64 {
    let within = |queries: &[u32], start: &[u32], end: &[u32]| {
        let (first, last) = (queries.iter().min().unwrap(), queries.iter().max().unwrap());
        start.iter().zip(end).any(|(start, end)| start <= last && first < end)
    };
    let keys = || sights.start.chunks(walked).zip(sights.end.chunks(walked));
    sights
        .query
        .chunks(own)
        .map(|queries| keys().filter(|(start, end)| within(queries, start, end)).count() as u64)
        .sum()
}

#[test]
fn tiles_out_of_reach_cost_no_product() {
    let shape = Attention { heads: 1, kv_heads: 1, head_dim: 64 };
    assert_eq!(attention_width(64), Ok(64));
    // Two products of 64 x 64 x 64 forward, three in dq: 128 of mma's 16 x 8 x 16 each.
    let products = |tiles: u64, each: u64| tiles * each * 128;
    let causal = forest(512, 512, 1, 5);
    let branches = forest(512, 6, 6, 4);
    for (sights, most) in [(&causal, 36), (&branches, 35)] {
        let tiles = tiles_in_reach(sights, 64, 64);
        assert!(tiles <= most, "{tiles} tiles");
        let [forward, of_queries, of_keys] = passes(sights, shape);
        assert_eq!((forward.mma, of_queries.mma), (products(tiles, 2), products(tiles, 3)));
        assert!(of_keys.mma >= products(8, 4) && of_keys.mma <= products(36, 4), "{}", of_keys.mma);
    }
}

#[test]
fn a_gathered_row_of_any_type_is_read_once() {
    let programs = Programs::shipped();
    let device = Device::new(&programs);
    let (x, rows, out) = (device.put(&bf16_values(40, 1)), device.put(&[0_u32]), device.room::<bf16>(40));
    let counts = device.run(launch::gather_rows_bf16(1, 40), args![x, rows, out, 40_u32]).unwrap();
    assert_eq!((counts.global.stored_bytes, counts.global.stored_sectors), (80, 3));
}
