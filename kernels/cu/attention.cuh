// What the passes of attention share: tiles in shared memory, products on the tensor cores, who sees whom.
//
// Query q sees key k iff start[k] <= query[q] < end[k]. A block has OWN rows of its own (queries, or keys in dkv), a
// warp sixteen of them, and walks over tiles of the others, two of them in flight: while one is computed the next is
// copied. Tiles that no row of the block's own can see are never read.
//
// Heads are `head_dim` wide (a multiple of 8) and computed D wide (a multiple of 16): the rest is zeros, as are rows
// past the last. Operands are bfloat16, sums float32. Addresses and row strides are multiples of 16 bytes.
#pragma once
#include "dev.cuh"

// Rows of a block.
constexpr u32 OWN = 64;
// Warps that hold OWN rows.
constexpr u32 OWN_WARPS = OWN / 16;
constexpr u32 NOBODY = 0xffffffffu;

// ---- tiles in shared memory ----

DEVICE u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// Byte offset of eight neighbouring elements (a chunk, 16 bytes) of a row of a tile of D columns.
//
// ldmatrix reads one chunk of eight rows at a time; they lie in eight different sixteenths of the 32 banks' 128 bytes
// because a chunk's place is its number xor'ed with bits of its row's. How many bits depends on how many chunks a row
// has: xor must stay inside the row.
template <u32 D>
DEVICE u32 chunk_at(u32 row, u32 chunk) {
  constexpr u32 CHUNKS = D / 8;
  constexpr u32 EVEN = CHUNKS & (0 - CHUNKS);  // the greatest power of two in CHUNKS
  constexpr u32 SPREAD = EVEN < 8 ? EVEN : 8;
  return (row * CHUNKS + (chunk ^ (row / (8 / SPREAD) % SPREAD))) * 16;
}

// Starts copying 16 bytes, or writes zeros if not `inside`; done after the wait for its group.
DEVICE void copy_async(u32 to, const bf16* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
DEVICE void copies_end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `LEFT` of this thread's groups are under way. A barrier must follow before others' copies are
// read.
template <u32 LEFT>
DEVICE void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// A matrix of heads in global memory, seen from one head.
struct Rows {
  const bf16* head;
  u32 stride, count, head_dim;
};
DEVICE Rows rows_of(const bf16* matrix, u32 count, u32 heads, u32 head, u32 head_dim) {
  return Rows{matrix + head * head_dim, heads * head_dim, count, head_dim};
}

// Starts copying rows first .. first + N into a tile; what is outside the matrix becomes zeros.
template <u32 D, u32 N, u32 THREADS>
DEVICE void copy_tile(u32 tile, const Rows& rows, u32 first) {
  constexpr u32 CHUNKS = D / 8;
  const bf16* from = rows.head + (u64)first * rows.stride;
  const u32 left = rows.count - first;
#pragma unroll
  for (u32 i = 0; i < N * CHUNKS; i += THREADS) {
    const u32 at = i + threadIdx.x, row = at / CHUNKS, chunk = at % CHUNKS;
    if (N * CHUNKS % THREADS == 0 || at < N * CHUNKS) {
      const bool inside = row < left && chunk * 8 < rows.head_dim;
      copy_async(tile + chunk_at<D>(row, chunk), inside ? from + row * rows.stride + chunk * 8 : from, inside);
    }
  }
}

// ---- products: mma.sync m16n8k16, whose operands' and results' places in the lanes fit each other ----

DEVICE void ldmatrix(u32 (&to)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
DEVICE void ldmatrix_transposed(u32 (&to)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
DEVICE void mma(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <u32 N>
DEVICE void clear(float (&sums)[N][4]) {
#pragma unroll
  for (u32 j = 0; j < N; j++) sums[j][0] = sums[j][1] = sums[j][2] = sums[j][3] = 0.0f;
}

// Sixteen rows of a tile, from `first` on, as left operands: either read once and kept in registers, or on every use.
template <u32 D, bool KEPT>
struct Left;

template <u32 D>
DEVICE u32 left_at(u32 tile, u32 first, u32 step) {
  return tile + chunk_at<D>(first + lane_of() % 16, 2 * step + lane_of() / 16);
}
template <u32 D>
struct Left<D, true> {
  u32 kept[D / 16][4];
  static __device__ __forceinline__ Left of(u32 tile, u32 first) {
    Left left;
#pragma unroll
    for (u32 step = 0; step < D / 16; step++) ldmatrix(left.kept[step], left_at<D>(tile, first, step));
    return left;
  }
  __device__ __forceinline__ void read(u32 (&to)[4], u32 step) const {
#pragma unroll
    for (u32 i = 0; i < 4; i++) to[i] = kept[step][i];
  }
};
template <u32 D>
struct Left<D, false> {
  u32 tile, first;
  static __device__ __forceinline__ Left of(u32 tile, u32 first) { return Left{tile, first}; }
  __device__ __forceinline__ void read(u32 (&to)[4], u32 step) const { ldmatrix(to, left_at<D>(tile, first, step)); }
};

// sums[16, N] = left[16, D] times the transpose of a tile [N, D].
template <u32 D, u32 N, bool KEPT>
DEVICE void times_rows(float (&sums)[N / 8][4], const Left<D, KEPT>& left, u32 tile) {
  clear(sums);
#pragma unroll
  for (u32 step = 0; step < D / 16; step++) {
    u32 a[4];
    left.read(a, step);
#pragma unroll
    for (u32 j = 0; j < N / 8; j += 2) {
      u32 b[4];
      ldmatrix(b, tile + chunk_at<D>(j * 8 + lane_of() / 16 * 8 + lane_of() % 8, 2 * step + lane_of() / 8 % 2));
      mma(sums[j], a, b[0], b[1]);
      mma(sums[j + 1], a, b[2], b[3]);
    }
  }
}

// sums[16, W] += left[16, N] times columns first .. first + W of a tile [N, D]; left comes from sums as `packed` made
// it.
template <u32 D, u32 N, u32 W>
DEVICE void times_columns(float (&sums)[W / 8][4], const u32 (&left)[N / 16][4], u32 tile, u32 first) {
#pragma unroll
  for (u32 step = 0; step < N / 16; step++)
#pragma unroll
    for (u32 j = 0; j < W / 8; j += 2) {
      u32 b[4];
      ldmatrix_transposed(b, tile + chunk_at<D>(step * 16 + lane_of() % 16, first / 8 + j + lane_of() / 16));
      mma(sums[j], left[step], b[0], b[1]);
      mma(sums[j + 1], left[step], b[2], b[3]);
    }
}

// Sums [16, N] rounded to bfloat16, as a left operand.
template <u32 N>
DEVICE void packed(u32 (&to)[N / 16][4], const float (&sums)[N / 8][4]) {
#pragma unroll
  for (u32 j = 0; j < N / 8; j++) {
    to[j / 2][j % 2 * 2] = pack(sums[j][0], sums[j][1]);
    to[j / 2][j % 2 * 2 + 1] = pack(sums[j][2], sums[j][3]);
  }
}

// A lane's results: rows `row_of_lane()` and 8 more, columns 8 j + `column_of_lane()` and 1 more; [j][0], [j][1] are
// of the first row, [j][2], [j][3] of the second.
DEVICE u32 row_of_lane() { return lane_of() / 4; }
DEVICE u32 column_of_lane() { return lane_of() % 4 * 2; }

// The sum, or maximum, of the four lanes that share rows.
DEVICE float row_sum(float value) {
  value += __shfl_xor_sync(ALL_LANES, value, 1);
  return value + __shfl_xor_sync(ALL_LANES, value, 2);
}
DEVICE float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 1));
  return fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

// Writes a warp's sums [16, W] times a factor for each of the lane's two rows to rows `row` .. row + 16 and columns
// `column` .. column + W of a head: by way of a tile in shared memory (the same rows `own` .. and columns of it), so
// that the stores are of 16 bytes and neighbours. Nobody else may use that part of the tile.
template <u32 D, u32 W>
DEVICE void store_sums(bf16* head, u32 stride, u32 row, u32 count, u32 column, u32 head_dim,
                       const float (&sums)[W / 8][4], float first, float second, u8* tile, u32 own) {
#pragma unroll
  for (u32 j = 0; j < W / 8; j++) {
    u8* to = tile + column_of_lane() * 2;
    const u32 chunk = column / 8 + j;
    *reinterpret_cast<u32*>(to + chunk_at<D>(own + row_of_lane(), chunk)) =
        pack(sums[j][0] * first, sums[j][1] * first);
    *reinterpret_cast<u32*>(to + chunk_at<D>(own + row_of_lane() + 8, chunk)) =
        pack(sums[j][2] * second, sums[j][3] * second);
  }
  __syncwarp();
#pragma unroll
  for (u32 i = 0; i < 16 * (W / 8); i += WARP) {
    const u32 at = i + lane_of(), r = at / (W / 8), chunk = column / 8 + at % (W / 8);
    if (row + r < count && chunk * 8 < head_dim)
      *reinterpret_cast<uint4*>(head + (u64)(row + r) * stride + chunk * 8) =
          *reinterpret_cast<const uint4*>(tile + chunk_at<D>(own + r, chunk));
  }
}

// ---- who sees whom, a tile at a time ----

// Covers of sixteen tiles in one word, two bits each.
constexpr u32 COVERS = 16;
constexpr u32 OUT_OF_REACH = 0;
constexpr u32 PART = 1;
constexpr u32 WHOLE = 2;

DEVICE u32 cover(bool some, bool all) {
  const bool any = __any_sync(ALL_LANES, some), every = __all_sync(ALL_LANES, all);
  return !any ? OUT_OF_REACH : every ? WHOLE : PART;
}

// Notes each tile's cover, asked of a whole warp at a time; a barrier must follow.
template <u32 WARPS, class Cover>
DEVICE void note_covers(u32* covers, u32 tiles, Cover cover_of) {
  for (u32 word = warp_of(); word * COVERS < tiles; word += WARPS) {
    u32 bits = 0;
#pragma unroll 4
    for (u32 i = 0; i < COVERS; i++) bits |= cover_of(word * COVERS + i) << (2 * i);
    if (lane_of() == 0) covers[word] = bits;
  }
}

DEVICE u32 noted_cover(const u32* covers, u32 tile) { return covers[tile / COVERS] >> (tile % COVERS * 2) & 3; }

// The first tile from `tile` on that is in reach, or `tiles`.
DEVICE u32 next_tile(const u32* covers, u32 tile, u32 tiles) {
  while (tile < tiles) {
    const u32 rest = covers[tile / COVERS] >> (tile % COVERS * 2);
    if (rest != 0) return tile + trailing_zeros(rest) / 2;
    tile = (tile / COVERS + 1) * COVERS;
  }
  return tiles;
}

// The least and the greatest of some numbers.
struct Range {
  u32 least, most;
};

// Of values[first .. first + OWN], below count; the same in every lane.
DEVICE Range range_of(const u32* values, u32 first, u32 count) {
  Range range = {NOBODY, 0};
#pragma unroll
  for (u32 i = 0; i < OWN; i += WARP) {
    const u32 at = first + i + lane_of();
    if (at < count) {
      range.least = min(range.least, values[at]);
      range.most = max(range.most, values[at]);
    }
  }
#pragma unroll
  for (u32 distance = WARP / 2; distance > 0; distance /= 2) {
    range.least = min(range.least, __shfl_xor_sync(ALL_LANES, range.least, distance));
    range.most = max(range.most, __shfl_xor_sync(ALL_LANES, range.most, distance));
  }
  return range;
}

// The queries a key is seen by; none, past the last key.
struct Sight {
  u32 start, end;
  __device__ __forceinline__ bool sees(u32 query) const { return start <= query && query < end; }
};
DEVICE Sight sight_of(const u32* start, const u32* end, u32 key, u32 keys) {
  return key < keys ? Sight{start[key], end[key]} : Sight{NOBODY, 0};
}

// How much of the key tile starting at `first` queries within `range` see.
template <u32 STEP>
DEVICE u32 cover_of_keys(const u32* start, const u32* end, u32 first, u32 keys, Range range) {
  bool some = false, all = true;
#pragma unroll
  for (u32 i = lane_of(); i < STEP; i += WARP) {
    const Sight key = sight_of(start, end, first + i, keys);
    some |= key.start <= range.most && range.least < key.end;
    all &= key.start <= range.least && range.most < key.end;
  }
  return cover(some, all);
}

// The keys a block of queries walks over: two stages of a tile of keys and one of values, [STEP, D] each, and of the
// keys' sights.
template <u32 D, u32 STEP, u32 THREADS>
struct KeyTiles {
  static constexpr u32 BYTES = STEP * D * 2;
  Rows k, v;
  const u32 *start, *end;
  // Four tiles in shared memory, and 4 * STEP numbers.
  u32 tiles;
  u32* bounds;

  __device__ __forceinline__ u32 keys_at(u32 stage) const { return tiles + stage * 2 * BYTES; }
  __device__ __forceinline__ u32 values_at(u32 stage) const { return keys_at(stage) + BYTES; }
  __device__ __forceinline__ void copy(u32 stage, u32 tile) const {
    copy_tile<D, STEP, THREADS>(keys_at(stage), k, tile * STEP);
    copy_tile<D, STEP, THREADS>(values_at(stage), v, tile * STEP);
  }
  // This thread's key of a tile; nobody's past the last.
  __device__ __forceinline__ Sight read(u32 tile) const {
    return sight_of(start, end, tile * STEP + threadIdx.x, k.count);
  }
  __device__ __forceinline__ void put(u32 stage, Sight sight) const {
    if (threadIdx.x < STEP) {
      bounds[stage * 2 * STEP + threadIdx.x] = sight.start;
      bounds[stage * 2 * STEP + STEP + threadIdx.x] = sight.end;
    }
  }
  __device__ __forceinline__ Sight sight(u32 stage, u32 key) const {
    return Sight{bounds[stage * 2 * STEP + key], bounds[stage * 2 * STEP + STEP + key]};
  }
  // Notes which tiles queries within `range` see; a barrier must follow.
  __device__ __forceinline__ void note(u32* covers, u32 count, Range range) const {
    note_covers<THREADS / WARP>(covers, count, [&](u32 tile) {
      return cover_of_keys<STEP>(start, end, tile * STEP, k.count, range);
    });
  }
};
