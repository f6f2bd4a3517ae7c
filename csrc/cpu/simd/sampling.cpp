// Random numbers and logarithms for sample_categorical.
#include "../sampling_kernels.h"
#include "vec.h"

namespace routing_ext::cpu {
namespace {

// Matsumoto and Nishimura, "Mersenne Twister", 1998.
inline uint32_t twisted(uint32_t word, uint32_t next, uint32_t far) {
  return far ^ ((word & 0x80000000) | (next & 0x7fffffff)) >> 1 ^ ((next & 1) != 0 ? 0x9908b0df : 0);
}
inline uint32_t tempered(uint32_t y) {
  y ^= y >> 11;
  y ^= y << 7 & 0x9d2c5680;
  y ^= y << 15 & 0xefc60000;
  return y ^ y >> 18;
}

void twist(uint32_t* state) {
  constexpr int64_t n = kMersenneState, ahead = 397;
  for (int64_t i = 0; i < n - ahead; ++i) state[i] = twisted(state[i], state[i + 1], state[i + ahead]);
  for (int64_t i = n - ahead; i < n - 1; ++i) state[i] = twisted(state[i], state[i + 1], state[i + ahead - n]);
  state[n - 1] = twisted(state[n - 1], state[0], state[ahead - 1]);
}

void complements_of(const uint32_t* state, double* complements, int64_t n) {
  constexpr uint64_t kTwo52 = 0x4330000000000000;
  for (int64_t i = 0; i < n; ++i) {
    // Integers below 2^52 become a double's mantissa: not all instruction sets convert 64-bit integers.
    const uint64_t high = (tempered(state[2 * i]) & 0x1fffff) | kTwo52, low = tempered(state[2 * i + 1]) | kTwo52;
    double of_high, of_low;
    __builtin_memcpy(&of_high, &high, sizeof(high));
    __builtin_memcpy(&of_low, &low, sizeof(low));
    complements[i] = 1 - ((of_high - 0x1p52) * 0x1p32 + (of_low - 0x1p52)) * 0x1p-53;
  }
}

using Bits = VecOf<uint64_t, kLanes<double>>::type;

// -1 / log(c), c = m 2^e with m around 1: log(m) = 2 (s + s^3/3 + s^5/5 + ...), s = (m - 1)/(m + 1).
inline Vec<double> rough_rate(Vec<double> c) {
  constexpr uint64_t kOne = 0x3ff0000000000000, kRootHalf = 0x3fe6a09e667f3bcd, kTwo52 = 0x4330000000000000;
  const Bits shifted = reinterpret_cast<Bits>(c) + (kOne - kRootHalf);
  const Vec<double> exponent = reinterpret_cast<Vec<double>>(shifted >> 52 | kTwo52) - (0x1p52 + 1023);
  const Vec<double> m = reinterpret_cast<Vec<double>>((shifted & 0xfffffffffffff) + kRootHalf);
  const Vec<double> s = (m - 1) / (m + 1), z = s * s;
  const Vec<double> log = exponent * 0.6931471805599453 + 2 * s * (1 + z * (1.0 / 3 + z * (1.0 / 5 + z * (1.0 / 7 + z / 9))));
  return 1 / (0 - log);  // not -1 / log: infinity for log = 0
}

void rough_rates(const double* complements, double* rates, int64_t n) {
  constexpr int64_t lanes = kLanes<double>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(rates + i, rough_rate(load(complements + i)));
  if (i < n) store_partial(rates + i, rough_rate(load_partial(complements + i, n - i)), n - i);
}

}  // namespace

ROUTING_EXT_DEFINE_KERNELS(SamplingKernels, sampling_kernels) = {twist, complements_of, rough_rates};

}  // namespace routing_ext::cpu
