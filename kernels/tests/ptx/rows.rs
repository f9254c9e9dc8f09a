//! Rows by index: gathering, adding back, embedding, and quantised matrices widened.

use half::{bf16, f16};
use insula_kernels::cuda::launch;
use insula_kernels::{Backend, Cpu, Precision};

use crate::args;
use crate::device::{Device, F32_ROUNDING, Outcome, Programs, bf16_values, close, narrow, same, values, wide};

pub fn gather(programs: &Programs) -> Outcome {
    let rows = [4_u32, 0, 4, 2];
    for width in [1, 7, 8, 1032] {
        for shift in [0, 1] {
            let (x, b) = (values(5 * width, 1), bf16_values(5 * width, 2));
            let device = Device::new(programs);
            let index = device.put(&rows);
            let (from, to) = (device.put_shifted(&x, shift), device.room_shifted::<f32>(4 * width, shift));
            device.run(launch::gather_rows_f32(4, width), args![from, index, to, width as u32])?;
            let expected: Vec<f32> =
                rows.iter().flat_map(|row| &x[*row as usize * width..][..width]).copied().collect();
            same("gather_rows_f32", &device.get::<f32>(to, 4 * width), &expected)?;

            let (from, to) = (device.put_shifted(&b, shift), device.room_shifted::<bf16>(4 * width, shift));
            device.run(launch::gather_rows_bf16(4, width), args![from, index, to, width as u32])?;
            let expected: Vec<bf16> =
                rows.iter().flat_map(|row| &b[*row as usize * width..][..width]).copied().collect();
            same("gather_rows_bf16", &device.get::<bf16>(to, 4 * width), &expected)?;
        }
    }
    Ok(())
}

/// Rows named once, many times, by neighbours and far apart; added in order, so the bits are the CPU's.
pub fn scatter(programs: &Programs) -> Outcome {
    let cpu = Cpu::new(1).expect("one thread starts");
    for (width, count) in [(1, 3), (7, 70), (8, 70), (1028, 9)] {
        for shift in [0, 1] {
            let rows: Vec<u32> = (0..count as u32).map(|i| if i % 3 == 0 { 2 } else { i * 7 % 11 }).collect();
            let (x, out) = (values(count * width, 1), values(11 * width, 2));
            let mut expected = cpu.upload(&out).expect("host memory");
            let (cx, index) = (cpu.upload(&x).expect("host memory"), cpu.indices(&rows).expect("host memory"));
            cpu.scatter_add_rows(&cx, &index, width, &mut expected).expect("the CPU computes");
            let device = Device::new(programs);
            let (ax, index, to) = (device.put_shifted(&x, shift), device.put(&rows), device.put_shifted(&out, shift));
            device.run(launch::scatter_add_rows(count, width), args![ax, index, to, count as u32, width as u32])?;
            same("scatter_add_rows", &device.get::<f32>(to, out.len()), &expected)?;
        }
    }
    Ok(())
}

/// A matrix in blocks of 32, the planes as the kernels read them.
struct Planes {
    bytes: Vec<u8>,
    scales: Vec<f16>,
    leasts: Vec<f16>,
}

/// GGUF's Q8_0 and Q4_1 as the CPU quantises: a scale (and least value) for 32 neighbours, rounded to nearest.
fn quantised(matrix: &[f32], width: usize, precision: Precision) -> Planes {
    let mut planes = Planes { bytes: vec![], scales: vec![], leasts: vec![] };
    for block in matrix.chunks(width).flat_map(|row| row.chunks(32)) {
        let (low, high) = block.iter().fold((f32::MAX, f32::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
        let (scale, least) = match precision {
            Precision::Q8 => (f16::from_f32(low.abs().max(high.abs()) / 127.0), f16::ZERO),
            _ => (f16::from_f32((high - low) / 15.0), f16::from_f32(low)),
        };
        let step = |x: &f32| match scale.to_f32() {
            0.0 => 0.0,
            scale => ((x - least.to_f32()) / scale).round(),
        };
        let mut bytes = [0; 32];
        for (i, x) in block.iter().enumerate() {
            match precision {
                Precision::Q8 => bytes[i] = (step(x).clamp(-127.0, 127.0) as i8).cast_unsigned(),
                _ => bytes[i % 16] |= (step(x).clamp(0.0, 15.0) as u8) << (i / 16 * 4),
            }
        }
        planes.bytes.extend(&bytes[..if precision == Precision::Q8 { 32 } else { 16 }]);
        planes.scales.push(scale);
        planes.leasts.push(least);
    }
    planes
}

pub fn quantised_rows(programs: &Programs) -> Outcome {
    let cpu = Cpu::new(1).expect("one thread starts");
    let (rows, ids) = (5, [3_u32, 0, 3]);
    for width in [1, 20, 32, 40, 100, 2080] {
        let matrix = values(rows * width, 1);
        let all = cpu.indices(&(0..rows as u32).collect::<Vec<_>>()).expect("host memory");
        for precision in [Precision::Bf16, Precision::Q8, Precision::Q4] {
            let weight = cpu.weight([rows, width], &matrix, precision).expect("host memory");
            let mut expected = cpu.alloc([rows, width]).expect("host memory");
            cpu.embed(&weight, &all, &mut expected).expect("the CPU computes");
            let chosen: Vec<f32> =
                ids.iter().flat_map(|id| &expected[*id as usize * width..][..width]).copied().collect();

            let device = Device::new(programs);
            let (index, out) = (device.put(&ids), device.room::<f32>(ids.len() * width));
            let (all, w) = (device.room::<bf16>(rows * width), width as u32);
            let planes = quantised(&matrix, width, precision);
            let [scales, leasts] = [&planes.scales, &planes.leasts].map(|plane| device.put(plane));
            let bytes = device.put(&planes.bytes);
            match precision {
                Precision::Q8 => {
                    device.run(launch::embed_q8(ids.len(), width), args![bytes, scales, index, out, w])?;
                    device.run(launch::dequantise_q8(rows, width), args![bytes, scales, all, rows as u32, w])?;
                }
                Precision::Q4 => {
                    device.run(launch::embed_q4(ids.len(), width), args![bytes, scales, leasts, index, out, w])?;
                    device
                        .run(launch::dequantise_q4(rows, width), args![bytes, scales, leasts, all, rows as u32, w])?;
                }
                _ => {
                    let table = narrow(&matrix);
                    device.run(launch::embed_bf16(ids.len(), width), args![device.put(&table), index, out, w])?;
                    same("embed_bf16", &device.get::<f32>(out, chosen.len()), &chosen)?;
                    let shifted = device.room_shifted::<f32>(chosen.len(), 1);
                    let args = args![device.put_shifted(&table, 1), index, shifted, w];
                    device.run(launch::embed_bf16(ids.len(), width), args)?;
                    same("embed_bf16", &device.get::<f32>(shifted, chosen.len()), &chosen)?;
                    continue;
                }
            }
            // least + scale * q is rounded once or twice.
            close("embed", &device.get::<f32>(out, chosen.len()), &chosen, F32_ROUNDING, 0.1)?;
            let rounded = wide(&narrow(&expected));
            close("dequantise", &wide(&device.get::<bf16>(all, rounded.len())), &rounded, 1.0 / 128.0, 1e-3)?;
        }
    }
    Ok(())
}

#[test]
fn gathered_rows_are_copies() {
    gather(&Programs::shipped()).unwrap();
}

#[test]
fn repeated_rows_are_added_in_order() {
    scatter(&Programs::shipped()).unwrap();
}

#[test]
fn quantised_rows_are_widened_as_the_cpu_does() {
    quantised_rows(&Programs::shipped()).unwrap();
}
