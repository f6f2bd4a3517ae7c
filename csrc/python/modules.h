// What layers do with their modules at every call, and what would take too long in Python.
#pragma once
#include <Python.h>

namespace routing_ext::python {

extern PyMethodDef kModuleFunctions[];  // ends with an empty one

}  // namespace routing_ext::python
