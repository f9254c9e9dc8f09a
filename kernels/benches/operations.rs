//! Everything that is no product with a weight, at SmolLM2-135M's dimensions over the forest of sixteen prompts:
//! `cargo bench -p insula-kernels --bench operations [filter]`. The rate is tree tokens (AdamW: parameters) in a second.

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, Throughput};
use insula_kernels::{
    AdamW, Attention, Backend, Cpu, Direction, Sight, Targets, Wanted,
    cpu::{CpuBuffer, CpuIndices},
};

const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const VOCAB: usize = 49152;
const SHAPE: Attention = Attention { heads: 9, kv_heads: 3, head_dim: 64 };
/// Supervised rows: two for each prompt.
const SUPERVISED: usize = 32;
/// Parameters of an adapter of width 16 on q, k and v in thirty layers.
const PARAMETERS: usize = 30 * 16 * (3 * 576 + 576 + 2 * 192);

fn main() {
    let fast = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300));
    let mut criterion = fast.measurement_time(Duration::from_secs(2)).configure_from_args();
    let cpu = Cpu::new(0).expect("threads start");
    attention(&mut criterion, &cpu);
    rows(&mut criterion, &cpu);
    head(&mut criterion, &cpu);
    adamw(&mut criterion, &cpu);
    criterion.final_summary();
}

/// End of each row's subtree: an instruction of 22 tokens, then two dialogues of eight turns of 22 tokens, each turn with
/// a question and answer of 65 behind it, the largest subtree first as the worker lays forests out.
fn ends() -> Vec<u32> {
    let (instruction, turns, turn, question) = (22, 8, 22, 65);
    let dialogue = turns * (turn + question);
    let all = instruction + 2 * dialogue;
    let mut ends = vec![all; instruction as usize];
    for first in [instruction, instruction + dialogue] {
        let questions = first + turns * turn;
        ends.extend((0..turns * turn).map(|row| questions + (turns - row / turn) * question));
        ends.extend((0..turns * question).map(|row| questions + (row / question + 1) * question));
    }
    ends
}

fn buffer(cpu: &Cpu, len: usize) -> CpuBuffer {
    let values: Vec<f32> = (0..len).map(|i| (i % 97) as f32 * 0.01 - 0.5).collect();
    cpu.upload(&values).expect("memory")
}

fn indices(cpu: &Cpu, values: &[u32]) -> CpuIndices {
    cpu.indices(values).expect("memory")
}

fn attention(criterion: &mut Criterion, cpu: &Cpu) {
    let ends = ends();
    let tokens = ends.len();
    let (start, end) = (indices(cpu, &(0..tokens as u32).collect::<Vec<_>>()), indices(cpu, &ends));
    let sight = Sight { query: &start, start: &start, end: &end };
    let (wide, narrow) = (tokens * SHAPE.heads * SHAPE.head_dim, tokens * SHAPE.kv_heads * SHAPE.head_dim);
    let [q, dout, mut out, mut dq] = [wide; 4].map(|len| buffer(cpu, len));
    let [k, v, mut dk, mut dv] = [narrow; 4].map(|len| buffer(cpu, len));
    let mut lse = buffer(cpu, tokens * SHAPE.heads);
    let mut group = criterion.benchmark_group("attention");
    group.throughput(Throughput::Elements(tokens as u64));
    group.bench_function("forward", |bencher| {
        bencher.iter(|| cpu.attention(SHAPE, &sight, black_box(&q), &k, &v, &mut out, &mut lse));
    });
    group.bench_function("backward", |bencher| {
        bencher.iter(|| {
            cpu.attention_back(SHAPE, &sight, black_box(&q), &k, &v, &out, &lse, &dout, &mut dq, &mut dk, &mut dv)
        });
    });
}

/// What works on each token's row alone.
fn rows(criterion: &mut Criterion, cpu: &Cpu) {
    let tokens = ends().len();
    let [x, gain, dy, mut y] = [tokens * HIDDEN, HIDDEN, tokens * HIDDEN, tokens * HIDDEN].map(|n| buffer(cpu, n));
    let mut group = criterion.benchmark_group("rows");
    group.throughput(Throughput::Elements(tokens as u64));
    group.bench_function("rms_norm", |b| b.iter(|| cpu.rms_norm(black_box(&x), &gain, 1e-5, &mut y)));
    group.bench_function("rms_norm_back", |b| b.iter(|| cpu.rms_norm_back(black_box(&x), &gain, 1e-5, &dy, &mut y)));
    let angles = buffer(cpu, tokens * SHAPE.head_dim);
    group.bench_function("rotary", |bencher| {
        // There and back again, so that values neither grow nor fade over the iterations.
        bencher.iter(|| {
            cpu.rotary(&mut y, black_box(&angles), SHAPE.head_dim, Direction::Forward)?;
            cpu.rotary(&mut y, &angles, SHAPE.head_dim, Direction::Backward)
        });
    });
    let [gate, up, mut out, mut dup] = [tokens * INTERMEDIATE; 4].map(|len| buffer(cpu, len));
    group.bench_function("swiglu", |b| b.iter(|| cpu.swiglu(black_box(&gate), &up, &mut out)));
    group.bench_function("swiglu_back", |b| b.iter(|| cpu.swiglu_back(black_box(&gate), &up, &mut out, &mut dup)));
}

fn head(criterion: &mut Criterion, cpu: &Cpu) {
    let mut group = criterion.benchmark_group("head");
    group.throughput(Throughput::Elements(SUPERVISED as u64));
    let offsets: Vec<u32> = (0..=SUPERVISED as u32).collect();
    let ids: Vec<u32> = (0..SUPERVISED as u32).map(|row| row * 1000).collect();
    let (device_offsets, device_ids, weights) = (indices(cpu, &offsets), indices(cpu, &ids), buffer(cpu, SUPERVISED));
    let targets = Targets { offsets: &device_offsets, ids: &device_ids, weights: &weights };
    let (mut logits, mut loss) = (buffer(cpu, SUPERVISED * VOCAB), buffer(cpu, SUPERVISED));
    let wanted = Wanted { offsets: &offsets, ids: &ids };
    group.bench_function("read_out", |b| b.iter(|| cpu.read_out(black_box(&logits), VOCAB, &wanted)));
    group.bench_function("cross_entropy", |b| b.iter(|| cpu.cross_entropy(&mut logits, VOCAB, &targets, &mut loss)));
}

fn adamw(criterion: &mut Criterion, cpu: &Cpu) {
    let mut group = criterion.benchmark_group("adamw");
    group.throughput(Throughput::Elements(PARAMETERS as u64));
    let step = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, step: 10, gradient_scale: 1.0 };
    let [gradient, mut params, mut first] = [PARAMETERS; 3].map(|len| buffer(cpu, len));
    let mut second = cpu.upload(&vec![0.1; PARAMETERS]).expect("memory");
    group.bench_function("step", |bencher| {
        bencher.iter(|| cpu.adamw(&step, black_box(&gradient), &mut params, &mut first, &mut second));
    });
    group.bench_function("sum_squares", |bencher| bencher.iter(|| cpu.sum_squares(black_box(&gradient))));
}
