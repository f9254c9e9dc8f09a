// Between float32 and bfloat16; a block takes CHUNK neighbouring elements.
//
// Addresses may be aligned to their element only (a matrix inside a flat buffer starts anywhere): such are taken element
// by element, which still is one access a warp of neighbouring addresses.
#include "dev.cuh"

constexpr u32 THREADS = 256;
constexpr u32 CHUNK = 8 * THREADS;

DEVICE Eight narrow8(float4 a, float4 b, float scale) {
  return Eight{{pack(scale * a.x, scale * a.y), pack(scale * a.z, scale * a.w), pack(scale * b.x, scale * b.y),
                pack(scale * b.z, scale * b.w)}};
}

// to = scale * from, rounded to nearest even.
KERNEL(THREADS)
to_bf16(const float* __restrict__ from, bf16* __restrict__ to, u64 n, float scale) {
  const u64 first = (u64)blockIdx.x * CHUNK;
  if (first + CHUNK <= n && aligned(from, to)) {
    const u64 at = first + 8 * threadIdx.x;
    store8(to + at, narrow8(load4(from + at), load4(from + at + 4), scale));
    return;
  }
  const u64 end = min(n, first + CHUNK);
  for (u64 i = first + threadIdx.x; i < end; i += THREADS) to[i] = narrow(scale * from[i]);
}

// to = from.
KERNEL(THREADS)
to_f32(const bf16* __restrict__ from, float* __restrict__ to, u64 n) {
  const u64 first = (u64)blockIdx.x * CHUNK;
  if (first + CHUNK <= n && aligned(from, to)) {
    const u64 at = first + 8 * threadIdx.x;
    const Eight v = load8(from + at);
    store4(to + at, make_float4(low(v.pair[0]), high(v.pair[0]), low(v.pair[1]), high(v.pair[1])));
    store4(to + at + 4, make_float4(low(v.pair[2]), high(v.pair[2]), low(v.pair[3]), high(v.pair[3])));
    return;
  }
  const u64 end = min(n, first + CHUNK);
  for (u64 i = first + threadIdx.x; i < end; i += THREADS) to[i] = widen(from[i]);
}

// out = w + delta, added in float32.
KERNEL(THREADS)
merge(const bf16* __restrict__ w, const float* __restrict__ delta, bf16* __restrict__ out, u64 n) {
  const u64 first = (u64)blockIdx.x * CHUNK;
  if (first + CHUNK <= n && aligned(w, delta, out)) {
    const u64 at = first + 8 * threadIdx.x;
    Eight v = load8(w + at);
    const float4 a = load4(delta + at), b = load4(delta + at + 4);
    v.pair[0] = pack(low(v.pair[0]) + a.x, high(v.pair[0]) + a.y);
    v.pair[1] = pack(low(v.pair[1]) + a.z, high(v.pair[1]) + a.w);
    v.pair[2] = pack(low(v.pair[2]) + b.x, high(v.pair[2]) + b.y);
    v.pair[3] = pack(low(v.pair[3]) + b.z, high(v.pair[3]) + b.w);
    store8(out + at, v);
    return;
  }
  const u64 end = min(n, first + CHUNK);
  for (u64 i = first + threadIdx.x; i < end; i += THREADS) out[i] = narrow(widen(w[i]) + delta[i]);
}
