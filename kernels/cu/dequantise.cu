// Quantised matrices widened to bfloat16, [rows, width]; a row a block.
#include "quantised.cuh"

constexpr u32 THREADS_MAX = 256;

KERNEL(THREADS_MAX)
dequantise_q8(const i8* __restrict__ values, const f16* __restrict__ scales, bf16* __restrict__ out, u32 rows,
              u32 width) {
  const u32 row = blockIdx.x;
  if (row >= rows) return;
  const u64 block = (u64)row * blocks_of(width);
  widen_row_q8(values + block * BLOCK, scales + block, out + (u64)row * width, width);
}

KERNEL(THREADS_MAX)
dequantise_q4(const u8* __restrict__ values, const f16* __restrict__ scales, const f16* __restrict__ leasts,
              bf16* __restrict__ out, u32 rows, u32 width) {
  const u32 row = blockIdx.x;
  if (row >= rows) return;
  const u64 block = (u64)row * blocks_of(width);
  widen_row_q4(values + block * (BLOCK / 2), scales + block, leasts + block, out + (u64)row * width, width);
}
