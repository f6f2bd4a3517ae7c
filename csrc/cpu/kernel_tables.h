// How the files under simd/ offer their kernels: in tables of functions, one table for each instruction set. Torch-free.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "isa.h"

namespace routing_ext::cpu {

struct Span {
  int64_t begin, end;
  // Always inline: the kernels under simd/ must leave no weak symbol.
  __attribute__((always_inline)) int64_t size() const { return end - begin; }
};

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// Memory of the calling thread, 64-byte aligned, kept for its next call. One user at a time.
void* thread_scratch(size_t bytes);

// A table K<T> for each type of elements.
template <template <class> class K>
struct WideKernels {
  K<float> f32;
  K<double> f64;
};
template <template <class> class K>
struct AllKernels : WideKernels<K> {
  K<bfloat16> bf16;
  K<float16> f16;
};

}  // namespace routing_ext::cpu

// Declares the tables, and name(): the one for this machine.
#if defined(__x86_64__)
#define ROUTING_EXT_DECLARE_KERNELS(Table, name)                                                  \
  extern const Table name##_baseline, name##_avx2, name##_avx512;                                 \
  inline const Table& name() {                                                                    \
    const Isa isa = active_isa();                                                                 \
    return isa == Isa::avx512 ? name##_avx512 : isa == Isa::avx2 ? name##_avx2 : name##_baseline; \
  }
#else
#define ROUTING_EXT_DECLARE_KERNELS(Table, name) \
  extern const Table name##_baseline;            \
  inline const Table& name() { return name##_baseline; }
#endif

// Begins the definition of a table, in a file that the build compiles with ROUTING_EXT_ISA as each of these names.
#define ROUTING_EXT_DEFINE_KERNELS(Table, name) ROUTING_EXT_DEFINE_TABLE(Table, name, ROUTING_EXT_ISA)
#define ROUTING_EXT_DEFINE_TABLE(Table, name, isa) ROUTING_EXT_DEFINE_TABLE_OF(Table, name, isa)
#define ROUTING_EXT_DEFINE_TABLE_OF(Table, name, isa) \
  extern const Table name##_##isa;                    \
  const Table name##_##isa
