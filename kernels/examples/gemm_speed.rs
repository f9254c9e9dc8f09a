//! GFLOP/s of the product with a frozen weight at SmolLM2's shapes: ours beside the libraries', forward (`y = x W^T`) and
//! backward (`dx = dy W`), the candidates taking turns, each at its best.
//!
//! `cargo run --release -p insula-kernels --example gemm_speed [rows] [threads] [repeats]`
//!
//! Ours keeps a weight's panels from call to call; the libraries pack at every call. (gemmkit can keep a packed side, but
//! with a result in rows only the left one, which is not the weight.)
#![expect(clippy::disallowed_methods, reason = "a benchmark asks the time")]
#![expect(unsafe_code, reason = "the gemm crate's only function is unsafe")]

use std::time::Instant;

use faer::{Accum, MatMut, MatRef, Par};
use insula_kernels::{
    Backend, Cpu, KernelError, Precision, Write,
    cpu::{CpuBuffer, CpuWeight},
};

/// `[in, out]` of q and o, k and v, gate and up, down, and the head.
const SHAPES: [[usize; 2]; 5] = [[576, 576], [576, 192], [576, 1536], [1536, 576], [576, 49152]];
/// Rows of the head: the supervised ones of a slot.
const HEAD_ROWS: usize = 64;

/// `out[rows, columns] = left[rows, inner] right[inner, columns]`.
struct Product<'a> {
    rows: usize,
    inner: usize,
    columns: usize,
    left: &'a [f32],
    right: &'a [f32],
    order: Order,
}

/// How the right side lies in memory.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// Column after column: the weight `[out, in]` as its transpose, forward.
    Columns,
    /// Row after row: the weight itself, backward.
    Rows,
}

type Candidate<'a> = (&'static str, Box<dyn FnMut(&mut [f32]) + 'a>);

fn main() -> Result<(), KernelError> {
    let number = |i: usize, default: usize| std::env::args().nth(i).and_then(|s| s.parse().ok()).unwrap_or(default);
    let (rows, threads, repeats) = (number(1, 1500), number(2, 2), number(3, 8));
    let cpu = Cpu::new(threads)?;
    println!("{rows} rows (head: {HEAD_ROWS}), {threads} threads, best of {repeats}, GFLOP/s\n");
    let names = ["ours", "ours bf16", "faer", "gemm", "gemmkit"];
    println!("{:>12} {:>9}  {}", "in x out", "", names.map(|name| format!("{name:>9}")).join(" "));
    for [input, output] in SHAPES {
        let rows = if output > 10_000 { rows.min(HEAD_ROWS) } else { rows };
        let values: Vec<f32> = (0..input * output).map(|i| (i % 97) as f32 * 0.01).collect();
        let weights = [Precision::F32, Precision::Bf16].map(|p| cpu.weight([output, input], &values, p));
        let weights = [&weights[0], &weights[1]].map(|w| w.as_ref().expect("host memory holds the shapes"));
        for order in [Order::Columns, Order::Rows] {
            let (inner, columns) = if order == Order::Columns { (input, output) } else { (output, input) };
            let left = vec![0.5f32; rows * inner];
            let product = Product { rows, inner, columns, left: &left, right: &values, order };
            let mut timed = ours(&cpu, &product, weights, repeats)?;
            timed.extend(best(candidates(&product, threads), rows * columns, repeats));
            let flops = 2.0 * (rows * input * output) as f64;
            let rates: Vec<_> = timed.iter().map(|seconds| format!("{:>9.1}", flops / seconds / 1e9)).collect();
            let direction = if order == Order::Columns { "forward" } else { "backward" };
            println!("{:>12} {direction:>9}  {}", format!("{input} x {output}"), rates.join(" "));
        }
    }
    Ok(())
}

/// The backend's own product with a weight in each precision: the shortest call, seconds.
fn ours(cpu: &Cpu, p: &Product<'_>, weights: [&CpuWeight; 2], repeats: usize) -> Result<Vec<f64>, KernelError> {
    let left = cpu.upload(p.left)?;
    let mut out = cpu.alloc([p.rows, p.columns])?;
    let mut least = vec![f64::INFINITY; 2];
    for _ in 0..repeats {
        for (least, weight) in least.iter_mut().zip(weights) {
            let start = Instant::now();
            multiply(cpu, p.order, &left, weight, &mut out)?;
            *least = least.min(start.elapsed().as_secs_f64());
        }
    }
    Ok(least)
}

fn multiply(cpu: &Cpu, order: Order, x: &CpuBuffer, w: &CpuWeight, y: &mut CpuBuffer) -> Result<(), KernelError> {
    match order {
        Order::Columns => cpu.matmul(x, w, y, Write::Set),
        Order::Rows => cpu.matmul_back(x, w, y, Write::Set),
    }
}

/// The libraries' products, in the order of the table's columns.
fn candidates<'a>(p: &'a Product<'a>, threads: usize) -> Vec<Candidate<'a>> {
    let par = gemmkit::Parallelism::Rayon(threads);
    let left = gemmkit::MatRef::from_row_major(p.left, p.rows, p.inner);
    vec![
        ("faer", Box::new(move |out: &mut [f32]| faer_product(p, out, threads))),
        ("gemm", Box::new(move |out: &mut [f32]| gemm_product(p, out, threads))),
        (
            "gemmkit",
            Box::new(move |out: &mut [f32]| {
                let out = gemmkit::MatMut::from_row_major(out, p.rows, p.columns);
                gemmkit::gemm(1.0, left, gemmkit_right(p), 0.0, out, par);
            }),
        ),
    ]
}

fn gemmkit_right<'a>(p: &Product<'a>) -> gemmkit::MatRef<'a, f32> {
    match p.order {
        Order::Columns => gemmkit::MatRef::from_col_major(p.right, p.inner, p.columns),
        Order::Rows => gemmkit::MatRef::from_row_major(p.right, p.inner, p.columns),
    }
}

fn faer_product(p: &Product<'_>, out: &mut [f32], threads: usize) {
    let left = MatRef::from_row_major_slice(p.left, p.rows, p.inner);
    let right = match p.order {
        Order::Columns => MatRef::from_column_major_slice(p.right, p.inner, p.columns).as_dyn_stride(),
        Order::Rows => MatRef::from_row_major_slice(p.right, p.inner, p.columns).as_dyn_stride(),
    };
    let out = MatMut::from_row_major_slice_mut(out, p.rows, p.columns);
    faer::linalg::matmul::matmul(out, Accum::Replace, left, right, 1.0f32, Par::rayon(threads));
}

fn gemm_product(p: &Product<'_>, out: &mut [f32], threads: usize) {
    let (across, down) = match p.order {
        Order::Columns => (p.inner as isize, 1),
        Order::Rows => (1, p.columns as isize),
    };
    let par = gemm::Parallelism::Rayon(threads);
    let (rows, columns, inner) = (p.rows, p.columns, p.inner);
    // SAFETY: left is rows x inner and out rows x columns, row-major; right is inner x columns in the order of its strides.
    unsafe {
        let (left, right, out) = (p.left.as_ptr(), p.right.as_ptr(), out.as_mut_ptr());
        let (left_down, out_down) = (inner as isize, columns as isize);
        gemm::gemm(
            rows, columns, inner, out, 1, out_down, false, left, 1, left_down, right, across, down, 0.0, 1.0, false,
            false, false, par,
        );
    }
}

/// The shortest call of each candidate, seconds; their results are compared with the first one's.
fn best(mut candidates: Vec<Candidate<'_>>, len: usize, repeats: usize) -> Vec<f64> {
    let mut least = vec![f64::INFINITY; candidates.len()];
    let (mut out, mut first) = (vec![0.0; len], Vec::new());
    for _ in 0..repeats {
        for ((name, candidate), least) in candidates.iter_mut().zip(&mut least) {
            let start = Instant::now();
            candidate(&mut out);
            *least = least.min(start.elapsed().as_secs_f64());
            if first.is_empty() {
                first.clone_from(&out);
            }
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * (1.0 + b.abs());
            assert!(out.iter().zip(&first).all(close), "{name} computes another product");
        }
    }
    least
}
