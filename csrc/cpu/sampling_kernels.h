// What sample_categorical asks of the kernels under simd/. Torch-free.
#pragma once
#include <stdint.h>

#include "kernel_tables.h"

namespace routing_ext::cpu {

constexpr int64_t kMersenneState = 624;  // words

struct SamplingKernels {
  // The next state [624] of a Mersenne twister MT19937, in place.
  void (*twist)(uint32_t* state);
  // complements[i] = 1 - u_i, u_i in [0, 1) of 53 bits: the lowest of two words of such a state [2 n], the high one first.
  void (*complements_of)(const uint32_t* state, double* complements, int64_t n);
  // rates[i] = -1 / log(complements[i]) with a relative error below 1e-7, for complements [n] in (0, 1]; infinite for 1.
  void (*rough_rates)(const double* complements, double* rates, int64_t n);
};

ROUTING_EXT_DECLARE_KERNELS(SamplingKernels, sampling_kernels)

}  // namespace routing_ext::cpu
