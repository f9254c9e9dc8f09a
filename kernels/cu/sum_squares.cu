// Sum of squares in float64: a partial sum a block, over CHUNK values of its own, always added in the same order.
#include "dev.cuh"

constexpr u32 THREADS = 512;
constexpr u32 CHUNK = 65536;

DEVICE double square(float x) { return (double)x * (double)x; }

// partial[b] = sum of x[i]^2 over i in b * CHUNK .. (b + 1) * CHUNK, below n.
KERNEL(THREADS)
sum_squares(const float* __restrict__ x, u64 n, double* __restrict__ partial) {
  __shared__ double scratch[WARPS_MAX];
  const u64 first = (u64)blockIdx.x * CHUNK;
  const u32 count = (u32)min((u64)CHUNK, n - first);
  x += first;
  double sum = 0.0;
  // Both ways give a thread the same values in the same order, so an address does not change the sum.
  const bool wide = aligned(x);
  for (u32 at = 4 * threadIdx.x; at < count; at += 4 * THREADS) {
    if (wide && at + 4 <= count) {
      const float4 v = load4(x + at);
      sum += square(v.x);
      sum += square(v.y);
      sum += square(v.z);
      sum += square(v.w);
    } else {
      for (u32 i = at; i < min(at + 4, count); i++) sum += square(x[i]);
    }
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
