// What is read of torch.nn.Module objects at every call of a layer: too often for Python.
#pragma once
#include <Python.h>

namespace routing_ext::python {

// For METH_FASTCALL, see modules.cpp.
PyObject* parameters_of(PyObject* self, PyObject* const* args, Py_ssize_t count);
extern const char* const kParametersOf;  // its docstring

}  // namespace routing_ext::python
