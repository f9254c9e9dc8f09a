// Cross entropy over rows of logits with its gradient in place, and what evaluation reads from logits; a row a block.
//
// The greatest logit and the sum of exponentials come from one reading: a thread keeps both of what it saw so far, and
// scales the sum down when a greater logit appears.
#include "dev.cuh"

constexpr u32 THREADS = 512;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 NONE = 0xffffffffu;

// Calls visit(index, value) for this thread's elements of the row, index ascending: up to three scalars to the first
// 16-byte boundary, then quadruples, then what is left.
template <class Visit>
DEVICE void each(const float* row, u32 vocab, Visit visit) {
  const u32 head = min(vocab, (u32)((16 - ((u64)row & 15)) & 15) / 4);
  if (threadIdx.x < head) visit(threadIdx.x, row[threadIdx.x]);
  const u32 quads = (vocab - head) / 4;
#pragma unroll 2
  for (u32 i = threadIdx.x; i < quads; i += THREADS) {
    const u32 at = head + 4 * i;
    const float4 v = load4(row + at);
    visit(at, v.x);
    visit(at + 1, v.y);
    visit(at + 2, v.z);
    visit(at + 3, v.w);
  }
  const u32 last = head + 4 * quads + threadIdx.x;
  if (last < vocab) visit(last, row[last]);
}

// The softmax's denominator so far: sum of exp(x - most).
struct Softmax {
  float most, sum;
};

DEVICE void see(Softmax& s, float x) {
  if (x > s.most) {
    s.sum = s.sum * exp2_fast((s.most - x) * LOG2_E) + 1.0f;
    s.most = x;
  } else if (x != -infinity()) {
    s.sum += exp2_fast((x - s.most) * LOG2_E);
  }
}

DEVICE Softmax joined(Softmax a, Softmax b) {
  const float most = fmaxf(a.most, b.most);
  // Two threads that saw nothing have no difference of maxima.
  const float of_a = a.most == most ? 1.0f : exp2_fast((a.most - most) * LOG2_E);
  const float of_b = b.most == most ? 1.0f : exp2_fast((b.most - most) * LOG2_E);
  return Softmax{most, a.sum * of_a + b.sum * of_b};
}

DEVICE Softmax from_lane(Softmax s, u32 distance) {
  return Softmax{__shfl_xor_sync(ALL_LANES, s.most, distance), __shfl_xor_sync(ALL_LANES, s.sum, distance)};
}

// Joins what a block's threads saw; the same in every thread.
template <class T>
DEVICE T joined_block(T seen, T nothing, T* scratch) {
#pragma unroll
  for (u32 distance = WARP / 2; distance > 0; distance /= 2) seen = joined(seen, from_lane(seen, distance));
  if (lane_of() == 0) scratch[warp_of()] = seen;
  __syncthreads();
  seen = lane_of() < WARPS ? scratch[lane_of()] : nothing;
#pragma unroll
  for (u32 distance = WARP / 2; distance > 0; distance /= 2) seen = joined(seen, from_lane(seen, distance));
  return seen;
}

// Row r: loss[r] = sum over its entries e of w_e * -log softmax[id_e]; logits become (sum w) * softmax - sum w_e
// onehot_e. Entries of row r: offsets[r] .. offsets[r + 1]; logits: [rows, vocab].
KERNEL(THREADS)
cross_entropy(float* __restrict__ logits, u32 vocab, const u32* __restrict__ offsets, const u32* __restrict__ ids,
              const float* __restrict__ weights, float* __restrict__ loss) {
  __shared__ Softmax scratch[WARPS];
  __shared__ float total;
  float* row = logits + (u64)blockIdx.x * vocab;
  const u32 first = offsets[blockIdx.x], end = offsets[blockIdx.x + 1];

  const Softmax nothing = {-infinity(), 0.0f};
  Softmax own = nothing;
  each(row, vocab, [&](u32, float x) { see(own, x); });
  const Softmax whole = joined_block(own, nothing, scratch);

  // The entries are few: one thread adds them, in their order, before the logits they name are overwritten.
  if (threadIdx.x == 0) {
    const float lse = whole.most + logf(whole.sum);
    float sum = 0.0f, weight = 0.0f;
    for (u32 e = first; e < end; e++) {
      sum += weights[e] * (lse - row[ids[e]]);
      weight += weights[e];
    }
    loss[blockIdx.x] = sum;
    total = weight;
  }
  __syncthreads();

  const float factor = total / whole.sum;
  const auto gradient = [&](float x) { return factor * exp2_fast((x - whole.most) * LOG2_E); };
  const u32 head = min(vocab, (u32)((16 - ((u64)row & 15)) & 15) / 4), quads = (vocab - head) / 4;
  if (threadIdx.x < head) row[threadIdx.x] = gradient(row[threadIdx.x]);
#pragma unroll 2
  for (u32 i = threadIdx.x; i < quads; i += THREADS) {
    const float4 v = load4(row + head + 4 * i);
    store4(row + head + 4 * i, make_float4(gradient(v.x), gradient(v.y), gradient(v.z), gradient(v.w)));
  }
  const u32 last = head + 4 * quads + threadIdx.x;
  if (last < vocab) row[last] = gradient(row[last]);
  __syncthreads();

  // An id may be named twice: one thread again.
  if (threadIdx.x == 0)
    for (u32 e = first; e < end; e++) row[ids[e]] -= weights[e];
}

// What read_out keeps of a row: the denominator, the greatest logit's id and the second greatest logit.
struct Seen {
  Softmax softmax;
  float second;
  u32 best;
};

DEVICE void see(Seen& s, u32 id, float x) {
  if (x > s.softmax.most) {
    s.second = s.softmax.most;
    s.best = id;
  } else {
    s.second = fmaxf(s.second, x);
  }
  see(s.softmax, x);
}

DEVICE Seen joined(Seen a, Seen b) {
  const float low = fminf(a.softmax.most, b.softmax.most);
  const bool of_a = a.softmax.most > b.softmax.most || (a.softmax.most == b.softmax.most && a.best < b.best);
  return Seen{joined(a.softmax, b.softmax), fmaxf(low, fmaxf(a.second, b.second)), of_a ? a.best : b.best};
}

DEVICE Seen from_lane(Seen s, u32 distance) {
  return Seen{from_lane(s.softmax, distance), __shfl_xor_sync(ALL_LANES, s.second, distance),
              __shfl_xor_sync(ALL_LANES, s.best, distance)};
}

// Per row: log-probabilities of its entries, the greatest logit's id (the lowest among equals) and how far it leads.
KERNEL(THREADS)
read_out(const float* __restrict__ logits, u32 vocab, const u32* __restrict__ offsets, const u32* __restrict__ ids,
         float* __restrict__ log_probs, u32* __restrict__ best, float* __restrict__ margin) {
  __shared__ Seen scratch[WARPS];
  const float* row = logits + (u64)blockIdx.x * vocab;
  const Seen nothing = {{-infinity(), 0.0f}, -infinity(), NONE};
  Seen own = nothing;
  each(row, vocab, [&](u32 id, float x) { see(own, id, x); });
  const Seen whole = joined_block(own, nothing, scratch);
  const float lse = whole.softmax.most + logf(whole.softmax.sum);
  for (u32 e = offsets[blockIdx.x] + threadIdx.x; e < offsets[blockIdx.x + 1]; e += THREADS)
    log_probs[e] = row[ids[e]] - lse;
  if (threadIdx.x == 0) {
    best[blockIdx.x] = whole.best;
    margin[blockIdx.x] = whole.softmax.most - whole.second;
  }
}
