#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace routing_ext::cpu {
namespace {

constexpr Isa kAll[] = {Isa::avx512, Isa::avx2, Isa::baseline};

bool runs_here(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::baseline:
      return true;
  }
#endif
  return isa == Isa::baseline;
}

Isa choose() {
  const char* wanted = std::getenv("ROUTING_EXT_ISA");
  std::string possible;
  for (const Isa isa : kAll) {
    if (!runs_here(isa)) continue;
    if (wanted == nullptr || *wanted == '\0' || std::string(wanted) == isa_name(isa)) return isa;
    possible += std::string(possible.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::runtime_error(std::string("ROUTING_EXT_ISA must be one of ") + possible + " on this machine, got " + wanted);
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::baseline:
      return "baseline";
  }
  return "unknown";
}

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace routing_ext::cpu
