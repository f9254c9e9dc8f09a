// What every kernel shares: types, bfloat16 and float16, vector accesses, reductions in a fixed order.
//
// No NVIDIA header is needed, and everything is compiled once for compute_80: the newer architectures take the same
// PTX. Every reduction adds in an order that depends on the shapes alone, so that a result never depends on who was
// first.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__
// The entry of a kernel: the most threads of a block, and perhaps how many blocks a multiprocessor shall have at once.
#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)

// bfloat16: the upper half of a float32.
struct bf16 {
  u16 bits;
};
// float16, only ever read.
struct f16 {
  u16 bits;
};

constexpr u32 ALL_LANES = 0xffffffffu;
constexpr u32 WARP = 32;
// Warps of the greatest block: what a block's reduction keeps in shared memory.
constexpr u32 WARPS_MAX = 32;
constexpr float LOG2_E = 1.4426950408889634f;

DEVICE float infinity() { return __int_as_float(0x7f800000); }

// ---- two bfloat16 in one register: the lower half is the one at the lower address ----

DEVICE float low(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
DEVICE u32 pack(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

DEVICE float widen(bf16 value) { return __uint_as_float((u32)value.bits << 16); }
DEVICE bf16 narrow(float value) {
  bf16 result;
  result.bits = (u16)(pack(value, 0.0f) & 0xffffu);
  return result;
}
DEVICE float widen(f16 value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

// ---- arithmetic ----

// 2^x to 2 ulp, one instruction; denormal results become 0.
DEVICE float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
// 1/x to 1 ulp, one instruction.
DEVICE float reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
DEVICE float sigmoid(float x) { return reciprocal(1.0f + exp2_fast(-LOG2_E * x)); }

// How many zeros are below the lowest one bit.
DEVICE u32 trailing_zeros(u32 bits) { return __popc((bits & (0u - bits)) - 1); }

// ---- vector accesses ----

// Whether an address allows 16-byte accesses.
DEVICE bool aligned(const void* address) { return ((u64)address & 15) == 0; }
template <class... Rest>
DEVICE bool aligned(const void* address, Rest... rest) {
  return aligned(address) && aligned(rest...);
}

DEVICE float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }
DEVICE void store4(float* to, float4 values) { *reinterpret_cast<float4*>(to) = values; }

// Eight bfloat16 in one access.
struct Eight {
  u32 pair[4];
};
DEVICE Eight load8(const bf16* from) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  return Eight{{raw.x, raw.y, raw.z, raw.w}};
}
DEVICE void store8(bf16* to, Eight values) {
  *reinterpret_cast<uint4*>(to) = make_uint4(values.pair[0], values.pair[1], values.pair[2], values.pair[3]);
}

// Four bfloat16 in one access of 8 bytes: beside an access of four float32, so that neighbouring lanes fill whole
// sectors on both sides.
struct Four {
  u32 pair[2];
};
DEVICE Four load_four(const bf16* from) {
  const uint2 raw = *reinterpret_cast<const uint2*>(from);
  return Four{{raw.x, raw.y}};
}
DEVICE void store_four(bf16* to, Four values) {
  *reinterpret_cast<uint2*>(to) = make_uint2(values.pair[0], values.pair[1]);
}
DEVICE float4 widen(Four v) { return make_float4(low(v.pair[0]), high(v.pair[0]), low(v.pair[1]), high(v.pair[1])); }
DEVICE Four narrow(float4 v) { return Four{{pack(v.x, v.y), pack(v.z, v.w)}}; }

// ---- reductions; a block is whole warps ----

DEVICE u32 lane_of() { return threadIdx.x % WARP; }
DEVICE u32 warp_of() { return threadIdx.x / WARP; }

// The sum over a warp, the same bits in every lane.
template <class T>
DEVICE T warp_sum(T value) {
#pragma unroll
  for (u32 distance = WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
  return value;
}

// The sum over a block, the same bits in every thread. `scratch` holds WARPS_MAX values and is used once.
template <class T>
DEVICE T block_sum(T value, T* scratch) {
  value = warp_sum(value);
  if (lane_of() == 0) scratch[warp_of()] = value;
  __syncthreads();
  return warp_sum(lane_of() < blockDim.x / WARP ? scratch[lane_of()] : (T)0);
}
