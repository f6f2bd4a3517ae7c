// What the files of this folder ask of Python objects.
#pragma once
#include <Python.h>
#include <torch/csrc/autograd/python_variable.h>

#include <memory>

namespace routing_ext::python {

struct Release {
  void operator()(PyObject* o) const { Py_DECREF(o); }
};
using Owned = std::unique_ptr<PyObject, Release>;

inline PyObject* none() { return Py_NewRef(Py_None); }

// Exactly torch.Tensor or torch.nn.Parameter, not a subclass with an arithmetic of its own.
inline bool is_plain_tensor(PyObject* t) {
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(t));
  return type == THPVariableClass || type == ParameterClass;
}

inline PyCFunction fast(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function));
}

}  // namespace routing_ext::python
