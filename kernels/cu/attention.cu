// Attention forward: out = softmax(scale * q K^T) V over the keys each query sees, and each softmax's log-sum-exp.
//
// A block has 64 queries of one head and walks over the key tiles in reach. Softmax is online and in base 2: the
// greatest score so far is taken off, and what was summed is scaled down when a greater one appears.
#include "attention.cuh"

constexpr u32 THREADS = 32 * OWN_WARPS;

struct Operands {
  const bf16 *q, *k, *v;
  bf16* out;
  float* lse;
  const u32 *query, *start, *end;
  u32 queries, keys, heads, kv_heads, head_dim;
  float scale;
};

// The softmax of the lane's two rows so far.
struct Softmax {
  float most[2], sum[2];
};

// Hides from each row the keys it does not see.
template <u32 D, u32 STEP>
DEVICE void hide(float (&scores)[STEP / 8][4], const KeyTiles<D, STEP, THREADS>& keys, u32 stage,
                 const u32 (&query)[2]) {
#pragma unroll
  for (u32 j = 0; j < STEP / 8; j++)
#pragma unroll
    for (u32 e = 0; e < 2; e++) {
      const Sight sight = keys.sight(stage, j * 8 + column_of_lane() + e);
      if (!sight.sees(query[0])) scores[j][e] = -infinity();
      if (!sight.sees(query[1])) scores[j][2 + e] = -infinity();
    }
}

// Turns scores into weights, exp(scale * score - most) with scale in base 2, and scales down what was summed before.
template <u32 STEP, u32 D>
DEVICE void weigh(Softmax& softmax, float (&scores)[STEP / 8][4], float (&out)[D / 8][4], float scale) {
#pragma unroll
  for (u32 r = 0; r < 2; r++) {
    float most = softmax.most[r];
#pragma unroll
    for (u32 j = 0; j < STEP / 8; j++) most = fmaxf(most, fmaxf(scores[j][2 * r], scores[j][2 * r + 1]));
    most = row_max(most);
    // A row that has seen nothing yet has no greatest score: any finite number keeps its weights 0.
    const float shift = most == -infinity() ? 0.0f : most * scale;
    const float factor = exp2_fast(softmax.most[r] * scale - shift);
    float sum = softmax.sum[r] * factor;
#pragma unroll
    for (u32 j = 0; j < STEP / 8; j++)
#pragma unroll
      for (u32 e = 2 * r; e < 2 * r + 2; e++) {
        scores[j][e] = exp2_fast(scores[j][e] * scale - shift);
        sum += scores[j][e];
      }
#pragma unroll
    for (u32 j = 0; j < D / 8; j++) {
      out[j][2 * r] *= factor;
      out[j][2 * r + 1] *= factor;
    }
    softmax.most[r] = most;
    softmax.sum[r] = sum;
  }
}

template <u32 D, u32 STEP>
DEVICE void forward(const Operands& of) {
  // [OWN, D] queries, at the end outputs; two stages of keys and values, [STEP, D] each; two of starts and ends;
  // covers.
  extern __shared__ __align__(128) u8 memory[];
  constexpr u32 OWN_BYTES = OWN * D * 2;
  u32* const bounds = reinterpret_cast<u32*>(memory + OWN_BYTES + 4 * STEP * D * 2);
  u32* const covers = bounds + 4 * STEP;
  const u32 own = shared_address(memory);

  // The last queries of a causal forest see the most: they start first.
  const u32 head = blockIdx.y, first = (gridDim.x - 1 - blockIdx.x) * OWN, tiles = (of.keys + STEP - 1) / STEP;
  const u32 group = head / (of.heads / of.kv_heads);
  const KeyTiles<D, STEP, THREADS> keys = {rows_of(of.k, of.keys, of.kv_heads, group, of.head_dim),
                                           rows_of(of.v, of.keys, of.kv_heads, group, of.head_dim),
                                           of.start, of.end, own + OWN_BYTES, bounds};

  copy_tile<D, OWN, THREADS>(own, rows_of(of.q, of.queries, of.heads, head, of.head_dim), first);
  copies_end_group();
  keys.note(covers, tiles, range_of(of.query, first, of.queries));
  __syncthreads();
  u32 tile = next_tile(covers, 0, tiles);
  if (tile < tiles) keys.copy(0, tile);
  copies_end_group();
  keys.put(0, keys.read(tile));
  copies_wait<1>();
  __syncthreads();

  const u32 own_row = warp_of() * 16, row = first + own_row + row_of_lane();
  const auto q = Left<D, (D <= 128)>::of(own, own_row);
  const u32 query[2] = {of.query[min(row, of.queries - 1)], of.query[min(row + 8, of.queries - 1)]};
  float out[D / 8][4];
  clear(out);
  Softmax softmax = {{-infinity(), -infinity()}, {0.0f, 0.0f}};
  const float scale = of.scale * LOG2_E;

  for (u32 stage = 0; tile < tiles; stage ^= 1) {
    const u32 next = next_tile(covers, tile + 1, tiles);
    if (next < tiles) keys.copy(stage ^ 1, next);
    copies_end_group();
    const Sight upcoming = keys.read(next);
    copies_wait<1>();
    __syncthreads();

    float scores[STEP / 8][4];
    times_rows<D, STEP>(scores, q, keys.keys_at(stage));
    if (noted_cover(covers, tile) == PART) hide(scores, keys, stage, query);
    weigh<STEP, D>(softmax, scores, out, scale);
    u32 weights[STEP / 16][4];
    packed<STEP>(weights, scores);
    times_columns<D, STEP, D>(out, weights, keys.values_at(stage), 0);

    keys.put(stage ^ 1, upcoming);
    __syncthreads();
    tile = next;
  }

  float inverse[2];
#pragma unroll
  for (u32 r = 0; r < 2; r++) {
    const float sum = row_sum(softmax.sum[r]);
    inverse[r] = sum > 0.0f ? 1.0f / sum : 0.0f;
    if (lane_of() % 4 == 0 && row + 8 * r < of.queries)
      of.lse[(u64)(row + 8 * r) * of.heads + head] = softmax.most[r] * of.scale + logf(sum);
  }
  store_sums<D, D>(of.out + head * of.head_dim, of.heads * of.head_dim, first + own_row, of.queries, 0, of.head_dim,
                   out, inverse[0], inverse[1], memory, own_row);
}

// q, out: [queries, heads * head_dim]; k, v: [keys, kv_heads * head_dim]; lse: [queries, heads]; blocks: queries / 64,
// heads.
#define FORWARD(D, STEP)                                                                                            \
  KERNEL(THREADS, 2)                                                                                                \
  attention_##D(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,                 \
                bf16* __restrict__ out, float* __restrict__ lse, const u32* __restrict__ query,                     \
                const u32* __restrict__ start, const u32* __restrict__ end, u32 queries, u32 keys, u32 heads,       \
                u32 kv_heads, u32 head_dim, float scale) {                                                          \
    forward<D, STEP>({q, k, v, out, lse, query, start, end, queries, keys, heads, kv_heads, head_dim, scale});      \
  }

FORWARD(16, 64)
FORWARD(32, 64)
FORWARD(64, 64)
FORWARD(80, 64)
FORWARD(96, 64)
FORWARD(128, 64)
FORWARD(256, 32)
