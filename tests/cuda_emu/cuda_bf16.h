// Stand-in for the part of <cuda_bf16.h> that the kernels use: bfloat16 as a type to store, converted to and from float.
#pragma once
#include <bit>
#include <cstdint>

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 b) { return std::bit_cast<float>(uint32_t{b.bits} << 16); }

// Rounds to nearest even.
inline __nv_bfloat16 __float2bfloat16(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return {0x7FFF};  // NaN
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
