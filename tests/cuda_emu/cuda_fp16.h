// Stand-in for the part of <cuda_fp16.h> that the kernels use: IEEE half precision as a type to store, converted to and from
// float.
#pragma once
#include <bit>
#include <cstdint>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half h) {
  const uint32_t sign = uint32_t{h.bits & 0x8000u} << 16, exponent = h.bits >> 10 & 0x1F, fraction = h.bits & 0x3FF;
  uint32_t magnitude;
  if (exponent == 0) {
    magnitude = std::bit_cast<uint32_t>(static_cast<float>(fraction) * 0x1p-24f);
  } else {
    magnitude = (exponent == 0x1F ? 0xFFu : exponent - 15 + 127) << 23 | fraction << 13;
  }
  return std::bit_cast<float>(sign | magnitude);
}

// Rounds to nearest even.
inline __half __float2half(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v), sign = bits >> 16 & 0x8000;
  uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return {0x7FFF};  // NaN
  if (magnitude >= std::bit_cast<uint32_t>(0x1p16f)) {
    magnitude = 0x7C00;
  } else if (magnitude < std::bit_cast<uint32_t>(0x1p-14f)) {  // subnormal: a sum whose last place is that of a half does it
    magnitude = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - std::bit_cast<uint32_t>(0.5f);
  } else {
    magnitude += 0xFFF + (magnitude >> 13 & 1);  // may carry into the exponent, up to infinity
    magnitude = (magnitude >> 13) - ((127 - 15) << 10);
  }
  return {static_cast<uint16_t>(sign | magnitude)};
}
