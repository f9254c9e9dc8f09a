//! The products with frozen weights and with a LoRA pair, at SmolLM2-135M's shapes, forward and back:
//! `cargo bench -p insula-kernels --bench products [filter]`. The rate is multiply-adds in a second.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput};
use insula_kernels::{Backend, Cpu, LoraShape, Precision, Write};

/// `[in, out]` of q and o, k and v, gate and up, down, and the head.
const SHAPES: [[usize; 2]; 5] = [[576, 576], [576, 192], [576, 1536], [1536, 576], [576, 49152]];
/// Tokens of a slot.
const ROWS: usize = 1500;
/// Rows of the head: the supervised ones of a slot.
const HEAD_ROWS: usize = 64;

fn main() {
    let fast = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300));
    let mut criterion = fast.measurement_time(Duration::from_secs(2)).configure_from_args();
    let cpu = Cpu::new(0).expect("threads start");
    matmul(&mut criterion, &cpu);
    lora(&mut criterion, &cpu);
    criterion.final_summary();
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i % 97) as f32 * 0.01 - 0.5).collect()
}

fn matmul(criterion: &mut Criterion, cpu: &Cpu) {
    let mut group = criterion.benchmark_group("matmul");
    for [input, output] in SHAPES {
        let rows = if output > 10_000 { HEAD_ROWS } else { ROWS };
        group.throughput(Throughput::Elements((rows * input * output) as u64));
        let weight = cpu.weight([output, input], &values(input * output), Precision::F32).expect("memory");
        let (x, dy) = (cpu.upload(&values(rows * input)), cpu.upload(&values(rows * output)));
        let (x, dy) = (x.expect("memory"), dy.expect("memory"));
        let (mut y, mut dx) = (cpu.alloc(rows * output).expect("memory"), cpu.alloc(rows * input).expect("memory"));
        let shape = format!("{input}x{output}");
        group.bench_function(BenchmarkId::new("forward", &shape), |bencher| {
            bencher.iter(|| cpu.matmul(black_box(&x), &weight, &mut y, Write::Set));
        });
        group.bench_function(BenchmarkId::new("backward", &shape), |bencher| {
            bencher.iter(|| cpu.matmul_back(black_box(&dy), &weight, &mut dx, Write::Set));
        });
    }
}

fn lora(criterion: &mut Criterion, cpu: &Cpu) {
    let mut group = criterion.benchmark_group("lora");
    for [input, output] in [[576, 576], [576, 192]] {
        let r = 16;
        group.throughput(Throughput::Elements((ROWS * r * (input + output)) as u64));
        let shape = LoraShape { r, input, output, a: 0, b: r * input, scale: 1.0 };
        let len = r * (input + output);
        let [params, x, dy] = [len, ROWS * input, ROWS * output].map(|n| cpu.upload(&values(n)).expect("memory"));
        let [mut grads, mut down, mut y, mut dx] =
            [len, ROWS * r, ROWS * output, ROWS * input].map(|n| cpu.upload(&values(n)).expect("memory"));
        let name = format!("{input}x{output} r {r}");
        group.bench_function(BenchmarkId::new("forward", &name), |bencher| {
            bencher.iter(|| cpu.lora(black_box(&x), &params, &shape, &mut down, &mut y));
        });
        group.bench_function(BenchmarkId::new("backward", &name), |bencher| {
            bencher.iter(|| cpu.lora_back(black_box(&x), &down, &dy, &params, &shape, &mut grads, Some(&mut dx)));
        });
    }
}
