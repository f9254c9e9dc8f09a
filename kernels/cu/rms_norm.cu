// RMSNorm, one block a row: y = gain * x / rms(x), with rms(x) = sqrt(mean(x^2) + eps).
//
// A row is read once: up to HELD quadruples a thread stay in registers until the row's sum is known (the host takes as
// many threads as that needs); what a very wide row has beyond that is read again, out of the cache.
#include "dev.cuh"

constexpr u32 THREADS_MAX = 1024;
constexpr u32 HELD = 4;

DEVICE float square(float4 v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }
DEVICE float4 product(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
DEVICE float dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
DEVICE float inverse_root(float sum, u32 width, float eps) { return rsqrtf(sum / (float)width + eps); }

// This thread's share of the row's sum of squares, scalar by scalar.
DEVICE float squares(const float* x, u32 width) {
  float sum = 0.0f;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum += x[i] * x[i];
  return sum;
}

DEVICE void store_scaled(bf16* y, float4 x, float4 gain, float factor) {
  const float4 v = product(x, gain);
  store_four(y, narrow(make_float4(factor * v.x, factor * v.y, factor * v.z, factor * v.w)));
}

DEVICE void forward_quads(const float* x, const float* gain, bf16* y, u32 width, float eps, float* scratch) {
  const u32 step = 4 * blockDim.x, first = 4 * threadIdx.x;
  float4 held[HELD];
  float sum = 0.0f;
#pragma unroll
  for (u32 k = 0; k < HELD; k++) {
    const u32 at = first + k * step;
    held[k] = at < width ? load4(x + at) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    sum += square(held[k]);
  }
  for (u32 at = first + HELD * step; at < width; at += step) sum += square(load4(x + at));
  const float c = inverse_root(block_sum(sum, scratch), width, eps);
#pragma unroll
  for (u32 k = 0; k < HELD; k++) {
    const u32 at = first + k * step;
    if (at < width) store_scaled(y + at, held[k], load4(gain + at), c);
  }
  for (u32 at = first + HELD * step; at < width; at += step) store_scaled(y + at, load4(x + at), load4(gain + at), c);
}

// y = gain * x / rms(x), rounded to bfloat16; x: [rows, width], a row a block.
KERNEL(THREADS_MAX)
rms_norm(const float* __restrict__ x, const float* __restrict__ gain, bf16* __restrict__ y, u32 width, float eps) {
  __shared__ float scratch[WARPS_MAX];
  x += (u64)blockIdx.x * width;
  y += (u64)blockIdx.x * width;
  if (width % 4 == 0 && aligned(x, gain) && ((u64)y & 7) == 0) {
    forward_quads(x, gain, y, width, eps, scratch);
    return;
  }
  const float c = inverse_root(block_sum(squares(x, width), scratch), width, eps);
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) y[i] = narrow(c * (x[i] * gain[i]));
}

// The two sums a row's gradient needs: of x^2, and of dy * gain * x.
struct Sums {
  float square, along;
};
DEVICE Sums block_sums(Sums sums, float* scratch) {
  sums.square = warp_sum(sums.square);
  sums.along = warp_sum(sums.along);
  if (lane_of() == 0) {
    scratch[warp_of()] = sums.square;
    scratch[WARPS_MAX + warp_of()] = sums.along;
  }
  __syncthreads();
  const bool used = lane_of() < blockDim.x / WARP;
  const float square = used ? scratch[lane_of()] : 0.0f;
  const float along = used ? scratch[WARPS_MAX + lane_of()] : 0.0f;
  return Sums{warp_sum(square), warp_sum(along)};
}

// dx += c * slope + along * x, with slope = gain * dy.
DEVICE void add_gradient(float* dx, float4 x, float4 slope, float c, float along) {
  float4 v = load4(dx);
  v.x += c * slope.x + along * x.x;
  v.y += c * slope.y + along * x.y;
  v.z += c * slope.z + along * x.z;
  v.w += c * slope.w + along * x.w;
  store4(dx, v);
}

DEVICE void back_quads(const float* x, const float* gain, const float* dy, float* dx, u32 width, float eps,
                       float* scratch) {
  const u32 step = 4 * blockDim.x, first = 4 * threadIdx.x;
  float4 held[HELD], slope[HELD];
  Sums sums = {0.0f, 0.0f};
#pragma unroll
  for (u32 k = 0; k < HELD; k++) {
    const u32 at = first + k * step;
    held[k] = slope[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (at < width) {
      held[k] = load4(x + at);
      slope[k] = product(load4(dy + at), load4(gain + at));
    }
    sums.square += square(held[k]);
    sums.along += dot(slope[k], held[k]);
  }
  for (u32 at = first + HELD * step; at < width; at += step) {
    const float4 v = load4(x + at);
    sums.square += square(v);
    sums.along += dot(product(load4(dy + at), load4(gain + at)), v);
  }
  sums = block_sums(sums, scratch);
  const float c = inverse_root(sums.square, width, eps);
  const float along = -c * c * c / (float)width * sums.along;
#pragma unroll
  for (u32 k = 0; k < HELD; k++) {
    const u32 at = first + k * step;
    if (at < width) add_gradient(dx + at, held[k], slope[k], c, along);
  }
  for (u32 at = first + HELD * step; at < width; at += step)
    add_gradient(dx + at, load4(x + at), product(load4(dy + at), load4(gain + at)), c, along);
}

// dx += the norm's input gradient: c * gain * dy - c^3 / width * (sum of gain * dy * x) * x, with c = 1 / rms(x).
KERNEL(THREADS_MAX)
rms_norm_back(const float* __restrict__ x, const float* __restrict__ gain, const float* __restrict__ dy,
              float* __restrict__ dx, u32 width, float eps) {
  __shared__ float scratch[2 * WARPS_MAX];
  const u64 row = (u64)blockIdx.x * width;
  x += row;
  dy += row;
  dx += row;
  if (width % 4 == 0 && aligned(x, gain, dy, dx)) {
    back_quads(x, gain, dy, dx, width, eps, scratch);
    return;
  }
  Sums sums = {0.0f, 0.0f};
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
    sums.square += x[i] * x[i];
    sums.along += dy[i] * gain[i] * x[i];
  }
  sums = block_sums(sums, scratch);
  const float c = inverse_root(sums.square, width, eps);
  const float along = -c * c * c / (float)width * sums.along;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) dx[i] += c * (gain[i] * dy[i]) + along * x[i];
}

// out[row] = 1 / rms(x[row]); a row a block.
KERNEL(THREADS_MAX)
inverse_rms(const float* __restrict__ x, float* __restrict__ out, u32 width, float eps) {
  __shared__ float scratch[WARPS_MAX];
  x += (u64)blockIdx.x * width;
  float sum = 0.0f;
  if (width % 4 == 0 && aligned(x)) {
    for (u32 at = 4 * threadIdx.x; at < width; at += 4 * blockDim.x) sum += square(load4(x + at));
  } else {
    sum = squares(x, width);
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) out[blockIdx.x] = inverse_root(sum, width, eps);
}

// Columns and row lanes of a block of gain_gradient.
constexpr u32 COLUMNS = 32;
constexpr u32 LANES = 32;

// grads[c] += sum over rows of dy * x * inverse[row]: warp w adds rows w, w + 32, ..., then the warps in order.
KERNEL(COLUMNS* LANES)
gain_gradient(const float* __restrict__ x, const float* __restrict__ inverse, const float* __restrict__ dy,
              float* __restrict__ grads, u32 rows, u32 width) {
  __shared__ float sums[LANES][COLUMNS];
  const u32 column = blockIdx.x * COLUMNS + lane_of();
  float sum = 0.0f;
  if (column < width) {
#pragma unroll 4
    for (u32 row = warp_of(); row < rows; row += LANES) {
      const u64 at = (u64)row * width + column;
      sum += x[at] * dy[at] * inverse[row];
    }
  }
  sums[warp_of()][lane_of()] = sum;
  __syncthreads();
  if (warp_of() != 0 || column >= width) return;
  float total = 0.0f;
#pragma unroll
  for (u32 w = 0; w < LANES; w++) total += sums[w][lane_of()];
  grads[column] += total;
}
