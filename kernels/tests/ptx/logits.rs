//! Cross entropy with its gradient, and what evaluation reads from logits.

use insula_kernels::cuda::launch;
use insula_kernels::{Backend, Cpu, Targets, Wanted};

use crate::args;
use crate::device::{Device, F32_ROUNDING, Outcome, Programs, close, same, values};

/// One id, fewer than a warp, not multiples of 4 (so that rows start anywhere), more than a block's threads have.
const VOCABULARIES: [usize; 6] = [1, 5, 511, 2049, 2051, 4100];

/// Rows of logits with peaks; entries: none, one, several, an id twice.
fn rows(vocab: usize) -> (Vec<f32>, Vec<u32>, Vec<u32>, Vec<f32>) {
    let mut logits: Vec<f32> = values(4 * vocab, 1).iter().map(|x| 9.0 * x).collect();
    logits[vocab / 2] = 14.0;
    let id = |i: usize| (i * 37 % vocab) as u32;
    let ids = vec![id(0), id(1), id(5), id(5), id(9), id(2)];
    (logits, vec![0, 1, 1, 5, 6], ids, vec![1.0, 0.5, 0.25, 0.25, 0.0, 2.0])
}

pub fn cross_entropy(programs: &Programs) -> Outcome {
    let cpu = Cpu::new(1).expect("one thread starts");
    for vocab in VOCABULARIES {
        let (logits, offsets, ids, weights) = rows(vocab);
        let mut gradient = cpu.upload(&logits).expect("host memory");
        let mut loss = cpu.alloc([4, 1]).expect("host memory");
        let [o, i] = [&offsets, &ids].map(|x| cpu.indices(x).expect("host memory"));
        let targets = Targets { offsets: &o, ids: &i, weights: &cpu.upload(&weights).expect("host memory") };
        cpu.cross_entropy(&mut gradient, vocab, &targets, &mut loss).expect("the CPU computes");
        for shift in [0, 1] {
            let device = Device::new(programs);
            let (x, out) = (device.put_shifted(&logits, shift), device.room::<f32>(4));
            let (o, i, w) = (device.put(&offsets), device.put(&ids), device.put(&weights));
            device.run(launch::cross_entropy(4), args![x, vocab as u32, o, i, w, out])?;
            // Losses are differences of numbers up to 20; gradients are at most the weights' sum.
            close("loss", &device.get::<f32>(out, 4), &loss, F32_ROUNDING, 20.0)?;
            close("gradient", &device.get::<f32>(x, logits.len()), &gradient, F32_ROUNDING, 1.0)?;
        }
    }
    Ok(())
}

pub fn read_out(programs: &Programs) -> Outcome {
    let cpu = Cpu::new(1).expect("one thread starts");
    for vocab in VOCABULARIES {
        let (mut logits, offsets, ids, _) = rows(vocab);
        // All logits equal in row 0, the greatest twice in row 1: the lowest id is best, with no margin. In row 2 it is
        // the last.
        logits[..vocab].fill(3.0);
        logits[vocab + vocab / 3] = 11.0;
        logits[vocab + vocab / 3 * 2] = 11.0;
        logits[3 * vocab - 1] = 12.0;
        let buffer = cpu.upload(&logits).expect("host memory");
        let wanted = Wanted { offsets: &offsets, ids: &ids };
        let expected = cpu.read_out(&buffer, vocab, &wanted).expect("the CPU computes");
        for shift in [0, 1] {
            let device = Device::new(programs);
            let (x, o, i) = (device.put_shifted(&logits, shift), device.put(&offsets), device.put(&ids));
            let (log_probs, best, margin) =
                (device.room::<f32>(ids.len()), device.room::<u32>(4), device.room::<f32>(4));
            device.run(launch::read_out(4), args![x, vocab as u32, o, i, log_probs, best, margin])?;
            close("log_probs", &device.get::<f32>(log_probs, ids.len()), &expected.log_probs, F32_ROUNDING, 20.0)?;
            same("best", &device.get::<u32>(best, 4), &expected.best)?;
            same("margin", &device.get::<f32>(margin, 4), &expected.margin)?;
        }
    }
    Ok(())
}

#[test]
fn cross_entropy_and_its_gradient_are_the_cpus() {
    cross_entropy(&Programs::shipped()).unwrap();
}

#[test]
fn read_out_finds_the_best_the_margin_and_the_log_probabilities() {
    read_out(&Programs::shipped()).unwrap();
}
