// The instruction sets that the kernels under simd/ are compiled for, and the choice among them at run time.
#pragma once

namespace routing_ext::cpu {

enum class Isa { baseline, avx2, avx512 };

// The widest set that this build holds and this machine runs, or what the environment variable ROUTING_EXT_ISA names
// (baseline, avx2, avx512). Chosen once. Throws std::runtime_error if the named one cannot run here.
Isa active_isa();
const char* isa_name(Isa isa);

}  // namespace routing_ext::cpu
