// Embedding: out[t] = table[ids[t]], widened to float32; a token a block.
#include "quantised.cuh"

constexpr u32 THREADS_MAX = 256;

// table: [rows, width].
KERNEL(THREADS_MAX)
embed_bf16(const bf16* __restrict__ table, const u32* __restrict__ ids, float* __restrict__ out, u32 width) {
  table += (u64)ids[blockIdx.x] * width;
  out += (u64)blockIdx.x * width;
  if (width % 8 == 0 && aligned(table, out)) {
    for (u32 at = 8 * threadIdx.x; at < width; at += 8 * blockDim.x) {
      const Eight v = load8(table + at);
      store4(out + at, make_float4(low(v.pair[0]), high(v.pair[0]), low(v.pair[1]), high(v.pair[1])));
      store4(out + at + 4, make_float4(low(v.pair[2]), high(v.pair[2]), low(v.pair[3]), high(v.pair[3])));
    }
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
