// Rotary position embedding in Hugging Face's half-split order: element i of a head is paired with i + head_dim / 2.
#include "dev.cuh"

constexpr u32 THREADS_MAX = 256;

// Rotates the pair by the angle with this cosine and sine.
DEVICE void turn(float& low, float& high, float cosine, float sine) {
  const float turned = low * cosine - high * sine;
  high = high * cosine + low * sine;
  low = turned;
}

// Eight neighbouring pairs of one head.
DEVICE void turn8(bf16* first, bf16* second, const float* cosines, const float* sines, float sign) {
  Eight a = load8(first), b = load8(second);
#pragma unroll
  for (u32 k = 0; k < 4; k++) {
    float a0 = low(a.pair[k]), a1 = high(a.pair[k]), b0 = low(b.pair[k]), b1 = high(b.pair[k]);
    turn(a0, b0, cosines[2 * k], sign * sines[2 * k]);
    turn(a1, b1, cosines[2 * k + 1], sign * sines[2 * k + 1]);
    a.pair[k] = pack(a0, a1);
    b.pair[k] = pack(b0, b1);
  }
  store8(first, a);
  store8(second, b);
}

// In place: x: [tokens, heads * head_dim], table: [tokens, head_dim] (a row: the cosines of the first half's angles, then
// their sines); a token a block; sign -1 turns back.
KERNEL(THREADS_MAX)
rotary(bf16* __restrict__ x, const float* __restrict__ table, u32 heads, u32 head_dim, float sign) {
  const u32 half = head_dim / 2;
  x += (u64)blockIdx.x * heads * head_dim;
  table += (u64)blockIdx.x * head_dim;
  if (half % 8 == 0 && aligned(x)) {
    const u32 runs = half / 8;
    for (u32 i = threadIdx.x; i < heads * runs; i += blockDim.x) {
      const u32 head = i / runs, at = i % runs * 8;
      bf16* pair = x + head * head_dim + at;
      turn8(pair, pair + half, table + at, table + half + at, sign);
    }
    return;
  }
  for (u32 i = threadIdx.x; i < heads * half; i += blockDim.x) {
    const u32 head = i / half, at = i % half;
    bf16* pair = x + head * head_dim + at;
    float a = widen(pair[0]), b = widen(pair[half]);
    turn(a, b, table[at], sign * table[half + at]);
    pair[0] = narrow(a);
    pair[half] = narrow(b);
  }
}
