// AdamW as torch steps it: decoupled decay, bias correction, epsilon outside the corrected root.
#include "dev.cuh"

constexpr u32 THREADS = 256;
constexpr u32 CHUNK = 4 * THREADS;

// The constants of one step, as every element uses them.
struct Step {
  float rate, decay, beta1, beta2, eps, inverse_root, gradient_scale;
};

DEVICE void update(const Step& step, float g, float& p, float& m, float& v) {
  g *= step.gradient_scale;
  m += (1.0f - step.beta1) * (g - m);
  v = step.beta2 * v + (1.0f - step.beta2) * g * g;
  p = p * step.decay - step.rate * m / (sqrtf(v) * step.inverse_root + step.eps);
}

// One step on n elements; correction_i = 1 - beta_i^step.
KERNEL(THREADS)
adamw(const float* __restrict__ gradient, float* __restrict__ params, float* __restrict__ first,
      float* __restrict__ second, u64 n, float lr, float beta1, float beta2, float eps, float weight_decay,
      float correction1, float correction2, float gradient_scale) {
  const Step step = {lr / correction1, 1.0f - lr * weight_decay,  beta1, beta2,
                     eps,              1.0f / sqrtf(correction2), gradient_scale};
  const u64 chunk = (u64)blockIdx.x * CHUNK;
  if (chunk + CHUNK <= n && aligned(gradient, params, first, second)) {
    const u64 at = chunk + 4 * threadIdx.x;
    const float4 g = load4(gradient + at);
    float4 p = load4(params + at), m = load4(first + at), v = load4(second + at);
    update(step, g.x, p.x, m.x, v.x);
    update(step, g.y, p.y, m.y, v.y);
    update(step, g.z, p.z, m.z, v.z);
    update(step, g.w, p.w, m.w, v.w);
    store4(params + at, p);
    store4(first + at, m);
    store4(second + at, v);
    return;
  }
  const u64 end = min(n, chunk + CHUNK);
  for (u64 i = chunk + threadIdx.x; i < end; i += THREADS) update(step, gradient[i], params[i], first[i], second[i]);
}
