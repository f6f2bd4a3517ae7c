// The table of the memory networks' kernels for one instruction set.
#include "memory/cell.h"

namespace routing_ext::cpu {
namespace {

template <class C>
constexpr MemoryKernels<C> memory_kernels_of = {dnc_kernels<C>, ntm_kernels<C>, cell_kernels<C>};

}  // namespace

// ROUTING_EXT_ISA: baseline, avx2 or avx512, given by the build.
#define ROUTING_EXT_JOIN(a, b) a##b
#define ROUTING_EXT_TABLE(isa) ROUTING_EXT_JOIN(memory_kernels_, isa)
extern const AllMemoryKernels ROUTING_EXT_TABLE(ROUTING_EXT_ISA);
const AllMemoryKernels ROUTING_EXT_TABLE(ROUTING_EXT_ISA) = {memory_kernels_of<float>, memory_kernels_of<double>};

}  // namespace routing_ext::cpu
