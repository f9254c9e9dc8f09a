//! GFLOP/s of the products with a frozen weight, at SmolLM2's shapes, beside the `gemm` crate's:
//! `cargo run --release -p insula-kernels --example gemm_speed [rows] [threads]`.
#![expect(clippy::disallowed_methods, reason = "a benchmark asks the time")]
#![expect(unsafe_code, reason = "the gemm crate's only function is unsafe")]

use std::time::Instant;

use insula_kernels::{Backend, Cpu, KernelError, Precision, Write};

fn main() -> Result<(), KernelError> {
    let number = |i: usize, default: usize| std::env::args().nth(i).and_then(|s| s.parse().ok()).unwrap_or(default);
    let (rows, threads) = (number(1, 1500), number(2, 2));
    let cpu = Cpu::new(threads)?;
    println!("{rows} rows, {threads} threads, GFLOP/s (packing included)");
    println!("{:>6} {:>6} {:>9} {:>9} {:>9} {:>9}", "in", "out", "forward", "backward", "bf16 fwd", "gemm fwd");
    for (input, output) in [(576, 576), (576, 192), (576, 1536), (1536, 576), (576, 49152)] {
        let rows = if output > 10_000 { rows.min(64) } else { rows };
        let flops = 2.0 * (rows * input * output) as f64;
        let values: Vec<f32> = (0..input * output).map(|i| (i % 97) as f32 * 0.01).collect();
        let weight = cpu.weight([output, input], &values, Precision::F32)?;
        let half = cpu.weight([output, input], &values, Precision::Bf16)?;
        let mut x = cpu.upload(&vec![0.5; rows * input])?;
        let mut y = cpu.upload(&vec![0.5; rows * output])?;
        let forward = best(|| cpu.matmul(&x, &weight, &mut y, Write::Set))?;
        let half = best(|| cpu.matmul(&x, &half, &mut y, Write::Set))?;
        let backward = best(|| cpu.matmul_back(&y, &weight, &mut x, Write::Set))?;
        let (a, mut c) = (vec![0.5f32; rows * input], vec![0.0f32; rows * output]);
        let crate_ = best(|| {
            // SAFETY: a is rows x input, values output x input, c rows x output, all row-major.
            unsafe {
                gemm::gemm(
                    rows,
                    output,
                    input,
                    c.as_mut_ptr(),
                    1,
                    output as isize,
                    false,
                    a.as_ptr(),
                    1,
                    input as isize,
                    values.as_ptr(),
                    input as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::Rayon(threads),
                );
            }
            Ok(())
        })?;
        let rate = |seconds: f64| flops / seconds / 1e9;
        println!(
            "{input:>6} {output:>6} {:>9.1} {:>9.1} {:>9.1} {:>9.1}",
            rate(forward),
            rate(backward),
            rate(half),
            rate(crate_)
        );
    }
    Ok(())
}

/// The shortest of a few calls, seconds.
fn best(mut operation: impl FnMut() -> Result<(), KernelError>) -> Result<f64, KernelError> {
    let mut least = f64::INFINITY;
    for _ in 0..8 {
        let start = Instant::now();
        operation()?;
        least = least.min(start.elapsed().as_secs_f64());
    }
    Ok(least)
}
