// Rows by index: gathering, and adding back in order.
#include "dev.cuh"

constexpr u32 THREADS_MAX = 256;

// Copies `width` elements, 16 bytes at a time where both ends allow it.
template <class T>
DEVICE void copy_row(const T* __restrict__ from, T* __restrict__ to, u32 width) {
  constexpr u32 EACH = 16 / sizeof(T);
  if (width % EACH == 0 && aligned(from, to)) {
    const uint4* wide_from = reinterpret_cast<const uint4*>(from);
    uint4* wide_to = reinterpret_cast<uint4*>(to);
    for (u32 i = threadIdx.x; i < width / EACH; i += blockDim.x) wide_to[i] = wide_from[i];
    return;
  }
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
}

// out[i] = x[rows[i]]; a row a block.
KERNEL(THREADS_MAX)
gather_rows_f32(const float* __restrict__ x, const u32* __restrict__ rows, float* __restrict__ out, u32 width) {
  copy_row(x + (u64)rows[blockIdx.x] * width, out + (u64)blockIdx.x * width, width);
}

// out[i] = x[rows[i]]; a row a block.
KERNEL(THREADS_MAX)
gather_rows_bf16(const bf16* __restrict__ x, const u32* __restrict__ rows, bf16* __restrict__ out, u32 width) {
  copy_row(x + (u64)rows[blockIdx.x] * width, out + (u64)blockIdx.x * width, width);
}

// out += x; a thread always has the same columns, so a row added to twice needs no barrier between.
DEVICE void add_row(const float* __restrict__ x, float* out, u32 width) {
  if (width % 4 == 0 && aligned(x, out)) {
    for (u32 at = 4 * threadIdx.x; at < width; at += 4 * blockDim.x) {
      const float4 a = load4(x + at);
      float4 b = load4(out + at);
      b.x += a.x;
      b.y += a.y;
      b.z += a.z;
      b.w += a.w;
      store4(out + at, b);
    }
    return;
  }
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) out[i] += x[i];
}

// out[rows[i]] += x[i] for all i < count, in the order of i; i a block.
//
// The block of a row's first mention adds all of its mentions; the others leave. Looking for them costs `count` cached
// reads a block, which is less than the row itself while there are fewer rows than a few thousand.
KERNEL(THREADS_MAX)
scatter_add_rows(const float* __restrict__ x, const u32* __restrict__ rows, float* __restrict__ out, u32 count,
                 u32 width) {
  __shared__ u32 mentions[THREADS_MAX / WARP];
  const u32 i = blockIdx.x, row = rows[i], warps = blockDim.x / WARP;
  bool earlier = false;
  for (u32 j = threadIdx.x; j < i; j += blockDim.x) earlier |= rows[j] == row;
  const bool by_warp = __any_sync(ALL_LANES, earlier);
  if (lane_of() == 0) mentions[warp_of()] = by_warp;
  __syncthreads();
  u32 by_block = 0;
  for (u32 warp = 0; warp < warps; warp++) by_block |= mentions[warp];
  if (by_block) return;
  out += (u64)row * width;
  add_row(x + (u64)i * width, out, width);
  for (u32 base = i + 1; base < count; base += blockDim.x) {
    const u32 j = base + threadIdx.x;
    const u32 found = __ballot_sync(ALL_LANES, j < count && rows[j] == row);
    __syncthreads();
    if (lane_of() == 0) mentions[warp_of()] = found;
    __syncthreads();
    for (u32 warp = 0; warp < warps; warp++) {
      for (u32 left = mentions[warp]; left != 0; left &= left - 1)
        add_row(x + (u64)(base + warp * WARP + trailing_zeros(left)) * width, out, width);
    }
  }
}
