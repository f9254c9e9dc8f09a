//! The products with frozen weights, alone and as projections of one input with LoRA pairs, at SmolLM2-135M's shapes,
//! forward and back: `cargo bench -p insula-kernels --bench products [filter]`. The rate is multiply-adds in a second.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput};
use insula_kernels::{Backend, Cpu, LoraShape, Precision, Projection, ProjectionBack, Write, cpu::CpuBuffer};

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
    project(&mut criterion, &cpu);
    criterion.final_summary();
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i % 97) as f32 * 0.01 - 0.5).collect()
}

fn buffer(cpu: &Cpu, len: usize) -> CpuBuffer {
    cpu.upload(&values(len)).expect("memory")
}

fn matmul(criterion: &mut Criterion, cpu: &Cpu) {
    let mut group = criterion.benchmark_group("matmul");
    for [input, output] in SHAPES {
        let rows = if output > 10_000 { HEAD_ROWS } else { ROWS };
        group.throughput(Throughput::Elements((rows * input * output) as u64));
        let weight = cpu.weight([output, input], &values(input * output), Precision::F32).expect("memory");
        let [x, mut dx] = [rows * input; 2].map(|len| buffer(cpu, len));
        let [dy, mut y] = [rows * output; 2].map(|len| buffer(cpu, len));
        let shape = format!("{input}x{output}");
        group.bench_function(BenchmarkId::new("forward", &shape), |bencher| {
            bencher.iter(|| cpu.matmul(black_box(&x), &weight, &mut y, Write::Set));
        });
        group.bench_function(BenchmarkId::new("backward", &shape), |bencher| {
            bencher.iter(|| cpu.matmul_back(black_box(&dy), &weight, &mut dx, Write::Set));
        });
    }
}

/// q, k and v of one input at once, each with a LoRA pair, and without.
fn project(criterion: &mut Criterion, cpu: &Cpu) {
    let (r, input, outputs) = (16, 576, [576, 192, 192]);
    let mut group = criterion.benchmark_group("project");
    let products: usize = outputs.iter().map(|output| input * output).sum();
    group.throughput(Throughput::Elements((ROWS * products) as u64));
    let weights = outputs.map(|n| cpu.weight([n, input], &values(input * n), Precision::F32).expect("memory"));
    let mut len = 0;
    let shapes = outputs.map(|output| {
        let (a, b) = (len, len + r * input);
        len = b + r * output;
        LoraShape { r, input, output, a, b, scale: 1.0 }
    });
    let [params, mut grads] = [len; 2].map(|len| buffer(cpu, len));
    let [x, mut dx] = [ROWS * input; 2].map(|len| buffer(cpu, len));
    let mut downs = outputs.map(|_| buffer(cpu, ROWS * r));
    let mut ys = outputs.map(|output| buffer(cpu, ROWS * output));
    for (name, adapted) in [("bare", false), ("r 16", true)] {
        group.bench_function(BenchmarkId::new("forward", name), |bencher| {
            bencher.iter(|| {
                let downs = downs.each_mut().map(Some).into_iter().zip(shapes);
                let pairs = downs.map(|(down, shape)| down.filter(|_| adapted).map(|down| (shape, down)));
                let layers = weights.iter().zip(ys.iter_mut()).zip(pairs);
                let mut layers: Vec<_> =
                    layers.map(|((weight, y), pair)| Projection::<Cpu> { weight, pair, y }).collect();
                cpu.project(black_box(&x), &params, &mut layers, Write::Set)
            });
        });
        let pairs = downs.iter().zip(shapes).map(|(down, shape)| Some((shape, down)).filter(|_| adapted));
        let layers = weights.iter().zip(&ys).zip(pairs);
        let layers: Vec<_> = layers.map(|((weight, dy), pair)| ProjectionBack::<Cpu> { weight, pair, dy }).collect();
        group.bench_function(BenchmarkId::new("backward", name), |bencher| {
            bencher.iter(|| {
                cpu.project_back(Some(black_box(&x)), &params, &layers, &mut grads, Some((&mut dx, Write::Set)))
            });
        });
    }
}
