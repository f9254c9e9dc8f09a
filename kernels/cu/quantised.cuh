// How quantised rows lie in memory, and how some of a row's values are widened.
//
//   a row has ceil(width / 32) blocks of 32 values; planes of their own hold
//     q8   32 bytes a block   value = scale * q           q signed
//     q4   16 bytes a block   value = least + scale * q   byte k: value k (low nibble) and k + 16 (high nibble)
//     scales, leasts          one float16 a block
// The last block of a row is padded up to 32 values.
#pragma once
#include "dev.cuh"

constexpr u32 BLOCK = 32;

DEVICE u32 blocks_of(u32 width) { return (width + BLOCK - 1) / BLOCK; }

// Eight neighbouring values.
struct Values {
  float at[8];
};

DEVICE u32 byte_of(uint2 bytes, u32 k) { return ((k < 4 ? bytes.x : bytes.y) >> (k % 4 * 8)) & 0xffu; }

// Eight bytes of q8, at any address that is a multiple of 8.
DEVICE Values widen_q8(const i8* bytes, float scale) {
  const uint2 raw = *reinterpret_cast<const uint2*>(bytes);
  Values values;
#pragma unroll
  for (u32 k = 0; k < 8; k++) values.at[k] = scale * (float)(i8)byte_of(raw, k);
  return values;
}

// Eight bytes of q4: the values of their low (shift 0) or high nibbles (shift 4).
DEVICE Values widen_q4(uint2 raw, u32 shift, float scale, float least) {
  Values values;
#pragma unroll
  for (u32 k = 0; k < 8; k++) values.at[k] = least + scale * (float)((byte_of(raw, k) >> shift) & 15u);
  return values;
}

// Stores eight values at to[0..8], or those below `room`; `wide` says that 16-byte accesses are allowed.
DEVICE void store_values(float* to, Values v, u32 room, bool wide) {
  if (wide && room >= 8) {
    store4(to, make_float4(v.at[0], v.at[1], v.at[2], v.at[3]));
    store4(to + 4, make_float4(v.at[4], v.at[5], v.at[6], v.at[7]));
    return;
  }
#pragma unroll
  for (u32 k = 0; k < 8; k++)
    if (k < room) to[k] = v.at[k];
}
DEVICE void store_values(bf16* to, Values v, u32 room, bool wide) {
  if (wide && room >= 8) {
    store8(to, Eight{{pack(v.at[0], v.at[1]), pack(v.at[2], v.at[3]), pack(v.at[4], v.at[5]), pack(v.at[6], v.at[7])}});
    return;
  }
#pragma unroll
  for (u32 k = 0; k < 8; k++)
    if (k < room) to[k] = narrow(v.at[k]);
}

// Widens one row by one block of threads; `values` and `scales` are the row's own.
template <class T>
DEVICE void widen_row_q8(const i8* __restrict__ values, const f16* __restrict__ scales, T* __restrict__ out,
                         u32 width) {
  const bool wide = width % 8 == 0 && aligned(out);
  for (u32 at = 8 * threadIdx.x; at < width; at += 8 * blockDim.x)
    store_values(out + at, widen_q8(values + at, widen(scales[at / BLOCK])), width - at, wide);
}

// Widens one row by one block of threads: half a block a thread, so that neighbours write whole sectors.
template <class T>
DEVICE void widen_row_q4(const u8* __restrict__ values, const f16* __restrict__ scales, const f16* __restrict__ leasts,
                         T* __restrict__ out, u32 width) {
  const bool wide = width % 8 == 0 && aligned(out);
  for (u32 half = threadIdx.x; half < 2 * blocks_of(width); half += blockDim.x) {
    const u32 block = half / 2, at = block * BLOCK + half % 2 * 8;
    const uint2 raw = *reinterpret_cast<const uint2*>(values + 8 * half);
    const float scale = widen(scales[block]), least = widen(leasts[block]);
    if (at < width) store_values(out + at, widen_q4(raw, 0, scale, least), width - at, wide);
    if (at + 16 < width) store_values(out + at + 16, widen_q4(raw, 4, scale, least), width - at - 16, wide);
  }
}
