//! Kernels that work element by element, and the sum of squares.

use half::bf16;
use insula_kernels::cuda::launch;
use insula_kernels::{AdamW, Backend, Cpu};

use crate::args;
use crate::device::{
    BF16_ROUNDING, Device, F32_ROUNDING, Outcome, Programs, bf16_values, close, narrow, same, values, wide,
};

/// One element, less than a chunk, whole chunks, and some over.
const LENGTHS: [usize; 5] = [1, 7, 2048, 2055, 4096];

pub fn casts(programs: &Programs) -> Outcome {
    for n in LENGTHS {
        for shift in [0, 1] {
            let device = Device::new(programs);
            let from = values(n, 1);
            let (x, y) = (device.put_shifted(&from, shift), device.room_shifted::<bf16>(n, shift));
            device.run(launch::to_bf16(n), args![x, y, n as u64, 0.7_f32])?;
            let expected: Vec<bf16> = from.iter().map(|x| bf16::from_f32(0.7 * x)).collect();
            same("to_bf16", &device.get::<bf16>(y, n), &expected)?;

            let z = device.room_shifted::<f32>(n, shift);
            device.run(launch::to_f32(n), args![y, z, n as u64])?;
            same("to_f32", &device.get::<f32>(z, n), &wide(&expected))?;

            let delta = values(n, 2);
            let (d, out) = (device.put_shifted(&delta, shift), device.room_shifted::<bf16>(n, shift));
            device.run(launch::merge(n), args![y, d, out, n as u64])?;
            let sums: Vec<f32> = wide(&expected).iter().zip(&delta).map(|(a, b)| a + b).collect();
            same("merge", &device.get::<bf16>(out, n), &narrow(&sums))?;
        }
    }
    Ok(())
}

/// Gates from -12 to 12, where silu goes from nothing to the identity.
fn gates(n: usize) -> Vec<bf16> {
    narrow(&values(n, 3).iter().map(|x| 12.0 * x).collect::<Vec<f32>>())
}

pub fn swiglu(programs: &Programs) -> Outcome {
    let cpu = Cpu::new(1).expect("one thread starts");
    for n in LENGTHS {
        for shift in [0, 1] {
            let (gate, up, dout) = (gates(n), bf16_values(n, 4), bf16_values(n, 5));
            let upload = |x: &[bf16]| cpu.upload(&wide(x)).expect("host memory");
            let (g, u) = (upload(&gate), upload(&up));
            let (mut y, mut dg, mut du) = (upload(&gate), upload(&dout), upload(&up));
            cpu.swiglu(&g, &u, &mut y).expect("the CPU computes");
            cpu.swiglu_back(&g, &u, &mut dg, &mut du).expect("the CPU computes");

            let device = Device::new(programs);
            let [a, b, d] = [&gate, &up, &dout].map(|x| device.put_shifted(x, shift));
            let [out, db] = [0, 1].map(|_| device.room_shifted::<bf16>(n, shift));
            device.run(launch::swiglu(n), args![a, b, out, n as u64])?;
            device.run(launch::swiglu_back(n), args![a, b, d, db, n as u64])?;
            // One rounding at the end; what is nearly 0 by cancellation or a tiny gate keeps float32's absolute error.
            let get = |address| wide(&device.get::<bf16>(address, n));
            close("swiglu", &get(out), &y, BF16_ROUNDING, 1e-3)?;
            close("swiglu_back gate", &get(d), &dg, BF16_ROUNDING, 1e-3)?;
            close("swiglu_back up", &get(db), &du, BF16_ROUNDING, 1e-3)?;
        }
    }
    Ok(())
}

pub fn adamw(programs: &Programs) -> Outcome {
    let cpu = Cpu::new(1).expect("one thread starts");
    for (n, shift, step) in [(1, 0, 1), (7, 1, 2), (1024, 0, 1), (1024, 3, 9), (3001, 0, 50)] {
        let constants =
            AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step, gradient_scale: 0.37 };
        let (g, p, m) = (values(n, 1), values(n, 2), values(n, 3));
        let v: Vec<f32> = values(n, 4).iter().map(|x| x * x).collect();
        let upload = |x: &[f32]| cpu.upload(x).expect("host memory");
        let (mut params, mut first, mut second) = (upload(&p), upload(&m), upload(&v));
        cpu.adamw(&constants, &upload(&g), &mut params, &mut first, &mut second).expect("the CPU computes");

        let device = Device::new(programs);
        let [dg, dp, dm, dv] = [&g, &p, &m, &v].map(|x| device.put_shifted(x, shift));
        let AdamW { lr, beta1, beta2, eps, weight_decay, gradient_scale, .. } = constants;
        let correction = |beta: f32| (1.0 - f64::from(beta).powi(step as i32)) as f32;
        let (c1, c2) = (correction(beta1), correction(beta2));
        device.run(
            launch::adamw(n),
            args![dg, dp, dm, dv, n as u64, lr, beta1, beta2, eps, weight_decay, c1, c2, gradient_scale],
        )?;
        for (what, address, expected) in [("params", dp, &params), ("first", dm, &first), ("second", dv, &second)] {
            close(what, &device.get::<f32>(address, n), expected, F32_ROUNDING, 0.1)?;
        }
    }
    Ok(())
}

pub fn sum_squares(programs: &Programs) -> Outcome {
    for (n, shift) in [(1, 0), (4095, 0), (65_536, 0), (65_537, 1), (70_003, 0)] {
        let x = values(n, 8);
        let device = Device::new(programs);
        let launch = launch::sum_squares(n);
        let partials = n.div_ceil(launch::SQUARES_CHUNK);
        let (address, partial) = (device.put_shifted(&x, shift), device.room::<f64>(partials));
        device.run(launch, args![address, n as u64, partial])?;
        let sums = device.get::<f64>(partial, partials);
        for (chunk, sum) in x.chunks(launch::SQUARES_CHUNK).zip(&sums) {
            let expected: f64 = chunk.iter().map(|x| f64::from(*x).powi(2)).sum();
            // Squares are exact in float64; only the order of their sum differs.
            if (sum - expected).abs() > 1e-12 * expected {
                return Err(format!("sum_squares of {n}: {sum}, {expected} expected"));
            }
        }
    }
    Ok(())
}

#[test]
fn casts_round_to_nearest_even_at_any_address() {
    casts(&Programs::shipped()).unwrap();
}

#[test]
fn swiglu_and_its_gradient_are_the_cpus() {
    swiglu(&Programs::shipped()).unwrap();
}

#[test]
fn a_step_of_adamw_is_the_cpus() {
    adamw(&Programs::shipped()).unwrap();
}

#[test]
fn partial_sums_of_squares_are_the_chunks_own() {
    sum_squares(&Programs::shipped()).unwrap();
}
