#include "modules.h"

#include <torch/csrc/autograd/python_variable.h>

#include <array>
#include <memory>

namespace routing_ext::python {
namespace {

struct Release {
  void operator()(PyObject* o) const { Py_DECREF(o); }
};
using Owned = std::unique_ptr<PyObject, Release>;

// Of module.__dict__, borrowed; nullptr if it is not there.
PyObject* entry(PyObject* dict, const char* name_once, PyObject*& name) {
  if (name == nullptr) name = PyUnicode_InternFromString(name_once);
  return PyDict_GetItemWithError(dict, name);
}

// Whether calling the module calls the forward of its class, and nothing else.
bool is_plain(PyObject* dict) {
  static std::array<PyObject*, 5> names{};
  constexpr std::array<const char*, 4> kHooks{"_forward_hooks", "_forward_pre_hooks", "_backward_hooks",
                                              "_backward_pre_hooks"};
  for (size_t i = 0; i < kHooks.size(); ++i) {
    PyObject* const hooks = entry(dict, kHooks[i], names[i]);
    if (hooks == nullptr || !PyDict_Check(hooks) || PyDict_GET_SIZE(hooks) > 0) return false;
  }
  return entry(dict, "forward", names[4]) == nullptr;
}

// Whether `t` is of one of the types, and None or of the shape of the first of its kind.
bool is_like(PyObject* t, PyObject* first, PyObject* types) {
  if (t == Py_None || first == Py_None) return t == first;
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(t));
  bool known = false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(types); ++i) known |= PyTuple_GET_ITEM(types, i) == type;
  return known && (t == first || THPVariable_Unpack(t).sizes() == THPVariable_Unpack(first).sizes());
}

}  // namespace

const char* const kParametersOf =
    "parameters_of(modules, cls, names, types): for each of the names a list with the modules' parameter, or None if they "
    "have\n"
    "none. None instead of it all unless every module is exactly of `cls`, its forward is that of the class, it has no hooks, "
    "and\n"
    "the parameters of a name are exactly of one of the `types` and have one shape, or are all None.";

PyObject* parameters_of(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 4 || !PyList_Check(args[0]) || !PyTuple_Check(args[2]) || !PyTuple_Check(args[3])) {
    PyErr_SetString(PyExc_TypeError, "parameters_of: takes (modules: list, cls: type, names: tuple, types: tuple)");
    return nullptr;
  }
  PyObject *const modules = args[0], *const names = args[2];
  const Py_ssize_t num_modules = PyList_GET_SIZE(modules), num_names = PyTuple_GET_SIZE(names);
  const Owned found(PyTuple_New(num_names));
  if (!found || num_modules == 0) return found ? Py_NewRef(Py_None) : nullptr;
  for (Py_ssize_t n = 0; n < num_names; ++n) {
    PyObject* const list = PyList_New(num_modules);
    if (list == nullptr) return nullptr;
    PyTuple_SET_ITEM(found.get(), n, list);
  }
  static PyObject* parameters_name = nullptr;
  for (Py_ssize_t k = 0; k < num_modules; ++k) {
    PyObject* const module = PyList_GET_ITEM(modules, k);
    if (reinterpret_cast<PyObject*>(Py_TYPE(module)) != args[1]) return Py_NewRef(Py_None);
    const Owned dict(PyObject_GenericGetDict(module, nullptr));
    if (!dict) return nullptr;
    PyObject* const parameters = entry(dict.get(), "_parameters", parameters_name);
    if (parameters == nullptr || !PyDict_Check(parameters) || !is_plain(dict.get())) {
      return PyErr_Occurred() ? nullptr : Py_NewRef(Py_None);
    }
    for (Py_ssize_t n = 0; n < num_names; ++n) {
      PyObject* const list = PyTuple_GET_ITEM(found.get(), n);
      PyObject* const t = PyDict_GetItemWithError(parameters, PyTuple_GET_ITEM(names, n));
      if (t == nullptr || !is_like(t, k == 0 ? t : PyList_GET_ITEM(list, 0), args[3])) {
        return PyErr_Occurred() ? nullptr : Py_NewRef(Py_None);
      }
      PyList_SET_ITEM(list, k, Py_NewRef(t));
    }
  }
  for (Py_ssize_t n = 0; n < num_names; ++n) {
    if (PyList_GET_ITEM(PyTuple_GET_ITEM(found.get(), n), 0) != Py_None) continue;
    Py_DECREF(PyTuple_GET_ITEM(found.get(), n));
    PyTuple_SET_ITEM(found.get(), n, Py_NewRef(Py_None));
  }
  return Py_NewRef(found.get());
}

}  // namespace routing_ext::python
