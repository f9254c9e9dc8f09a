//! The peak that useful arithmetic is compared with: the backend's own matrix product where it is at its best.

use insula_kernels::{Backend, Cpu, KernelError, Precision, Write};

use super::engine::now;

/// Rows of the products: as many tokens as a slot has, or more.
const ROWS: usize = 1536;
/// `[in, out]`: the MLP's of SmolLM2-135M, and a large square. Their buffers stay under 50 MB.
const SHAPES: [[usize; 2]; 3] = [[576, 1536], [1536, 576], [1536, 1536]];
/// Products of each shape and direction; the fastest counts (guessed: enough to meet the machine undisturbed).
const REPEATS: usize = 6;

/// The best rate over the shapes, forward and back, GFLOP/s. Everything it allocates is freed before it returns.
///
/// # Errors
/// When the backend refuses.
pub fn measure(threads: usize) -> Result<f64, KernelError> {
    let cpu = Cpu::new(threads)?;
    let mut best: f64 = 0.0;
    for [input, output] in SHAPES {
        let values: Vec<f32> = (0..input * output).map(|i| (i % 97) as f32 * 0.01).collect();
        let weight = cpu.weight([output, input], &values, Precision::F32)?;
        let (mut x, mut y) = (cpu.upload(&vec![0.5; ROWS * input])?, cpu.upload(&vec![0.5; ROWS * output])?);
        for _ in 0..REPEATS {
            let began = now();
            cpu.matmul(&x, &weight, &mut y, Write::Set)?;
            let forward = now();
            cpu.matmul_back(&y, &weight, &mut x, Write::Set)?;
            let least = (forward - began).min(now() - forward);
            best = best.max(2.0 * (ROWS * input * output) as f64 / least.as_secs_f64() / 1e9);
        }
    }
    Ok(best)
}
