//! RMSNorm forward, backward and its gain's gradient; rotary positions.

use half::bf16;
use insula_kernels::cuda::launch;
use insula_kernels::{Backend, Cpu, Direction};

use crate::args;
use crate::device::{BF16_ROUNDING, Device, F32_ROUNDING, Outcome, Programs, bf16_values, close, values, wide};

const EPS: f32 = 1e-5;

/// Rows and widths: less than a warp, not a multiple of 4, of four, wider than 256 threads hold, and than 1024 do.
const SHAPES: [[usize; 2]; 7] = [[1, 1], [3, 7], [2, 64], [5, 100], [2, 1021], [2, 5004], [1, 16_420]];

pub fn rms_norm(programs: &Programs) -> Outcome {
    let cpu = Cpu::new(1).expect("one thread starts");
    for [rows, width] in SHAPES {
        for shift in [0, 1] {
            let (x, gain, dy, dx) =
                (values(rows * width, 1), values(width, 2), values(rows * width, 3), values(rows * width, 4));
            let upload = |x: &[f32]| cpu.upload(x).expect("host memory");
            let (cx, cgain, cdy) = (upload(&x), upload(&gain), upload(&dy));
            let (mut y, mut back, mut grads) = (upload(&x), upload(&dx), upload(&gain));
            cpu.rms_norm(&cx, &cgain, EPS, &mut y).expect("the CPU computes");
            cpu.rms_norm_back(&cx, &cgain, EPS, &cdy, &mut back).expect("the CPU computes");
            cpu.gain_gradient(&cx, EPS, &cdy, width, &mut grads, 0).expect("the CPU computes");

            let device = Device::new(programs);
            let [ax, again, ady, adx, agrads] = [&x, &gain, &dy, &dx, &gain].map(|x| device.put_shifted(x, shift));
            let ay = device.room_shifted::<bf16>(rows * width, shift);
            let inverse = device.room::<f32>(rows);
            let (r, w) = (rows as u32, width as u32);
            device.run(launch::rms_norm(rows, width), args![ax, again, ay, w, EPS])?;
            device.run(launch::rms_norm_back(rows, width), args![ax, again, ady, adx, w, EPS])?;
            device.run(launch::inverse_rms(rows, width), args![ax, inverse, w, EPS])?;
            device.run(launch::gain_gradient(width), args![ax, inverse, ady, agrads, r, w])?;
            close("rms_norm", &wide(&device.get::<bf16>(ay, rows * width)), &y, BF16_ROUNDING, 1e-4)?;
            // A gradient is a difference of terms around 1 (times 1 / rms): float32's error of those remains.
            close("rms_norm_back", &device.get::<f32>(adx, rows * width), &back, F32_ROUNDING, 10.0)?;
            close("gain_gradient", &device.get::<f32>(agrads, width), &grads, F32_ROUNDING, 10.0)?;
        }
    }
    Ok(())
}

/// Gains' gradients over more rows than a block has row lanes.
pub fn many_rows(programs: &Programs) -> Outcome {
    let cpu = Cpu::new(1).expect("one thread starts");
    let (rows, width) = (131, 40);
    let (x, dy) = (values(rows * width, 1), values(rows * width, 2));
    let upload = |x: &[f32]| cpu.upload(x).expect("host memory");
    let mut grads = upload(&vec![0.5; width]);
    cpu.gain_gradient(&upload(&x), EPS, &upload(&dy), width, &mut grads, 0).expect("the CPU computes");
    let device = Device::new(programs);
    let (ax, ady, agrads) = (device.put(&x), device.put(&dy), device.put(&vec![0.5_f32; width]));
    let inverse = device.room::<f32>(rows);
    device.run(launch::inverse_rms(rows, width), args![ax, inverse, width as u32, EPS])?;
    device.run(launch::gain_gradient(width), args![ax, inverse, ady, agrads, rows as u32, width as u32])?;
    close("gain_gradient", &device.get::<f32>(agrads, width), &grads, F32_ROUNDING, 10.0)
}

pub fn rotary(programs: &Programs) -> Outcome {
    let cpu = Cpu::new(1).expect("one thread starts");
    for (tokens, heads, head_dim) in
        [(1, 1, 2), (3, 2, 8), (2, 3, 24), (2, 5, 64), (1, 14, 80), (2, 9, 128), (1, 2, 256)]
    {
        for direction in [Direction::Forward, Direction::Backward] {
            let x = bf16_values(tokens * heads * head_dim, 1);
            let angles: Vec<f32> = values(tokens * head_dim / 2, 2).iter().map(|x| 3.0 * x).collect();
            let rows = angles.chunks(head_dim / 2);
            let table: Vec<f32> = rows
                .flat_map(|row| row.iter().map(|a| a.cos()).chain(row.iter().map(|a| a.sin())).collect::<Vec<_>>())
                .collect();
            let mut turned = cpu.upload(&wide(&x)).expect("host memory");
            cpu.rotary(&mut turned, &cpu.upload(&table).expect("host memory"), head_dim, direction)
                .expect("the CPU computes");

            let sign = if direction == Direction::Forward { 1.0_f32 } else { -1.0 };
            for shift in [0, 1] {
                let device = Device::new(programs);
                let (ax, atable) = (device.put_shifted(&x, shift), device.put_shifted(&table, shift));
                device.run(
                    launch::rotary(tokens, heads, head_dim),
                    args![ax, atable, heads as u32, head_dim as u32, sign],
                )?;
                close("rotary", &wide(&device.get::<bf16>(ax, x.len())), &turned, BF16_ROUNDING, 1e-4)?;
            }
        }
    }
    Ok(())
}

#[test]
fn rms_norm_and_its_gradients_are_the_cpus() {
    rms_norm(&Programs::shipped()).unwrap();
}

#[test]
fn a_gains_gradient_adds_every_row() {
    many_rows(&Programs::shipped()).unwrap();
}

#[test]
fn rotary_turns_heads_of_any_even_width_both_ways() {
    rotary(&Programs::shipped()).unwrap();
}
