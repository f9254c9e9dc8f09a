//! From shapes to launches: which kernel, how many blocks of how many threads, how much shared memory. Pure.
//!
//! The numbers here and the constants in `cu/*.cu` say the same thing twice, once for each side of the launch; running
//! every kernel from these launches, as the tests do, is what holds them together.

mod attention;

pub use attention::{attention, attention_delta, attention_dkv, attention_dq, attention_width};

/// How one kernel is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// The entry's name in its PTX module.
    pub kernel: &'static str,
    /// Blocks along x, y, z; none at all where there is nothing to do, which the driver would refuse.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z: whole warps.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory. Above [`SHARED_PLAIN`] the function must be allowed so much first
    /// (`CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`).
    pub shared: u32,
}

impl Launch {
    /// Whether there is nothing to do: such a launch must be left out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}

/// A shape no launch exists for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// More blocks than a grid may have along one axis.
    #[error("{kernel}: {blocks} blocks along {axis}, {limit} at most")]
    Grid {
        /// The kernel.
        kernel: &'static str,
        /// x, y or z.
        axis: char,
        /// Blocks needed.
        blocks: usize,
        /// Blocks possible.
        limit: usize,
    },
    /// A head that no attention kernel takes.
    #[error("attention: a head of {head_dim} elements; a multiple of 8 up to 256 is needed")]
    HeadDim {
        /// Its width.
        head_dim: usize,
    },
    /// More shared memory than every device has: a sight over too many keys or queries at once.
    #[error("{kernel}: {bytes} bytes of shared memory, {limit} at most")]
    Shared {
        /// The kernel.
        kernel: &'static str,
        /// Bytes needed.
        bytes: usize,
        /// Bytes possible.
        limit: usize,
    },
}

/// Dynamic shared memory a kernel may ask for without further ado.
pub const SHARED_PLAIN: u32 = 48 * 1024;
/// What a block may have on the smallest device taken (compute capability 8.6, 8.9 and 12.0).
pub const SHARED_MAX: u32 = 99 * 1024;
/// Blocks along x.
const X_MAX: usize = (1 << 31) - 1;
/// Blocks along y and z.
const YZ_MAX: usize = 65_535;
const WARP: usize = 32;

/// Rows per block: one. Rows lie along x.
fn by_row(kernel: &'static str, rows: usize, threads: usize) -> Result<Launch, LaunchError> {
    grid(kernel, [rows, 1], threads, 0)
}

/// Neighbouring elements, `chunk` a block.
fn by_chunk(kernel: &'static str, n: usize, chunk: usize, threads: usize) -> Result<Launch, LaunchError> {
    grid(kernel, [n.div_ceil(chunk), 1], threads, 0)
}

fn grid(kernel: &'static str, blocks: [usize; 2], threads: usize, shared: usize) -> Result<Launch, LaunchError> {
    let axis = |axis, blocks: usize, limit| match u32::try_from(blocks) {
        Ok(count) if blocks <= limit => Ok(count),
        _ => Err(LaunchError::Grid { kernel, axis, blocks, limit }),
    };
    let (x, y) = (axis('x', blocks[0], X_MAX)?, axis('y', blocks[1], YZ_MAX)?);
    match u32::try_from(shared) {
        Ok(shared) if shared <= SHARED_MAX => {
            Ok(Launch { kernel, grid: [x, y, 1], block: [threads as u32, 1, 1], shared })
        }
        _ => Err(LaunchError::Shared { kernel, bytes: shared, limit: SHARED_MAX as usize }),
    }
}

/// Whole warps enough for `items`, one a thread, up to `most` threads.
fn threads(items: usize, most: usize) -> usize {
    items.div_ceil(WARP).saturating_mul(WARP).clamp(WARP, most)
}

/// `cu/rms_norm.cu` keeps a row in registers: four quadruples a thread, so a thread for every sixteen elements, but not
/// fewer than a quarter of the row's quadruples up to 256 threads, which keep more loads in flight.
fn norm_threads(width: usize) -> usize {
    threads(width.div_ceil(4).min(256).max(width.div_ceil(16)), 1024)
}

/// `rms_norm(x, gain, y, width, eps)` on `[rows, width]`.
///
/// # Errors
/// [`LaunchError::Grid`] for more rows than a grid has.
pub fn rms_norm(rows: usize, width: usize) -> Result<Launch, LaunchError> {
    by_row("rms_norm", rows, norm_threads(width))
}

/// `rms_norm_back(x, gain, dy, dx, width, eps)` on `[rows, width]`.
///
/// # Errors
/// [`LaunchError::Grid`] for more rows than a grid has.
pub fn rms_norm_back(rows: usize, width: usize) -> Result<Launch, LaunchError> {
    by_row("rms_norm_back", rows, norm_threads(width))
}

/// `inverse_rms(x, out, width, eps)` on `[rows, width]`.
///
/// # Errors
/// [`LaunchError::Grid`] for more rows than a grid has.
pub fn inverse_rms(rows: usize, width: usize) -> Result<Launch, LaunchError> {
    by_row("inverse_rms", rows, norm_threads(width))
}

/// `gain_gradient(x, inverse, dy, grads, rows, width)`: 32 columns a block.
///
/// # Errors
/// [`LaunchError::Grid`] for more columns than a grid has.
pub fn gain_gradient(width: usize) -> Result<Launch, LaunchError> {
    by_chunk("gain_gradient", width, 32, 1024)
}

/// `rotary(x, table, heads, head_dim, sign)` on `[tokens, heads * head_dim]`.
///
/// # Errors
/// [`LaunchError::Grid`] for more tokens than a grid has.
pub fn rotary(tokens: usize, heads: usize, head_dim: usize) -> Result<Launch, LaunchError> {
    let half = head_dim / 2;
    let items = if half.is_multiple_of(4) { heads * half / 4 } else { heads * half };
    by_row("rotary", tokens, threads(items, 256))
}

/// `swiglu(gate, up, out, n)`.
///
/// # Errors
/// [`LaunchError::Grid`] for more elements than a grid covers.
pub fn swiglu(n: usize) -> Result<Launch, LaunchError> {
    by_chunk("swiglu", n, 2048, 256)
}

/// `swiglu_back(gate, up, dout, dup, n)`.
///
/// # Errors
/// [`LaunchError::Grid`] for more elements than a grid covers.
pub fn swiglu_back(n: usize) -> Result<Launch, LaunchError> {
    by_chunk("swiglu_back", n, 2048, 256)
}

/// `gather_rows_f32(x, rows, out, width)`, `count` rows.
///
/// # Errors
/// [`LaunchError::Grid`] for more rows than a grid has.
pub fn gather_rows_f32(count: usize, width: usize) -> Result<Launch, LaunchError> {
    by_row("gather_rows_f32", count, threads(width.div_ceil(4), 256))
}

/// `gather_rows_bf16(x, rows, out, width)`, `count` rows.
///
/// # Errors
/// [`LaunchError::Grid`] for more rows than a grid has.
pub fn gather_rows_bf16(count: usize, width: usize) -> Result<Launch, LaunchError> {
    by_row("gather_rows_bf16", count, threads(width.div_ceil(8), 256))
}

/// `scatter_add_rows(x, rows, out, count, width)`.
///
/// # Errors
/// [`LaunchError::Grid`] for more rows than a grid has.
pub fn scatter_add_rows(count: usize, width: usize) -> Result<Launch, LaunchError> {
    by_row("scatter_add_rows", count, threads(width.div_ceil(4), 256))
}

/// `to_bf16(from, to, n, scale)`.
///
/// # Errors
/// [`LaunchError::Grid`] for more elements than a grid covers.
pub fn to_bf16(n: usize) -> Result<Launch, LaunchError> {
    by_chunk("to_bf16", n, 2048, 256)
}

/// `to_f32(from, to, n)`.
///
/// # Errors
/// [`LaunchError::Grid`] for more elements than a grid covers.
pub fn to_f32(n: usize) -> Result<Launch, LaunchError> {
    by_chunk("to_f32", n, 2048, 256)
}

/// `merge(w, delta, out, n)`.
///
/// # Errors
/// [`LaunchError::Grid`] for more elements than a grid covers.
pub fn merge(n: usize) -> Result<Launch, LaunchError> {
    by_chunk("merge", n, 2048, 256)
}

/// `embed_bf16(table, ids, out, width)`.
///
/// # Errors
/// [`LaunchError::Grid`] for more tokens than a grid has.
pub fn embed_bf16(tokens: usize, width: usize) -> Result<Launch, LaunchError> {
    by_row("embed_bf16", tokens, threads(width.div_ceil(4), 256))
}

/// `embed_q8(values, scales, ids, out, width)`.
///
/// # Errors
/// [`LaunchError::Grid`] for more tokens than a grid has.
pub fn embed_q8(tokens: usize, width: usize) -> Result<Launch, LaunchError> {
    by_row("embed_q8", tokens, threads(width.div_ceil(8), 256))
}

/// `embed_q4(values, scales, leasts, ids, out, width)`.
///
/// # Errors
/// [`LaunchError::Grid`] for more tokens than a grid has.
pub fn embed_q4(tokens: usize, width: usize) -> Result<Launch, LaunchError> {
    by_row("embed_q4", tokens, threads(width.div_ceil(16), 256))
}

/// `dequantise_q8(values, scales, out, rows, width)`.
///
/// # Errors
/// [`LaunchError::Grid`] for more rows than a grid has.
pub fn dequantise_q8(rows: usize, width: usize) -> Result<Launch, LaunchError> {
    by_row("dequantise_q8", rows, threads(width.div_ceil(8), 256))
}

/// `dequantise_q4(values, scales, leasts, out, rows, width)`.
///
/// # Errors
/// [`LaunchError::Grid`] for more rows than a grid has.
pub fn dequantise_q4(rows: usize, width: usize) -> Result<Launch, LaunchError> {
    by_row("dequantise_q4", rows, threads(width.div_ceil(16), 256))
}

/// `cross_entropy(logits, vocab, offsets, ids, weights, loss)`.
///
/// # Errors
/// [`LaunchError::Grid`] for more rows than a grid has.
pub fn cross_entropy(rows: usize) -> Result<Launch, LaunchError> {
    by_row("cross_entropy", rows, 512)
}

/// `read_out(logits, vocab, offsets, ids, log_probs, best, margin)`.
///
/// # Errors
/// [`LaunchError::Grid`] for more rows than a grid has.
pub fn read_out(rows: usize) -> Result<Launch, LaunchError> {
    by_row("read_out", rows, 512)
}

/// `adamw(gradient, params, first, second, n, ...)`.
///
/// # Errors
/// [`LaunchError::Grid`] for more elements than a grid covers.
pub fn adamw(n: usize) -> Result<Launch, LaunchError> {
    by_chunk("adamw", n, 1024, 256)
}

/// Values per partial sum of [`sum_squares`].
pub const SQUARES_CHUNK: usize = 65_536;

/// `sum_squares(x, n, partial)`: `partial` gets one float64 per block, `n` over [`SQUARES_CHUNK`] rounded up.
///
/// # Errors
/// [`LaunchError::Grid`] for more elements than a grid covers.
pub fn sum_squares(n: usize) -> Result<Launch, LaunchError> {
    by_chunk("sum_squares", n, SQUARES_CHUNK, 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_lie_along_x_and_blocks_are_whole_warps() {
        assert_eq!(
            rms_norm(100_000, 3584),
            Ok(Launch { kernel: "rms_norm", grid: [100_000, 1, 1], block: [256, 1, 1], shared: 0 })
        );
        assert_eq!(rms_norm(1, 7).unwrap().block, [32, 1, 1]);
        assert_eq!(rms_norm(1, 16_384).unwrap().block, [1024, 1, 1]);
        assert_eq!(rms_norm(1, 1 << 20).unwrap().block, [1024, 1, 1]);
        assert_eq!(rotary(3, 4, 96).unwrap().block, [64, 1, 1]);
        assert_eq!(to_bf16(2049).unwrap().grid, [2, 1, 1]);
        assert_eq!(sum_squares(65_536).unwrap().grid, [1, 1, 1]);
    }

    #[test]
    fn nothing_to_do_is_an_empty_launch() {
        assert!(adamw(0).unwrap().is_empty());
        assert!(gather_rows_f32(0, 8).unwrap().is_empty());
        assert!(!adamw(1).unwrap().is_empty());
    }

    #[test]
    fn more_rows_than_a_grid_has_are_refused() {
        let blocks = 1 << 31;
        let refused = LaunchError::Grid { kernel: "rms_norm", axis: 'x', blocks, limit: blocks - 1 };
        assert_eq!(rms_norm(blocks, 8), Err(refused));
        assert_eq!(rms_norm(blocks - 1, 8).unwrap().grid[0], u32::MAX >> 1);
    }
}
