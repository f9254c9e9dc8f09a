// SwiGLU: silu(gate) * up, with silu(x) = x * sigmoid(x); a block takes CHUNK neighbouring elements.
#include "dev.cuh"

constexpr u32 THREADS = 256;
constexpr u32 CHUNK = 8 * THREADS;

DEVICE float forward(float gate, float up) { return gate * sigmoid(gate) * up; }

// out = silu(gate) * up.
KERNEL(THREADS)
swiglu(const bf16* __restrict__ gate, const bf16* __restrict__ up, bf16* __restrict__ out, u64 n) {
  const u64 first = (u64)blockIdx.x * CHUNK;
  if (first + CHUNK <= n && aligned(gate, up, out)) {
    const u64 at = first + 8 * threadIdx.x;
    const Eight g = load8(gate + at), u = load8(up + at);
    Eight result;
#pragma unroll
    for (u32 k = 0; k < 4; k++)
      result.pair[k] =
          pack(forward(low(g.pair[k]), low(u.pair[k])), forward(high(g.pair[k]), high(u.pair[k])));
    store8(out + at, result);
    return;
  }
  const u64 end = min(n, first + CHUNK);
  for (u64 i = first + threadIdx.x; i < end; i += THREADS) out[i] = narrow(forward(widen(gate[i]), widen(up[i])));
}

// d becomes gate's gradient, dup up's: dup = d * silu(gate); d *= up * sigmoid(gate) * (1 + gate * (1 -
// sigmoid(gate))).
DEVICE void backward(float gate, float up, float& d, float& dup) {
  const float s = sigmoid(gate);
  dup = d * gate * s;
  d *= up * s * (1.0f + gate * (1.0f - s));
}

// Turns dout into gate's gradient in place and writes up's.
KERNEL(THREADS)
swiglu_back(const bf16* __restrict__ gate, const bf16* __restrict__ up, bf16* __restrict__ dout,
            bf16* __restrict__ dup, u64 n) {
  const u64 first = (u64)blockIdx.x * CHUNK;
  if (first + CHUNK <= n && aligned(gate, up, dout, dup)) {
    const u64 at = first + 8 * threadIdx.x;
    const Eight g = load8(gate + at), u = load8(up + at);
    Eight d = load8(dout + at), du;
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
      float d0 = low(d.pair[k]), d1 = high(d.pair[k]), up0, up1;
      backward(low(g.pair[k]), low(u.pair[k]), d0, up0);
      backward(high(g.pair[k]), high(u.pair[k]), d1, up1);
      d.pair[k] = pack(d0, d1);
      du.pair[k] = pack(up0, up1);
    }
    store8(dout + at, d);
    store8(dup + at, du);
    return;
  }
  const u64 end = min(n, first + CHUNK);
  for (u64 i = first + threadIdx.x; i < end; i += THREADS) {
    float d = widen(dout[i]), du;
    backward(widen(gate[i]), widen(up[i]), d, du);
    dout[i] = narrow(d);
    dup[i] = narrow(du);
  }
}
