// Embedding: out[t] = table[ids[t]], widened to float32; a token a block.
#include "quantised.cuh"

constexpr u32 THREADS_MAX = 256;

// table: [rows, width].
KERNEL(THREADS_MAX)
embed_bf16(const bf16* __restrict__ table, const u32* __restrict__ ids, float* __restrict__ out, u32 width) {
  table += (u64)ids[blockIdx.x] * width;
  out += (u64)blockIdx.x * width;
  if (width % 4 == 0 && ((u64)table & 7) == 0 && aligned(out)) {
    for (u32 at = 4 * threadIdx.x; at < width; at += 4 * blockDim.x) store4(out + at, widen(load_four(table + at)));
    return;
  }
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) out[i] = widen(table[i]);
}

KERNEL(THREADS_MAX)
embed_q8(const i8* __restrict__ values, const f16* __restrict__ scales, const u32* __restrict__ ids,
         float* __restrict__ out, u32 width) {
  const u64 block = (u64)ids[blockIdx.x] * blocks_of(width);
  widen_row_q8(values + block * BLOCK, scales + block, out + (u64)blockIdx.x * width, width);
}

KERNEL(THREADS_MAX)
embed_q4(const u8* __restrict__ values, const f16* __restrict__ scales, const f16* __restrict__ leasts,
         const u32* __restrict__ ids, float* __restrict__ out, u32 width) {
  const u64 block = (u64)ids[blockIdx.x] * blocks_of(width);
  widen_row_q4(values + block * (BLOCK / 2), scales + block, leasts + block, out + (u64)blockIdx.x * width, width);
}
