//! Every operation against its definition in float64, and one thread against three.
#![expect(clippy::unwrap_used, reason = "a test whose fixture fails stops there")]

use insula_kernels::{
    AdamW, Attention, Backend, Cpu, Direction, LoraShape, Precision, Projection, ProjectionBack, Sight, Targets,
    Wanted, Write,
};

const SHAPE: Attention = Attention { heads: 4, kv_heads: 2, head_dim: 10 };

/// Deterministic values in [-1, 1).
fn values(len: usize, seed: u64) -> Vec<f32> {
    let hash = |i: u64| {
        (i.wrapping_add(seed << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (i << 7)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
    };
    (0..len as u64).map(|i| (hash(i) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn close(what: &str, ours: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(expected).enumerate() {
        assert!((f64::from(*a) - b).abs() <= tolerance * (1.0 + b.abs()), "{what}[{i}]: {a}, {b} expected");
    }
}

/// End of each row's subtree in a forest of 150 rows: a trunk of 30, then branches of 17, half of them nested.
fn ends() -> Vec<u32> {
    let n = 150u32;
    (0..n)
        .map(|i| match i {
            0..30 => n,
            _ if (i - 30) / 17 % 2 == 0 => (30 + ((i - 30) / 34 + 1) * 34).min(n),
            _ => (30 + ((i - 30) / 17 + 1) * 17).min(n),
        })
        .collect()
}

struct Naive {
    out: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

fn naive_attention(query: &[u32], end: &[u32], q: &[f32], k: &[f32], v: &[f32], dout: &[f32]) -> Naive {
    let Attention { heads, kv_heads, head_dim: d } = SHAPE;
    let scale = (d as f64).sqrt().recip();
    let mut naive = Naive {
        out: vec![0.0; q.len()],
        lse: vec![0.0; query.len() * heads],
        dq: vec![0.0; q.len()],
        dk: vec![0.0; k.len()],
        dv: vec![0.0; v.len()],
    };
    let at = |x: &[f32], i: usize| f64::from(x[i]);
    for (i, row) in query.iter().enumerate() {
        for h in 0..heads {
            let (qi, g) = ((i * heads + h) * d, h * kv_heads / heads);
            let keys: Vec<usize> = (0..=*row as usize).filter(|j| *row < end[*j]).collect();
            let ki = |j: usize| (j * kv_heads + g) * d;
            let scores: Vec<f64> =
                keys.iter().map(|j| scale * (0..d).map(|c| at(q, qi + c) * at(k, ki(*j) + c)).sum::<f64>()).collect();
            let lse = scores.iter().map(|s| s.exp()).sum::<f64>().ln();
            naive.lse[i * heads + h] = lse;
            let p: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
            for (j, p) in keys.iter().zip(&p) {
                for c in 0..d {
                    naive.out[qi + c] += p * at(v, ki(*j) + c);
                    naive.dv[ki(*j) + c] += p * at(dout, qi + c);
                }
            }
            let along: f64 = (0..d).map(|c| at(dout, qi + c) * naive.out[qi + c]).sum();
            for (j, p) in keys.iter().zip(&p) {
                let dp: f64 = (0..d).map(|c| at(dout, qi + c) * at(v, ki(*j) + c)).sum();
                let ds = p * (dp - along) * scale;
                for c in 0..d {
                    naive.dq[qi + c] += ds * at(k, ki(*j) + c);
                    naive.dk[ki(*j) + c] += ds * at(q, qi + c);
                }
            }
        }
    }
    naive
}

/// Forward and backward attention of some query rows; all outputs, concatenated by name.
fn run_attention(cpu: &Cpu, query: &[u32], end: &[u32]) -> Vec<Vec<f32>> {
    let (queries, keys) = (query.len(), end.len());
    let (qw, kw) = (SHAPE.heads * SHAPE.head_dim, SHAPE.kv_heads * SHAPE.head_dim);
    let upload = |len, seed| cpu.upload(&values(len, seed)).unwrap();
    let (q, k, v, dout) =
        (upload(queries * qw, 1), upload(keys * kw, 2), upload(keys * kw, 3), upload(queries * qw, 4));
    let order: Vec<u32> = (0..keys as u32).collect();
    let (query, start, end) = (cpu.indices(query).unwrap(), cpu.indices(&order).unwrap(), cpu.indices(end).unwrap());
    let sight = Sight { query: &query, start: &start, end: &end };
    let (mut out, mut lse) = (upload(queries * qw, 9), upload(queries * SHAPE.heads, 9));
    cpu.attention(SHAPE, &sight, &q, &k, &v, &mut out, &mut lse).unwrap();
    let (mut dq, mut dk, mut dv) = (upload(queries * qw, 9), upload(keys * kw, 9), upload(keys * kw, 9));
    cpu.attention_back(SHAPE, &sight, &q, &k, &v, &out, &lse, &dout, &mut dq, &mut dk, &mut dv).unwrap();
    [out, lse, dq, dk, dv].iter().map(|buffer| cpu.download(buffer).unwrap()).collect()
}

#[test]
fn attention_follows_the_forest_forward_and_backward() {
    let cpu = Cpu::new(2).unwrap();
    let end = ends();
    let all: Vec<u32> = (0..end.len() as u32).collect();
    let some = vec![3, 29, 30, 64, 100, 149];
    for query in [all, some] {
        let (qw, kw) = (SHAPE.heads * SHAPE.head_dim, SHAPE.kv_heads * SHAPE.head_dim);
        let naive = naive_attention(
            &query,
            &end,
            &values(query.len() * qw, 1),
            &values(end.len() * kw, 2),
            &values(end.len() * kw, 3),
            &values(query.len() * qw, 4),
        );
        let ours = run_attention(&cpu, &query, &end);
        close("out", &ours[0], &naive.out, 1e-5);
        close("lse", &ours[1], &naive.lse, 1e-5);
        close("dq", &ours[2], &naive.dq, 1e-5);
        close("dk", &ours[3], &naive.dk, 1e-5);
        close("dv", &ours[4], &naive.dv, 1e-5);
    }
}

/// Rows, inputs, outputs: inputs of whole panels and of others, depths of several runs, and a single row.
const GRADIENT_SHAPES: [[usize; 3]; 4] = [[700, 48, 130], [333, 37, 70], [1, 16, 5], [60, 9, 1]];

/// The gradients of a weight and of a gain, added to what lies in the middle of a buffer.
fn weight_and_gain_gradients(cpu: &Cpu, [rows, input, output]: [usize; 3]) -> [Vec<f32>; 2] {
    let upload = |len, seed| cpu.upload(&values(len, seed)).unwrap();
    let (x, dy) = (upload(rows * input, 1), upload(rows * output, 2));
    let mut grads = upload(3 + output * input + 2, 3);
    cpu.weight_gradient(&x, &dy, [output, input], &mut grads, 3).unwrap();
    let (dnormed, mut gain) = (upload(rows * input, 4), upload(1 + input + 2, 5));
    cpu.gain_gradient(&x, 1e-5, &dnormed, input, &mut gain, 1).unwrap();
    [cpu.take(grads).unwrap(), cpu.take(gain).unwrap()]
}

#[test]
fn gradients_of_weights_and_gains_are_their_definitions() {
    for [rows, input, output] in GRADIENT_SHAPES {
        let ours = weight_and_gain_gradients(&Cpu::new(2).unwrap(), [rows, input, output]);
        let at = |x: &[f32], i: usize| f64::from(x[i]);
        let (x, dy, dnormed) = (values(rows * input, 1), values(rows * output, 2), values(rows * input, 4));
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
        let mut weight = wide(values(3 + output * input + 2, 3));
        for (i, g) in weight[3..3 + output * input].iter_mut().enumerate() {
            *g += (0..rows).map(|t| at(&dy, t * output + i / input) * at(&x, t * input + i % input)).sum::<f64>();
        }
        close("weight", &ours[0], &weight, 1e-4);
        let mut gain = wide(values(1 + input + 2, 5));
        for t in 0..rows {
            let squares = (0..input).map(|j| at(&x, t * input + j).powi(2)).sum::<f64>();
            let rms = (squares / input as f64 + 1e-5).sqrt();
            for j in 0..input {
                gain[1 + j] += at(&dnormed, t * input + j) * at(&x, t * input + j) / rms;
            }
        }
        close("gain", &ours[1], &gain, 1e-4);
    }
}

/// Products, LoRA, weight gradients and attention at sizes of several tasks each.
fn everything(cpu: &Cpu) -> Vec<Vec<f32>> {
    let (m, input, output, r) = (211, 70, 530, 5);
    let mut all = run_attention(cpu, &(0..150).collect::<Vec<u32>>(), &ends());
    let shape = LoraShape { r, input, output, a: 3, b: 3 + r * input, scale: 0.7 };
    let params = cpu.upload(&values(3 + r * (input + output), 5)).unwrap();
    let x = cpu.upload(&values(m * input, 6)).unwrap();
    for precision in [Precision::F32, Precision::Bf16] {
        let weight = cpu.weight([output, input], &values(output * input, 7), precision).unwrap();
        let mut y = cpu.upload(&values(m * output, 8)).unwrap();
        let mut down = cpu.alloc([m, r]).unwrap();
        let layer = Projection { weight: &weight, pair: Some((shape, &mut down)), y: &mut y };
        cpu.project(&x, &params, &mut [layer], Write::Add).unwrap();
        let mut dx = cpu.upload(&values(m * input, 9)).unwrap();
        let mut grads = cpu.upload(&values(3 + r * (input + output), 10)).unwrap();
        let layer = ProjectionBack { weight: &weight, pair: Some((shape, &down)), dy: &y };
        cpu.project_back(Some(&x), &params, &[layer], &mut grads, Some((&mut dx, Write::Add))).unwrap();
        all.extend([&y, &down, &dx, &grads].map(|buffer| cpu.download(buffer).unwrap()));
    }
    all.extend(GRADIENT_SHAPES.map(|shape| weight_and_gain_gradients(cpu, shape)).into_iter().flatten());
    all
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let one = everything(&Cpu::new(1).unwrap());
    for threads in [2, 3] {
        assert!(everything(&Cpu::new(threads).unwrap()) == one, "{threads} threads differ from one");
    }
}

#[test]
fn lora_and_products_are_their_definitions() {
    let (m, input, output, r) = (211, 70, 530, 5);
    let ours = &everything(&Cpu::new(2).unwrap())[5..9];
    let at = |x: &[f32], i: usize| f64::from(x[i]);
    let (x, w) = (values(m * input, 6), values(output * input, 7));
    let (params, start) = (values(3 + r * (input + output), 5), values(m * output, 8));
    let (a, b) = (&params[3..], &params[3 + r * input..]);
    let dot = |n: usize, f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>();
    let down: Vec<f64> =
        (0..m * r).map(|i| dot(input, &|c| at(&x, i / r * input + c) * at(a, i % r * input + c))).collect();
    let y: Vec<f64> = (0..m * output)
        .map(|i| {
            let (t, o) = (i / output, i % output);
            let plain = dot(input, &|c| at(&x, t * input + c) * at(&w, o * input + c));
            at(&start, i) + plain + f64::from(0.7f32) * dot(r, &|j| down[t * r + j] * at(b, o * r + j))
        })
        .collect();
    close("y", &ours[0], &y, 2e-5);
    close("down", &ours[1], &down, 2e-5);
    let scaled = |t: usize, j: usize| f64::from(0.7f32) * dot(output, &|o| y[t * output + o] * at(b, o * r + j));
    let ddown: Vec<f64> = (0..m * r).map(|i| scaled(i / r, i % r)).collect();
    let before = values(m * input, 9);
    let dx: Vec<f64> = (0..m * input)
        .map(|i| {
            let (t, c) = (i / input, i % input);
            let plain = dot(output, &|o| y[t * output + o] * at(&w, o * input + c));
            at(&before, i) + plain + dot(r, &|j| ddown[t * r + j] * at(a, j * input + c))
        })
        .collect();
    // Terms of a few hundred cancel in dx and grads: 1e-3 is 3e-6 of them.
    close("dx", &ours[2], &dx, 1e-3);
    let mut grads: Vec<f64> = values(3 + r * (input + output), 10).into_iter().map(f64::from).collect();
    for (i, g) in grads[3..3 + r * input].iter_mut().enumerate() {
        *g += dot(m, &|t| ddown[t * r + i / input] * at(&x, t * input + i % input));
    }
    for (i, g) in grads[3 + r * input..].iter_mut().enumerate() {
        *g += f64::from(0.7f32) * dot(m, &|t| y[t * output + i / r] * down[t * r + i % r]);
    }
    close("grads", &ours[3], &grads, 1e-3);
}

#[test]
fn norms_have_the_gradient_of_their_values() {
    let cpu = Cpu::new(2).unwrap();
    let (rows, width, eps) = (40, 37, 1e-5);
    let (x, gain, dy) = (values(rows * width, 1), values(width, 2), values(rows * width, 3));
    let norm = |x: &[f64]| -> Vec<f64> {
        let c = (x.iter().map(|v| v * v).sum::<f64>() / width as f64 + f64::from(eps)).sqrt().recip();
        x.iter().zip(&gain).map(|(v, g)| v * c * f64::from(*g)).collect()
    };
    let (xb, gb, dyb) = (cpu.upload(&x).unwrap(), cpu.upload(&gain).unwrap(), cpu.upload(&dy).unwrap());
    let (mut y, mut dx) = (cpu.alloc([rows, width]).unwrap(), cpu.upload(&vec![2.0; rows * width]).unwrap());
    cpu.rms_norm(&xb, &gb, eps, &mut y).unwrap();
    cpu.rms_norm_back(&xb, &gb, eps, &dyb, &mut dx).unwrap();
    let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let expected: Vec<f64> = wide.chunks(width).flat_map(&norm).collect();
    close("y", &cpu.download(&y).unwrap(), &expected, 1e-6);
    let slope = |i: usize| {
        let row = i / width * width..(i / width + 1) * width;
        let loss = |step: f64| {
            let mut moved = wide[row.clone()].to_vec();
            moved[i % width] += step;
            norm(&moved).iter().zip(&dy[row.clone()]).map(|(y, d)| y * f64::from(*d)).sum::<f64>()
        };
        2.0 + (loss(1e-5) - loss(-1e-5)) / 2e-5
    };
    close("dx", &cpu.download(&dx).unwrap(), &(0..rows * width).map(slope).collect::<Vec<_>>(), 1e-5);
}

#[test]
fn swiglu_has_the_gradient_of_its_values() {
    let cpu = Cpu::new(2).unwrap();
    let n = 20_000;
    let (gate, up, dout): (Vec<f32>, _, _) =
        (values(n, 1).iter().map(|g| g * 20.0).collect(), values(n, 2), values(n, 3));
    let (g, u) = (cpu.upload(&gate).unwrap(), cpu.upload(&up).unwrap());
    let (mut out, mut dgate, mut dup) =
        (cpu.alloc([1, n]).unwrap(), cpu.upload(&dout).unwrap(), cpu.alloc([1, n]).unwrap());
    cpu.swiglu(&g, &u, &mut out).unwrap();
    cpu.swiglu_back(&g, &u, &mut dgate, &mut dup).unwrap();
    let wide = |x: &[f32], i: usize| f64::from(x[i]);
    let s = |i: usize| 1.0 / (1.0 + (-wide(&gate, i)).exp());
    let silu = |i: usize| wide(&gate, i) * s(i);
    let expect = |f: &dyn Fn(usize) -> f64| (0..n).map(f).collect::<Vec<f64>>();
    close("out", &cpu.download(&out).unwrap(), &expect(&|i| silu(i) * wide(&up, i)), 1e-6);
    close("dup", &cpu.download(&dup).unwrap(), &expect(&|i| silu(i) * wide(&dout, i)), 1e-6);
    let dsilu = |i: usize| s(i) * (1.0 + wide(&gate, i) * (1.0 - s(i)));
    close("dgate", &cpu.download(&dgate).unwrap(), &expect(&|i| wide(&dout, i) * wide(&up, i) * dsilu(i)), 2e-6);
}

#[test]
fn rotation_backward_undoes_rotation_forward() {
    let cpu = Cpu::new(2).unwrap();
    let x = values(3 * 8, 1);
    let table: Vec<f32> = (0..3)
        .flat_map(|t| [(t as f32).cos(), (t as f32 * 0.1).cos(), (t as f32).sin(), (t as f32 * 0.1).sin()])
        .collect();
    let (mut buffer, table) = (cpu.upload(&x).unwrap(), cpu.upload(&table).unwrap());
    cpu.rotary(&mut buffer, &table, 4, Direction::Forward).unwrap();
    let turned = cpu.download(&buffer).unwrap();
    assert_eq!(turned[..8], x[..8]);
    let expected = x[8] * 1f32.cos() - x[10] * 1f32.sin();
    assert!((turned[8] - expected).abs() < 1e-6);
    cpu.rotary(&mut buffer, &table, 4, Direction::Backward).unwrap();
    assert!(cpu.download(&buffer).unwrap().iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn cross_entropy_weighs_each_target() {
    let cpu = Cpu::new(2).unwrap();
    let mut logits = cpu.upload(&[0.0, 0.0, 3f32.ln(), 5.0, 5.0, 5.0]).unwrap();
    let index = |values: &[u32]| cpu.indices(values).unwrap();
    let (offsets, ids) = (index(&[0, 2, 3]), index(&[0, 2, 1]));
    let weights = cpu.upload(&[1.0, 2.5, 0.5]).unwrap();
    let mut loss = cpu.alloc([1, 2]).unwrap();
    cpu.cross_entropy(&mut logits, 3, &Targets { offsets: &offsets, ids: &ids, weights: &weights }, &mut loss).unwrap();
    let fifth = 0.2f64;
    close("loss", &cpu.download(&loss).unwrap(), &[-fifth.ln() - 2.5 * 0.6f64.ln(), 0.5 * 3f64.ln()], 1e-6);
    let sixth = 1.0 / 6.0;
    let expected = [3.5 * fifth - 1.0, 3.5 * fifth, 3.5 * 0.6 - 2.5, sixth, sixth - 0.5, sixth];
    close("gradient", &cpu.download(&logits).unwrap(), &expected, 1e-6);
}

#[test]
fn reading_out_breaks_ties_to_the_lowest_id() {
    let cpu = Cpu::new(2).unwrap();
    let logits = cpu.upload(&[1.0, 4.0, 4.0, 0.0, 2.0, -1.0]).unwrap();
    let readout = cpu.read_out(&logits, 3, &Wanted { offsets: &[0, 0, 2], ids: &[2, 1] }).unwrap();
    assert_eq!((readout.best, readout.margin), (vec![1, 1], vec![0.0, 2.0]));
    let lse = (1f64 + 2f64.exp() + (-1f64).exp()).ln();
    close("log_probs", &readout.log_probs, &[-1.0 - lse, 2.0 - lse], 1e-6);
}

#[test]
fn rows_are_gathered_and_scattered_by_index() {
    let cpu = Cpu::new(2).unwrap();
    let rows = cpu.indices(&[2, 0]).unwrap();
    let (x, mut out) = (cpu.upload(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap(), cpu.alloc([1, 4]).unwrap());
    cpu.gather_rows(&x, &rows, 2, &mut out).unwrap();
    assert_eq!(cpu.download(&out).unwrap(), [5.0, 6.0, 1.0, 2.0]);
    let mut sum = cpu.upload(&[1.0; 6]).unwrap();
    cpu.scatter_add_rows(&out, &rows, 2, &mut sum).unwrap();
    assert_eq!(cpu.download(&sum).unwrap(), [2.0, 3.0, 1.0, 1.0, 6.0, 7.0]);
    let table = cpu.weight([3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], Precision::Bf16).unwrap();
    cpu.embed(&table, &rows, &mut out).unwrap();
    assert_eq!(cpu.download(&out).unwrap(), [5.0, 6.0, 1.0, 2.0]);
}

#[test]
fn the_optimizer_steps_device_buffers_too() {
    let cpu = Cpu::new(1).unwrap();
    let step = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 1, gradient_scale: 1.0 };
    let gradient = cpu.upload(&[3.0, -4.0]).unwrap();
    let buffer = || cpu.upload(&[0.0, 0.0]).unwrap();
    let (mut params, mut first, mut second) = (buffer(), buffer(), buffer());
    cpu.adamw(&step, &gradient, &mut params, &mut first, &mut second).unwrap();
    close("params", &cpu.download(&params).unwrap(), &[-0.1, 0.1], 1e-6);
    assert_eq!(cpu.sum_squares(&gradient).unwrap(), 25.0);
}
