// How circuits reach their operators: torch.ops takes as long as a short sequence of a small network.
#pragma once
#include <Python.h>

namespace routing_ext::python {

extern PyMethodDef kMemoryFunctions[];  // ends with an empty one

}  // namespace routing_ext::python
