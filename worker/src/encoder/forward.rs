//! BERT's forward pass over whole texts, one behind the other: `[tokens of all texts, hidden]`.

use insula_kernels::cpu::CpuBuffer;
use insula_kernels::{Backend, Cpu, KernelError, Projection, Write};
use rayon::prelude::*;

use super::ops;
use super::settings::{Pooling, Settings};
use super::weights::{Layer, Linear, Norm, Weights};

/// Rows that one thread takes at a time.
const ROWS_PER_TASK: usize = 16;

/// The embeddings of some texts, `[texts, hidden]`. Ids are below the vocabulary's size, texts as long as the settings
/// allow.
pub(super) fn embed(
    cpu: &Cpu,
    settings: &Settings,
    weights: &Weights,
    texts: &[&[u32]],
) -> Result<Vec<f32>, KernelError> {
    let hidden = settings.hidden;
    let tokens: usize = texts.iter().map(|ids| ids.len()).sum();
    let mut x = cpu.alloc([tokens, hidden])?;
    let placed = texts.iter().flat_map(|ids| ids.iter().enumerate());
    for (row, (place, &id)) in x.chunks_exact_mut(hidden).zip(placed) {
        let (word, place) = (&weights.words[id as usize * hidden..], &weights.places[place * hidden..]);
        row.iter_mut().zip(word.iter().zip(place)).for_each(|(x, (word, place))| *x = word + place);
    }
    norm(&mut x, &weights.norm, settings);
    for layer in &weights.layers {
        x = attended(cpu, settings, layer, texts, &x)?;
        x = thought(cpu, settings, layer, &x)?;
    }
    Ok(pooled(settings, texts, &x))
}

/// `norm(x + attention(x))`.
fn attended(
    cpu: &Cpu,
    settings: &Settings,
    layer: &Layer,
    texts: &[&[u32]],
    x: &CpuBuffer,
) -> Result<CpuBuffer, KernelError> {
    let hidden = settings.hidden;
    let mut q = biased(cpu, x.len() / hidden, &layer.query)?;
    let mut k = biased(cpu, x.len() / hidden, &layer.key)?;
    let mut v = biased(cpu, x.len() / hidden, &layer.value)?;
    let mut projections = [
        Projection { weight: &layer.query.weight, pair: None, y: &mut q },
        Projection { weight: &layer.key.weight, pair: None, y: &mut k },
        Projection { weight: &layer.value.weight, pair: None, y: &mut v },
    ];
    cpu.project(x, &cpu.alloc([0, 0])?, &mut projections, Write::Add)?;
    let mut seen = cpu.alloc([x.len() / hidden, hidden])?;
    let (mut rest, mut at, mut parts) = (&mut *seen, 0, Vec::with_capacity(texts.len()));
    for ids in texts {
        let (out, after) = rest.split_at_mut(ids.len() * hidden);
        parts.push((at..at + out.len(), out));
        at += ids.len() * hidden;
        rest = after;
    }
    parts.into_par_iter().for_each(|(rows, out)| {
        ops::attention(&q[rows.clone()], &k[rows.clone()], &v[rows], hidden, settings.heads, out);
    });
    let mut y = with_residual(cpu, x, &layer.output)?;
    cpu.matmul(&seen, &layer.output.weight, &mut y, Write::Add)?;
    norm(&mut y, &layer.attention_norm, settings);
    Ok(y)
}

/// `norm(x + down(gelu(up(x))))`.
fn thought(cpu: &Cpu, settings: &Settings, layer: &Layer, x: &CpuBuffer) -> Result<CpuBuffer, KernelError> {
    let mut wide = biased(cpu, x.len() / settings.hidden, &layer.up)?;
    cpu.matmul(x, &layer.up.weight, &mut wide, Write::Add)?;
    wide.par_chunks_mut(ROWS_PER_TASK * settings.intermediate).for_each(ops::gelu);
    let mut y = with_residual(cpu, x, &layer.down)?;
    cpu.matmul(&wide, &layer.down.weight, &mut y, Write::Add)?;
    norm(&mut y, &layer.norm, settings);
    Ok(y)
}

/// Rows that hold a layer's bias, for the product to be added to.
fn biased(cpu: &Cpu, rows: usize, linear: &Linear) -> Result<CpuBuffer, KernelError> {
    let mut y = cpu.alloc([rows, linear.bias.len()])?;
    y.chunks_exact_mut(linear.bias.len()).for_each(|row| row.copy_from_slice(&linear.bias));
    Ok(y)
}

/// `x + bias`, for the product to be added to.
fn with_residual(cpu: &Cpu, x: &CpuBuffer, linear: &Linear) -> Result<CpuBuffer, KernelError> {
    let width = linear.bias.len();
    let mut y = cpu.alloc([x.len() / width, width])?;
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        y.iter_mut().zip(x.iter().zip(&linear.bias)).for_each(|(y, (x, bias))| *y = x + bias);
    }
    Ok(y)
}

fn norm(x: &mut CpuBuffer, norm: &Norm, settings: &Settings) {
    x.par_chunks_mut(ROWS_PER_TASK * settings.hidden).for_each(|rows| {
        for row in rows.chunks_exact_mut(settings.hidden) {
            ops::layer_norm(row, &norm.gain, &norm.bias, settings.eps);
        }
    });
}

/// One row for each text.
fn pooled(settings: &Settings, texts: &[&[u32]], x: &[f32]) -> Vec<f32> {
    let hidden = settings.hidden;
    let (mut rest, mut embeddings) = (x, Vec::with_capacity(texts.len() * hidden));
    for ids in texts {
        let (rows, after) = rest.split_at(ids.len() * hidden);
        let seen = match settings.pooling {
            Pooling::Mean => rows,
            Pooling::First => &rows[..hidden.min(rows.len())],
        };
        let mut embedding = ops::mean(seen, hidden);
        if settings.normalise {
            ops::normalise(&mut embedding);
        }
        embeddings.extend(embedding);
        rest = after;
    }
    embeddings
}
