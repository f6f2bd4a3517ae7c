// The Python module routing_ext._C: what this build is, and what layers do with Python's modules. The operators are not here:
// they register with torch when the library is loaded.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"
#include "python/memory.h"
#include "python/modules.h"

// setup.py gives the macros ROUTING_EXT_BUILT_*; those of CUDA only where CUDA kernels are compiled.
namespace {

#if defined(__clang__)
constexpr const char* kCompiler = __VERSION__;
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif

pybind11::dict build_info() {
  namespace cpu = routing_ext::cpu;
  pybind11::dict info;
  info["version"] = ROUTING_EXT_BUILT_VERSION;
  info["torch"] = ROUTING_EXT_BUILT_TORCH;
  info["compiler"] = kCompiler;
  info["options"] = ROUTING_EXT_BUILT_OPTIONS;
  info["isa"] = cpu::isa_name(cpu::active_isa());
#ifdef ROUTING_EXT_BUILT_CUDA
  info["cuda"] = ROUTING_EXT_BUILT_CUDA;
  info["cuda_archs"] = ROUTING_EXT_BUILT_CUDA_ARCHS;
#else
  info["cuda"] = pybind11::none();
  info["cuda_archs"] = pybind11::none();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info);
  for (PyMethodDef* const functions : {routing_ext::python::kModuleFunctions, routing_ext::python::kMemoryFunctions}) {
    if (PyModule_AddFunctions(m.ptr(), functions) != 0) throw pybind11::error_already_set();
  }
}
