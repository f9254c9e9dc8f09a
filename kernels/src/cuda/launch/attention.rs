//! Launches of the attention kernels: how wide a head is computed, how many keys or queries make a tile.
//!
//! ```text
//!   pass      a block has             and walks over           per step
//!   forward   64 queries, one head    the keys in reach        K and V tiles, two in flight
//!   dq        64 queries, one head    the keys in reach        K and V tiles, two in flight
//!   dkv       64 keys, one kv head    its heads' queries       Q and dO tiles, two in flight
//! ```

use super::{Launch, LaunchError, WARP, by_row, grid, threads};

/// Queries (or, in dkv, keys) of a block: sixteen a warp.
const OWN: usize = 64;
/// Tiles whose cover is noted in one word of shared memory.
const COVERS: usize = 16;
/// A word of shared memory.
const WORD: usize = 4;

/// Widths heads are computed in, and what a block walks over at a time: keys in the forward pass, keys or queries in the
/// backward passes. As many as leave two blocks a multiprocessor on the larger devices, and fit at all on the smaller.
const WIDTHS: [Width; 7] = [
    Width { width: 16, forward: 64, backward: 64, names: ["attention_16", "attention_dq_16", "attention_dkv_16"] },
    Width { width: 32, forward: 64, backward: 64, names: ["attention_32", "attention_dq_32", "attention_dkv_32"] },
    Width { width: 64, forward: 64, backward: 64, names: ["attention_64", "attention_dq_64", "attention_dkv_64"] },
    Width { width: 80, forward: 64, backward: 32, names: ["attention_80", "attention_dq_80", "attention_dkv_80"] },
    Width { width: 96, forward: 64, backward: 32, names: ["attention_96", "attention_dq_96", "attention_dkv_96"] },
    Width { width: 128, forward: 64, backward: 32, names: ["attention_128", "attention_dq_128", "attention_dkv_128"] },
    Width { width: 256, forward: 32, backward: 16, names: ["attention_256", "attention_dq_256", "attention_dkv_256"] },
];

struct Width {
    width: usize,
    forward: usize,
    backward: usize,
    names: [&'static str; 3],
}

impl Width {
    fn of(head_dim: usize) -> Result<&'static Self, LaunchError> {
        let fits = |width: &&Width| head_dim > 0 && head_dim.is_multiple_of(8) && head_dim <= width.width;
        WIDTHS.iter().find(fits).ok_or(LaunchError::HeadDim { head_dim })
    }

    /// Bytes of shared memory: `rows` of bfloat16, some words, and the covers of what is walked over.
    fn shared(&self, rows: usize, words: usize, walked: usize) -> usize {
        rows * self.width * 2 + (words + walked.div_ceil(COVERS)) * WORD
    }
}

/// The width a head of `head_dim` elements is computed in: the least kernel's that holds it.
///
/// # Errors
/// [`LaunchError::HeadDim`] unless it is a multiple of 8 from 8 to 256.
pub fn attention_width(head_dim: usize) -> Result<usize, LaunchError> {
    Ok(Width::of(head_dim)?.width)
}

/// `attention_D(q, k, v, out, lse, query, start, end, queries, keys, heads, kv_heads, head_dim, scale)`.
///
/// # Errors
/// [`LaunchError`] for a head no kernel takes, more than 65535 heads, or more keys than their tiles' covers have room for
/// in shared memory (hundreds of thousands).
pub fn attention(queries: usize, keys: usize, heads: usize, head_dim: usize) -> Result<Launch, LaunchError> {
    let width = Width::of(head_dim)?;
    let step = width.forward;
    let shared = width.shared(OWN + 4 * step, 4 * step, keys.div_ceil(step));
    grid(width.names[0], [queries.div_ceil(OWN), heads], 128, shared)
}

/// `attention_delta(out, dout, delta, heads, head_dim)`: a query a block, some lanes a head.
///
/// # Errors
/// [`LaunchError`] for a head no kernel takes or more queries than a grid has blocks.
pub fn attention_delta(queries: usize, heads: usize, head_dim: usize) -> Result<Launch, LaunchError> {
    Width::of(head_dim)?;
    by_row("attention_delta", queries, threads(heads * (head_dim / 8).next_power_of_two().min(WARP), 256))
}

/// `attention_dq_D(q, k, v, dout, lse, delta, query, start, end, dq, queries, keys, heads, kv_heads, head_dim, scale)`.
///
/// # Errors
/// As [`attention`].
pub fn attention_dq(queries: usize, keys: usize, heads: usize, head_dim: usize) -> Result<Launch, LaunchError> {
    let width = Width::of(head_dim)?;
    let step = width.backward;
    let shared = width.shared(2 * OWN + 4 * step, 4 * step, keys.div_ceil(step));
    grid(width.names[1], [queries.div_ceil(OWN), heads], 128, shared)
}

/// `attention_dkv_D(q, k, v, dout, lse, delta, query, start, end, dk, dv, queries, keys, heads, kv_heads, head_dim,
/// scale)`.
///
/// # Errors
/// As [`attention`], for queries in place of keys.
pub fn attention_dkv(queries: usize, keys: usize, kv_heads: usize, head_dim: usize) -> Result<Launch, LaunchError> {
    let width = Width::of(head_dim)?;
    let step = width.backward;
    let shared = width.shared(2 * OWN + 4 * step, 6 * step, queries.div_ceil(step));
    // Two accumulators of the widest head do not fit one warp's registers: two warps share a key's row there.
    let threads = if width.width > 128 { 256 } else { 128 };
    grid(width.names[2], [keys.div_ceil(OWN), kv_heads], threads, shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_takes_the_least_width_that_holds_it() {
        let widths = [8, 16, 24, 40, 64, 72, 88, 96, 104, 128, 136, 256].map(attention_width);
        assert_eq!(widths, [16, 16, 32, 64, 64, 80, 96, 96, 128, 128, 256, 256].map(Ok));
        for head_dim in [0, 4, 20, 257, 264] {
            assert_eq!(attention_width(head_dim), Err(LaunchError::HeadDim { head_dim }));
        }
    }

    #[test]
    fn every_width_fits_the_smallest_device_with_100_000_tokens() {
        for Width { width, .. } in WIDTHS {
            attention(100_000, 100_000, 32, width).unwrap();
            attention_dq(100_000, 100_000, 32, width).unwrap();
            attention_dkv(100_000, 100_000, 8, width).unwrap();
        }
        let refused = attention_dq(1, 1_000_000, 32, 256);
        let LaunchError::Shared { kernel: "attention_dq_256", limit: 101_376, .. } = refused.unwrap_err() else {
            panic!("a million keys of the widest head have no room for their covers");
        };
    }

    #[test]
    fn blocks_cover_queries_and_heads() {
        let launch = attention(130, 70, 28, 128).unwrap();
        assert_eq!((launch.kernel, launch.grid, launch.block), ("attention_128", [3, 28, 1], [128, 1, 1]));
        assert_eq!(launch.shared, (64 + 4 * 64) * 256 + 4 * 64 * 4 + 4);
        let launch = attention_dkv(130, 70, 4, 256).unwrap();
        assert_eq!((launch.grid, launch.block), ([2, 4, 1], [256, 1, 1]));
        let refused = attention(64, 64, 65_536, 64);
        let expected = LaunchError::Grid { kernel: "attention_64", axis: 'y', blocks: 65_536, limit: 65_535 };
        assert_eq!(refused, Err(expected));
    }
}
