// The table of the memory networks' kernels for one instruction set.
#include "memory/cell.h"

namespace routing_ext::cpu {
namespace {

template <class C>
constexpr MemoryKernels<C> memory_kernels_of = {dnc_kernels<C>, ntm_kernels<C>, cell_kernels<C>};

}  // namespace

ROUTING_EXT_DEFINE_KERNELS(WideKernels<MemoryKernels>, memory_kernels) = {memory_kernels_of<float>, memory_kernels_of<double>};

}  // namespace routing_ext::cpu
