// Logarithms for sample_categorical.
#include "../sampling_kernels.h"
#include "vec.h"

namespace routing_ext::cpu {
namespace {

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

// ROUTING_EXT_ISA: baseline, avx2 or avx512, given by the build.
#define ROUTING_EXT_JOIN(a, b) a##b
#define ROUTING_EXT_TABLE(isa) ROUTING_EXT_JOIN(sampling_kernels_, isa)
extern const SamplingKernels ROUTING_EXT_TABLE(ROUTING_EXT_ISA);
const SamplingKernels ROUTING_EXT_TABLE(ROUTING_EXT_ISA) = {rough_rates};

}  // namespace routing_ext::cpu
