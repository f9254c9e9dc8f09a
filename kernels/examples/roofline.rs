//! What the CUDA kernels ask of a GPU, as Markdown: bytes and operations counted by the interpreter, registers from
//! `resources.toml`, and the time the memory's and the tensor cores' nominal speed allow at best.
//!
//! `cargo run --release -p insula-kernels --example roofline`
//!
//! Counts are of the shipped PTX at a 7-billion-parameter model's widths and few rows. "Asked for" is what the warps ask
//! of caches and memory together; the memory itself must move at least the operands once. Times are estimates, not
//! measurements: no kernel is faster than its line says, and how near it comes only a GPU can tell.

use std::error::Error;

use half::bf16;
use insula_kernels::cuda::launch::{self, Launch, LaunchError};
use insula_kernels::cuda::ptx::MODULES;
use insula_ptxsim::{Arena, Checks, Counts, Module, Params};

/// Bytes and bf16 tensor operations a second, as the data sheets say.
const DEVICES: [(&str, f64, f64); 2] = [("A100", 1555e9, 312e12), ("H100", 3350e9, 989e12)];
/// Tokens of the update that times are given for.
const TOKENS: usize = 4096;
/// Rows run here.
const ROWS: usize = 8;
const WIDTH: usize = 3584;
const INNER: usize = 18_944;
const VOCABULARY: usize = 152_064;
const HEADS: usize = 28;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 128;

/// One line of the table.
struct Line {
    kernel: &'static str,
    shape: String,
    counts: Counts,
    /// Bytes the memory moves at least, where that is less than what is asked for: operands and results once.
    operands: Option<usize>,
    /// How many of what was run an update of [`TOKENS`] has.
    times: f64,
}

struct Device {
    arena: Arena,
}

impl Device {
    fn f32s(&self, len: usize) -> u64 {
        self.arena.upload(&(0..len).map(|i| (i % 97) as f32 / 48.5 - 1.0).collect::<Vec<f32>>())
    }

    fn bf16s(&self, len: usize) -> u64 {
        self.arena.upload(&(0..len).map(|i| bf16::from_f32((i % 89) as f32 / 44.5 - 1.0)).collect::<Vec<bf16>>())
    }

    fn run(
        &self,
        launch: Result<Launch, LaunchError>,
        params: &Params,
    ) -> Result<(&'static str, Counts), Box<dyn Error>> {
        let launch = launch?;
        let module = MODULES.iter().find(|module| module.kernels.contains(&launch.kernel)).ok_or("no such kernel")?;
        let parsed = Module::parse(module.text)?;
        let counts = insula_ptxsim::run(
            &insula_ptxsim::Launch {
                kernel: parsed.kernel(launch.kernel).ok_or("no such kernel")?,
                grid: launch.grid,
                block: launch.block,
                dynamic_shared: launch.shared,
                params: params.bytes(),
                checks: Checks::OFF,
            },
            &self.arena,
        )?;
        Ok((launch.kernel, counts))
    }

    fn line(
        &self,
        launch: Result<Launch, LaunchError>,
        params: Params,
        shape: &str,
        times: f64,
    ) -> Result<Line, Box<dyn Error>> {
        let (kernel, counts) = self.run(launch, &params)?;
        Ok(Line { kernel, shape: shape.to_owned(), counts, operands: None, times })
    }
}

fn row_kernels(device: &Device) -> Result<Vec<Line>, Box<dyn Error>> {
    let (n, w, inner) = (ROWS * WIDTH, WIDTH as u32, ROWS * INNER);
    let scale = TOKENS as f64 / ROWS as f64;
    let (gain, wide, narrow) = (device.f32s(WIDTH), || device.f32s(n), || device.bf16s(n));
    let pointers = |addresses: &[u64]| addresses.iter().fold(Params::new(), |params, address| params.push(*address));
    let norm = pointers(&[wide(), gain, narrow()]).push(w).push(1e-5_f32);
    let norm_back = pointers(&[wide(), gain, wide(), wide()]).push(w).push(1e-5_f32);
    let table = device.f32s(ROWS * HEAD_DIM);
    let turn = pointers(&[narrow(), table]).push(HEADS as u32).push(HEAD_DIM as u32).push(1.0_f32);
    let [gate, up, out, dup] = [0, 1, 2, 3].map(|_| device.bf16s(inner));
    let glu = pointers(&[gate, up, out]).push(inner as u64);
    let glu_back = pointers(&[gate, up, out, dup]).push(inner as u64);
    let narrowing = pointers(&[wide(), narrow()]).push(n as u64).push(1.0_f32);
    let adam =
        (0..8).fold(pointers(&[wide(), wide(), wide(), wide()]).push(n as u64), |params, _| params.push(0.5_f32));
    let tokens = format!("{TOKENS} x {WIDTH}");
    let logits = device.f32s(VOCABULARY);
    let [offsets, ids] = [[0_u32, 1], [7, 7]].map(|values| device.arena.upload(&values));
    let entropy = pointers(&[logits]).push(VOCABULARY as u32).push(offsets).push(ids).push(gain).push(device.f32s(1));
    Ok(vec![
        device.line(launch::rms_norm(ROWS, WIDTH), norm, &tokens, scale)?,
        device.line(launch::rms_norm_back(ROWS, WIDTH), norm_back, &tokens, scale)?,
        device.line(launch::rotary(ROWS, HEADS, HEAD_DIM), turn, &tokens, scale)?,
        device.line(launch::swiglu(inner), glu, &format!("{TOKENS} x {INNER}"), scale)?,
        device.line(launch::swiglu_back(inner), glu_back, &format!("{TOKENS} x {INNER}"), scale)?,
        device.line(launch::to_bf16(n), narrowing, &tokens, scale)?,
        device.line(launch::adamw(n), adam, "40 M parameters", 40e6 / n as f64)?,
        device.line(launch::cross_entropy(1), entropy, &format!("256 x {VOCABULARY}"), 256.0)?,
    ])
}

fn dequantising(device: &Device) -> Result<Vec<Line>, Box<dyn Error>> {
    let n = ROWS * WIDTH;
    let (bytes, scales, out) = (device.arena.upload(&vec![7_u8; n]), device.bf16s(n / 32), device.bf16s(n));
    let (rows, width, times) = (ROWS as u32, WIDTH as u32, INNER as f64 / ROWS as f64);
    let eight = Params::new().push(bytes).push(scales).push(out).push(rows).push(width);
    let four = Params::new().push(bytes).push(scales).push(scales).push(out).push(rows).push(width);
    let shape = format!("{INNER} x {WIDTH}");
    Ok(vec![
        device.line(launch::dequantise_q8(ROWS, WIDTH), eight, &shape, times)?,
        device.line(launch::dequantise_q4(ROWS, WIDTH), four, &shape, times)?,
    ])
}

/// Causal attention of one kv head's group over 512 tokens; an update has all kv heads, and as many such sequences as
/// make [`TOKENS`].
fn attention(device: &Device) -> Result<Vec<Line>, Box<dyn Error>> {
    let (tokens, heads) = (512_usize, HEADS / KV_HEADS);
    let rows = |heads: usize| device.bf16s(tokens * heads * HEAD_DIM);
    let (q, k, v, dout, out, dk, dv) = (rows(heads), rows(1), rows(1), rows(heads), rows(heads), rows(1), rows(1));
    let (lse, delta) = (device.f32s(tokens * heads), device.f32s(tokens * heads));
    let all: Vec<u32> = (0..tokens as u32).collect();
    let (order, end) = (device.arena.upload(&all), device.arena.upload(&vec![tokens as u32; tokens]));
    let counts = |params: Params| {
        let counts = [tokens as u32, tokens as u32, heads as u32, 1, HEAD_DIM as u32];
        counts.iter().fold(params, |params, count| params.push(*count)).push(0.088_f32)
    };
    let pointers = |addresses: &[u64]| addresses.iter().fold(Params::new(), |params, address| params.push(*address));
    let forward = counts(pointers(&[q, k, v, out, lse, order, order, end]));
    let of_queries = counts(pointers(&[q, k, v, dout, lse, delta, order, order, end, out]));
    let of_keys = counts(pointers(&[q, k, v, dout, lse, delta, order, order, end, dk, dv]));
    let (shape, times) =
        (format!("{} x 512 causal, {HEADS}/{KV_HEADS} heads", TOKENS / 512), (KV_HEADS * TOKENS / 512) as f64);
    let (wide, narrow) = (tokens * heads * HEAD_DIM * 2, tokens * HEAD_DIM * 2);
    let mut lines = vec![
        device.line(launch::attention(tokens, tokens, heads, HEAD_DIM), forward, &shape, times)?,
        device.line(launch::attention_dq(tokens, tokens, heads, HEAD_DIM), of_queries, &shape, times)?,
        device.line(launch::attention_dkv(tokens, tokens, 1, HEAD_DIM), of_keys, &shape, times)?,
    ];
    let operands = [2 * wide + 2 * narrow, 3 * wide + 2 * narrow, 2 * wide + 4 * narrow];
    lines.iter_mut().zip(operands).for_each(|(line, bytes)| line.operands = Some(bytes));
    Ok(lines)
}

/// Registers of a kernel on an architecture, from `resources.toml`.
fn registers(kernel: &str, architecture: &str) -> Option<u32> {
    let section = include_str!("../resources.toml").split(&format!("\n[{kernel}]\n")).nth(1)?;
    let line = section.lines().find_map(|line| line.strip_prefix(architecture))?;
    line.split_once("registers = ")?.1.split(',').next()?.parse().ok()
}

fn print(lines: &[Line]) {
    println!(
        "| kernel | at | GB asked for | of it whole sectors | G operations | operations a byte | bank conflicts | registers sm_80 / sm_90 | A100 at best | H100 at best |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for Line { kernel, shape, counts, operands, times } in lines {
        let global = &counts.global;
        let asked = (global.loaded_bytes + global.stored_bytes) as f64;
        let sectors = (global.loaded_sectors + global.stored_sectors) as f64 * 32.0;
        let operations = counts.float_operations as f64;
        let moved = operands.map_or(asked, |bytes| bytes as f64);
        let best = DEVICES.map(|(_, bandwidth, tensor)| {
            let seconds = times * (moved / bandwidth).max(counts.mma as f64 * 4096.0 / tensor);
            format!("{:.0} us", seconds * 1e6)
        });
        let of = |architecture| registers(kernel, architecture).map_or("?".to_owned(), |count| count.to_string());
        println!(
            "| {kernel} | {shape} | {:.3} | {:.0} % | {:.2} | {:.1} | {} | {} / {} | {} | {} |",
            times * asked / 1e9,
            100.0 * asked / sectors,
            times * operations / 1e9,
            operations / asked,
            counts.shared_bank_conflicts,
            of("sm_80"),
            of("sm_90"),
            best[0],
            best[1],
        );
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device { arena: Arena::new() };
    let mut lines = row_kernels(&device)?;
    lines.extend(dequantising(&device)?);
    lines.extend(attention(&device)?);
    println!(
        "Estimates, not measurements: bytes and operations are counted by the interpreter, the rest is division by"
    );
    for (name, bandwidth, tensor) in DEVICES {
        println!("{name}'s {:.0} GB/s and {:.0} TFLOP/s (bf16).", bandwidth / 1e9, tensor / 1e12);
    }
    println!();
    print(&lines);
    Ok(())
}
