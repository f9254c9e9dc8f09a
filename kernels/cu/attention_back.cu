// Attention backward, in two passes so that nothing is added from two sides: dq over the keys, dk and dv over the
// queries.
//
//   p  = exp(scale * score - lse)        recomputed, exactly normalised
//   dv = p^T dout
//   ds = p * (dout v^T - delta)          delta = the row sum of out * dout
//   dq = scale * ds k                    dk = scale * ds^T q
#include "attention.cuh"

struct Operands {
  const bf16 *q, *k, *v, *dout;
  const float *lse, *delta;
  const u32 *query, *start, *end;
  u32 queries, keys, heads, kv_heads, head_dim;
  float scale;
};

// delta[q, h] = sum over d of out * dout, in float32; a query a block, and a power of two of lanes a head.
KERNEL(256)
attention_delta(const bf16* __restrict__ out, const bf16* __restrict__ dout, float* __restrict__ delta, u32 heads,
                u32 head_dim) {
  u32 lanes = 1;
  while (lanes * 8 < head_dim) lanes *= 2;
  const u32 mine = threadIdx.x / lanes, lane = threadIdx.x % lanes, at = lane * 8;
  out += (u64)blockIdx.x * heads * head_dim;
  dout += (u64)blockIdx.x * heads * head_dim;
  delta += (u64)blockIdx.x * heads;
  for (u32 base = 0; base < heads; base += blockDim.x / lanes) {
    const u32 head = base + mine;
    float sum = 0.0f;
    if (head < heads && at < head_dim) {
      const Eight a = load8(out + head * head_dim + at), b = load8(dout + head * head_dim + at);
#pragma unroll
      for (u32 k = 0; k < 4; k++) sum += low(a.pair[k]) * low(b.pair[k]) + high(a.pair[k]) * high(b.pair[k]);
    }
    for (u32 distance = lanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, distance);
    if (head < heads && lane == 0) delta[head] = sum;
  }
}

// What the way back needs of a query: who it is, its log-sum-exp in base 2, its delta. Past the last: of no weight.
struct Query {
  u32 number;
  float lse, delta;
};
DEVICE Query query_of(const Operands& of, u32 head, u32 row) {
  if (row >= of.queries) return Query{NOBODY, infinity(), 0.0f};
  const u64 at = (u64)row * of.heads + head;
  return Query{of.query[row], of.lse[at] * LOG2_E, of.delta[at]};
}

constexpr u32 DQ_THREADS = 32 * OWN_WARPS;

template <u32 D, u32 STEP>
DEVICE void back_queries(const Operands& of, bf16* dq) {
  // [OWN, D] q, at the end dq; [OWN, D] dout; two stages of keys and values, [STEP, D] each; two of starts and ends;
  // covers.
  extern __shared__ __align__(128) u8 memory[];
  constexpr u32 OWN_BYTES = OWN * D * 2;
  u32* const bounds = reinterpret_cast<u32*>(memory + 2 * OWN_BYTES + 4 * STEP * D * 2);
  u32* const covers = bounds + 4 * STEP;
  const u32 own = shared_address(memory);

  const u32 head = blockIdx.y, first = (gridDim.x - 1 - blockIdx.x) * OWN, tiles = (of.keys + STEP - 1) / STEP;
  const u32 group = head / (of.heads / of.kv_heads);
  const KeyTiles<D, STEP, DQ_THREADS> keys = {rows_of(of.k, of.keys, of.kv_heads, group, of.head_dim),
                                              rows_of(of.v, of.keys, of.kv_heads, group, of.head_dim),
                                              of.start, of.end, own + 2 * OWN_BYTES, bounds};

  copy_tile<D, OWN, DQ_THREADS>(own, rows_of(of.q, of.queries, of.heads, head, of.head_dim), first);
  copy_tile<D, OWN, DQ_THREADS>(own + OWN_BYTES, rows_of(of.dout, of.queries, of.heads, head, of.head_dim), first);
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
  const auto q = Left<D, (D <= 64)>::of(own, own_row);
  const auto dout = Left<D, (D <= 64)>::of(own + OWN_BYTES, own_row);
  const Query query[2] = {query_of(of, head, row), query_of(of, head, row + 8)};
  const float scale = of.scale * LOG2_E;
  float sums[D / 8][4];
  clear(sums);

  for (u32 stage = 0; tile < tiles; stage ^= 1) {
    const u32 next = next_tile(covers, tile + 1, tiles);
    if (next < tiles) keys.copy(stage ^ 1, next);
    copies_end_group();
    const Sight upcoming = keys.read(next);
    copies_wait<1>();
    __syncthreads();

    const bool part = noted_cover(covers, tile) == PART;
    float p[STEP / 8][4], dp[STEP / 8][4];
    times_rows<D, STEP>(p, q, keys.keys_at(stage));
    times_rows<D, STEP>(dp, dout, keys.values_at(stage));
#pragma unroll
    for (u32 j = 0; j < STEP / 8; j++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) {
        const Query& of_row = query[e / 2];
        const u32 key = j * 8 + column_of_lane() + e % 2;
        float weight = exp2_fast(p[j][e] * scale - of_row.lse);
        if (part && !keys.sight(stage, key).sees(of_row.number)) weight = 0.0f;
        dp[j][e] = weight * (dp[j][e] - of_row.delta);
      }
    u32 ds[STEP / 16][4];
    packed<STEP>(ds, dp);
    times_columns<D, STEP, D>(sums, ds, keys.keys_at(stage), 0);

    keys.put(stage ^ 1, upcoming);
    __syncthreads();
    tile = next;
  }
  store_sums<D, D>(dq + head * of.head_dim, of.heads * of.head_dim, first + own_row, of.queries, 0, of.head_dim, sums,
                   of.scale, of.scale, memory, own_row);
}

// Warps that share a key's row, each with its part of the columns: two accumulators of the widest head fill the
// registers of two warps.
template <u32 D>
constexpr u32 SHARES = D > 128 ? 2 : 1;
template <u32 D>
constexpr u32 DKV_THREADS = 32 * OWN_WARPS * SHARES<D>;

// The queries a block of keys walks over, head by head: two stages of a tile of q and one of dout, [STEP, D] each,
// and of what the queries bring.
template <u32 D, u32 STEP>
struct QueryTiles {
  static constexpr u32 BYTES = STEP * D * 2;
  const Operands& of;
  // Four tiles in shared memory, and 2 * STEP each of the queries' numbers, lse and delta.
  u32 tiles;
  u32* numbers;
  float *lses, *deltas;

  __device__ __forceinline__ u32 q_at(u32 stage) const { return tiles + stage * 2 * BYTES; }
  __device__ __forceinline__ u32 dout_at(u32 stage) const { return q_at(stage) + BYTES; }
  __device__ __forceinline__ void copy(u32 stage, u32 head, u32 tile) const {
    constexpr u32 THREADS = DKV_THREADS<D>;
    copy_tile<D, STEP, THREADS>(q_at(stage), rows_of(of.q, of.queries, of.heads, head, of.head_dim), tile * STEP);
    copy_tile<D, STEP, THREADS>(dout_at(stage), rows_of(of.dout, of.queries, of.heads, head, of.head_dim), tile * STEP);
  }
  // This thread's query of a tile; of no weight past the last, and without a head.
  __device__ __forceinline__ Query read(u32 head, u32 tile, bool any) const {
    return query_of(of, head, any ? tile * STEP + threadIdx.x : of.queries);
  }
  __device__ __forceinline__ void put(u32 stage, const Query& query) const {
    if (threadIdx.x < STEP) {
      numbers[stage * STEP + threadIdx.x] = query.number;
      lses[stage * STEP + threadIdx.x] = query.lse;
      deltas[stage * STEP + threadIdx.x] = query.delta;
    }
  }
  // Notes which tiles see keys whose sights start and end within these ranges; a barrier must follow.
  __device__ __forceinline__ void note(u32* covers, u32 count, Range starts, Range ends) const {
    note_covers<DKV_THREADS<D> / WARP>(covers, count, [&](u32 tile) {
      bool some = false, all = true;
#pragma unroll
      for (u32 i = lane_of(); i < STEP; i += WARP) {
        const u32 row = tile * STEP + i;
        if (row < of.queries) {
          const u32 query = of.query[row];
          some |= starts.least <= query && query < ends.most;
          all &= starts.most <= query && query < ends.least;
        }
      }
      return cover(some, all);
    });
  }
};

template <u32 D, u32 STEP>
DEVICE void back_keys(const Operands& of, bf16* dk, bf16* dv) {
  // [OWN, D] k, at the end dk; [OWN, D] v, at the end dv; two stages of q and dout, [STEP, D] each; two of the queries'
  // numbers, lse and delta; covers.
  extern __shared__ __align__(128) u8 memory[];
  constexpr u32 OWN_BYTES = OWN * D * 2, THREADS = DKV_THREADS<D>, WIDTH = D / SHARES<D>;
  u32* const numbers = reinterpret_cast<u32*>(memory + 2 * OWN_BYTES + 4 * STEP * D * 2);
  float* const lses = reinterpret_cast<float*>(numbers + 2 * STEP);
  float* const deltas = lses + 2 * STEP;
  u32* const covers = reinterpret_cast<u32*>(deltas + 2 * STEP);
  const u32 own = shared_address(memory);

  const u32 group = blockIdx.y, first = blockIdx.x * OWN, tiles = (of.queries + STEP - 1) / STEP;
  const u32 group_heads = of.heads / of.kv_heads, last_head = (group + 1) * group_heads;
  const QueryTiles<D, STEP> queries = {of, own + 2 * OWN_BYTES, numbers, lses, deltas};

  copy_tile<D, OWN, THREADS>(own, rows_of(of.k, of.keys, of.kv_heads, group, of.head_dim), first);
  copy_tile<D, OWN, THREADS>(own + OWN_BYTES, rows_of(of.v, of.keys, of.kv_heads, group, of.head_dim), first);
  copies_end_group();
  const Range starts = range_of(of.start, first, of.keys), ends = range_of(of.end, first, of.keys);
  queries.note(covers, tiles, starts, ends);
  __syncthreads();
  const u32 first_tile = next_tile(covers, 0, tiles);
  u32 tile = first_tile, head = first_tile < tiles ? group * group_heads : last_head;
  if (head < last_head) queries.copy(0, head, tile);
  copies_end_group();
  queries.put(0, queries.read(head, tile, head < last_head));
  copies_wait<1>();
  __syncthreads();

  const u32 own_row = warp_of() % OWN_WARPS * 16, column = warp_of() / OWN_WARPS * WIDTH;
  const u32 row = first + own_row + row_of_lane();
  const auto k = Left<D, false>::of(own, own_row);
  const auto v = Left<D, false>::of(own + OWN_BYTES, own_row);
  const Sight sight[2] = {sight_of(of.start, of.end, row, of.keys), sight_of(of.start, of.end, row + 8, of.keys)};
  const float scale = of.scale * LOG2_E;
  float sums_k[WIDTH / 8][4], sums_v[WIDTH / 8][4];
  clear(sums_k);
  clear(sums_v);

  for (u32 stage = 0; head < last_head; stage ^= 1) {
    u32 next = next_tile(covers, tile + 1, tiles), next_head = head;
    if (next == tiles) {
      next = first_tile;
      next_head++;
    }
    if (next_head < last_head) queries.copy(stage ^ 1, next_head, next);
    copies_end_group();
    const Query upcoming = queries.read(next_head, next, next_head < last_head);
    copies_wait<1>();
    __syncthreads();

    const bool part = noted_cover(covers, tile) == PART;
    // Transposed: rows are keys, columns are queries.
    float p[STEP / 8][4], ds[STEP / 8][4];
    times_rows<D, STEP>(p, k, queries.q_at(stage));
    times_rows<D, STEP>(ds, v, queries.dout_at(stage));
#pragma unroll
    for (u32 j = 0; j < STEP / 8; j++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) {
        const u32 query = stage * STEP + j * 8 + column_of_lane() + e % 2;
        float weight = exp2_fast(p[j][e] * scale - lses[query]);
        if (part && !sight[e / 2].sees(numbers[query])) weight = 0.0f;
        p[j][e] = weight;
        ds[j][e] = weight * (ds[j][e] - deltas[query]);
      }
    u32 left[STEP / 16][4];
    packed<STEP>(left, p);
    times_columns<D, STEP, WIDTH>(sums_v, left, queries.dout_at(stage), column);
    packed<STEP>(left, ds);
    times_columns<D, STEP, WIDTH>(sums_k, left, queries.q_at(stage), column);

    queries.put(stage ^ 1, upcoming);
    __syncthreads();
    tile = next;
    head = next_head;
  }

  const u32 at = group * of.head_dim, stride = of.kv_heads * of.head_dim;
  // Where nothing was in reach, warps that share rows may still be reading them.
  __syncthreads();
  store_sums<D, WIDTH>(dk + at, stride, first + own_row, of.keys, column, of.head_dim, sums_k, of.scale, of.scale,
                       memory, own_row);
  store_sums<D, WIDTH>(dv + at, stride, first + own_row, of.keys, column, of.head_dim, sums_v, 1.0f, 1.0f,
                       memory + OWN_BYTES, own_row);
}

#define BACK_OPERANDS                                                                                                  \
  const bf16 *__restrict__ q, const bf16 *__restrict__ k, const bf16 *__restrict__ v, const bf16 *__restrict__ dout,   \
      const float *__restrict__ lse, const float *__restrict__ delta, const u32 *__restrict__ query,                   \
      const u32 *__restrict__ start, const u32 *__restrict__ end

// Shapes as in the forward pass; dq: [queries, heads * head_dim], dk, dv: [keys, kv_heads * head_dim]; delta like lse.
// Blocks: dq queries / 64, heads; dkv keys / 64, kv_heads.
#define BACK(D, STEP)                                                                                                  \
  KERNEL(DQ_THREADS, 2)                                                                                                \
  attention_dq_##D(BACK_OPERANDS, bf16* __restrict__ dq, u32 queries, u32 keys, u32 heads, u32 kv_heads, u32 head_dim, \
                   float scale) {                                                                                      \
    back_queries<D, STEP>(                                                                                             \
        {q, k, v, dout, lse, delta, query, start, end, queries, keys, heads, kv_heads, head_dim, scale}, dq);          \
  }                                                                                                                    \
  KERNEL(DKV_THREADS<D>, 2 / SHARES<D>)                                                                                \
  attention_dkv_##D(BACK_OPERANDS, bf16* __restrict__ dk, bf16* __restrict__ dv, u32 queries, u32 keys, u32 heads,     \
                    u32 kv_heads, u32 head_dim, float scale) {                                                         \
    back_keys<D, STEP>(                                                                                                \
        {q, k, v, dout, lse, delta, query, start, end, queries, keys, heads, kv_heads, head_dim, scale}, dk, dv);      \
  }

BACK(16, 64)
BACK(32, 64)
BACK(64, 64)
BACK(80, 32)
BACK(96, 32)
BACK(128, 32)
BACK(256, 16)
