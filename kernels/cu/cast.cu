// Between float32 and bfloat16; a block takes CHUNK neighbouring elements.
//
// Addresses may be aligned to their element only (a matrix inside a flat buffer starts anywhere): such are taken
// element by element, which still is one access a warp of neighbouring addresses.
#include "dev.cuh"

constexpr u32 THREADS = 256;
// Quadruples of a thread, THREADS apart.
constexpr u32 EACH = 2;
constexpr u32 CHUNK = 4 * EACH * THREADS;

// to = scale * from, rounded to nearest even.
KERNEL(THREADS)
to_bf16(const float* __restrict__ from, bf16* __restrict__ to, u64 n, float scale) {
  const u64 first = (u64)blockIdx.x * CHUNK;
  if (first + CHUNK <= n && aligned(from, to)) {
#pragma unroll
    for (u32 k = 0; k < EACH; k++) {
      const u64 at = first + 4 * (threadIdx.x + k * THREADS);
      const float4 v = load4(from + at);
      store_four(to + at, narrow(make_float4(scale * v.x, scale * v.y, scale * v.z, scale * v.w)));
    }
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
#pragma unroll
    for (u32 k = 0; k < EACH; k++) {
      const u64 at = first + 4 * (threadIdx.x + k * THREADS);
      store4(to + at, widen(load_four(from + at)));
    }
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
#pragma unroll
    for (u32 k = 0; k < EACH; k++) {
      const u64 at = first + 4 * (threadIdx.x + k * THREADS);
      const float4 a = widen(load_four(w + at)), b = load4(delta + at);
      store_four(out + at, narrow(make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w)));
    }
    return;
  }
  const u64 end = min(n, first + CHUNK);
  for (u64 i = first + threadIdx.x; i < end; i += THREADS) out[i] = narrow(widen(w[i]) + delta[i]);
}
