// Rotary position embedding in Hugging Face's half-split order: element i of a head is paired with i + head_dim / 2.
#include "dev.cuh"

constexpr u32 THREADS_MAX = 256;

// Rotates the pair by the angle with this cosine and sine.
DEVICE void turn(float& low, float& high, float cosine, float sine) {
  const float turned = low * cosine - high * sine;
  high = high * cosine + low * sine;
  low = turned;
}

// Four neighbouring pairs of one head.
DEVICE void turn4(bf16* first, bf16* second, const float* cosines, const float* sines, float sign) {
  float4 a = widen(load_four(first)), b = widen(load_four(second));
  const float4 cosine = load4(cosines), sine = load4(sines);
  turn(a.x, b.x, cosine.x, sign * sine.x);
  turn(a.y, b.y, cosine.y, sign * sine.y);
  turn(a.z, b.z, cosine.z, sign * sine.z);
  turn(a.w, b.w, cosine.w, sign * sine.w);
  store_four(first, narrow(a));
  store_four(second, narrow(b));
}

// In place: x: [tokens, heads * head_dim], table: [tokens, head_dim] (a row: the cosines of the first half's angles,
// then their sines); a token a block; sign -1 turns back.
KERNEL(THREADS_MAX)
rotary(bf16* __restrict__ x, const float* __restrict__ table, u32 heads, u32 head_dim, float sign) {
  const u32 half = head_dim / 2;
  x += (u64)blockIdx.x * heads * head_dim;
  table += (u64)blockIdx.x * head_dim;
  if (half % 4 == 0 && aligned(x, table)) {
    const u32 runs = half / 4;
    for (u32 i = threadIdx.x; i < heads * runs; i += blockDim.x) {
      const u32 head = i / runs, at = i % runs * 4;
      bf16* pair = x + head * head_dim + at;
      turn4(pair, pair + half, table + at, table + half + at, sign);
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
