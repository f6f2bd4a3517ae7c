#include "memory.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/TracerMode.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/Exceptions.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "../common/memory_stepper.h"
#include "objects.h"

namespace routing_ext::python {
namespace {

using Given = std::optional<at::Tensor>;

// Whether nobody wants to see the call but the dispatcher.
bool is_unobserved() { return !at::impl::torch_function_mode_enabled() && !at::tracer::impl::is_dispatch_enabled(); }

// f(item) for each item of a list or tuple, while it returns true. False if it did not, or if this is another object.
template <class F>
bool for_each_item(PyObject* sequence, const F& f) {
  if (!PyList_Check(sequence) && !PyTuple_Check(sequence)) return false;
  PyObject** const items = PySequence_Fast_ITEMS(sequence);
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence);
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!f(items[i])) return false;
  }
  return true;
}

// Plain tensors.
bool read(PyObject* sequence, std::vector<at::Tensor>& tensors) {
  tensors.reserve(32);
  return for_each_item(sequence, [&](PyObject* t) {
    if (!is_plain_tensor(t)) return false;
    tensors.push_back(THPVariable_Unpack(t));
    return true;
  });
}
// A plain tensor or None.
bool read(PyObject* object, Given& tensor) {
  if (object == Py_None) return true;
  if (!is_plain_tensor(object)) return false;
  tensor = THPVariable_Unpack(object);
  return true;
}
bool read(PyObject* sequence, c10::List<Given>& tensors) {
  return for_each_item(sequence, [&](PyObject* t) {
    Given tensor;
    if (!read(t, tensor)) return false;
    tensors.push_back(std::move(tensor));
    return true;
  });
}
bool read(PyObject* object, int64_t& number) {
  if (!PyLong_CheckExact(object)) return false;
  number = PyLong_AsLongLong(object);
  return true;
}
bool read(PyObject* object, double& number) {
  number = PyFloat_AsDouble(object);
  return true;
}
template <class Read, class Number>
bool read_numbers(PyObject* sequence, std::vector<Number>& numbers) {
  return for_each_item(sequence, [&](PyObject* o) {
    Read number{};
    if (!read(o, number)) return false;
    numbers.push_back(number);
    return true;
  });
}

constexpr const char* kMemorySequence =
    "memory_sequence(model: str, options, x, state, weights, lengths, resets, reset_memory, sizes, clip_value, link_every)\n"
    "--\n\n"
    "What the operator memory_sequence_node gives, the state as a tuple.\n\n"
    "None if one of the arguments is no plain tensor or number, or if someone watches torch's functions.";

PyObject* memory_sequence(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 11 && PyUnicode_Check(args[0]), "memory_sequence: takes 11 arguments, the first a str");
  if (!is_unobserved() || !is_plain_tensor(args[2])) return none();
  std::vector<double> options;
  c10::List<Given> state;
  std::vector<at::Tensor> weights;
  Given lengths, resets, reset_memory;
  std::vector<c10::SymInt> sizes;
  double clip_value;
  int64_t link_every;
  if (!read_numbers<double>(args[1], options) || !read(args[3], state) || !read(args[4], weights) || !read(args[5], lengths) ||
      !read(args[6], resets) || !read(args[7], reset_memory) || !read_numbers<int64_t>(args[8], sizes) ||
      !read(args[9], clip_value) || !read(args[10], link_every) || PyErr_Occurred()) {
    return PyErr_Occurred() ? nullptr : none();
  }
  const char* const model = PyUnicode_AsUTF8(args[0]);
  if (model == nullptr) return nullptr;
  using Results = std::tuple<at::Tensor, std::vector<at::Tensor>>;
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("routing_ext::memory_sequence_node", "")
          .typed<Results(std::string_view, at::ArrayRef<double>, const at::Tensor&, const c10::List<Given>&, at::TensorList,
                         const Given&, const Given&, const Given&, c10::SymIntArrayRef, double, c10::SymInt)>();
  Results results;
  {
    const pybind11::gil_scoped_release no_gil;
    results = op.call(model, options, THPVariable_Unpack(args[2]), state, weights, lengths, resets, reset_memory, sizes,
                      clip_value, link_every);
  }
  auto& [y, after] = results;
  Owned tuple(PyTuple_New(after.size()));
  if (!tuple) return nullptr;
  for (size_t i = 0; i < after.size(); ++i) PyTuple_SET_ITEM(tuple.get(), i, THPVariable_Wrap(std::move(after[i])));
  const Owned first(THPVariable_Wrap(std::move(y)));
  return PyTuple_Pack(2, first.get(), tuple.get());
  END_HANDLE_TH_ERRORS
}

constexpr const char* kMemoryStepper =
    "memory_stepper(address: int)\n--\n\nWhat memory_step takes, of `address()` of a MemoryRun, which it keeps alive.";
constexpr const char* kStepper = "routing_ext.memory_stepper";

PyObject* memory_stepper(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 1 && PyLong_Check(args[0]), "memory_stepper: takes an int");
  auto* const stepper = static_cast<MemoryStepper*>(PyLong_AsVoidPtr(args[0]));
  if (stepper == nullptr) return nullptr;
  c10::raw::intrusive_ptr::incref(stepper);
  return PyCapsule_New(stepper, kStepper, [](PyObject* capsule) {
    c10::raw::intrusive_ptr::decref(static_cast<MemoryStepper*>(PyCapsule_GetPointer(capsule, kStepper)));
  });
  END_HANDLE_TH_ERRORS
}

constexpr const char* kMemoryStep =
    "memory_step(stepper, x, weights)\n--\n\n"
    "The output of the next step; None if the run is of other weights or of another mode of autograd.\n\n"
    "NotImplemented if one of the arguments is no plain tensor, or if someone watches torch's functions.";

PyObject* memory_step(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 3, "memory_step: takes (stepper, x, weights)");
  auto* const stepper = static_cast<MemoryStepper*>(PyCapsule_GetPointer(args[0], kStepper));
  if (stepper == nullptr) return nullptr;
  std::vector<at::Tensor> weights;
  if (!is_unobserved() || !is_plain_tensor(args[1]) || !read(args[2], weights)) return Py_NewRef(Py_NotImplemented);
  Given y;
  {
    const pybind11::gil_scoped_release no_gil;
    y = stepper->step(THPVariable_Unpack(args[1]), weights);
  }
  return y ? THPVariable_Wrap(std::move(*y)) : none();
  END_HANDLE_TH_ERRORS
}

constexpr const char* kValuesAt =
    "values_at(expected: list, wanted: list)\n--\n\n"
    "The values of the dictionaries and keys in `wanted`; None if one of them is missing or None, or if a dictionary of\n"
    "`expected`, (dictionary, key, value), has another object in its place.";

PyObject* values_at(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 2 && PyList_Check(args[0]) && PyList_Check(args[1]), "values_at: takes two lists");
  const auto at = [](PyObject* place) {
    return PyDict_GetItemWithError(PyTuple_GET_ITEM(place, 0), PyTuple_GET_ITEM(place, 1));
  };
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[0]); ++i) {
    PyObject* const place = PyList_GET_ITEM(args[0], i);
    if (at(place) != PyTuple_GET_ITEM(place, 2)) return PyErr_Occurred() ? nullptr : none();
  }
  Owned values(PyList_New(PyList_GET_SIZE(args[1])));
  if (!values) return nullptr;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[1]); ++i) {
    PyObject* const value = at(PyList_GET_ITEM(args[1], i));
    if (value == nullptr || value == Py_None) return PyErr_Occurred() ? nullptr : none();
    PyList_SET_ITEM(values.get(), i, Py_NewRef(value));
  }
  return values.release();
  END_HANDLE_TH_ERRORS
}

}  // namespace

PyMethodDef kMemoryFunctions[] = {{"memory_sequence", fast(&memory_sequence), METH_FASTCALL, kMemorySequence},
                                  {"memory_stepper", fast(&memory_stepper), METH_FASTCALL, kMemoryStepper},
                                  {"memory_step", fast(&memory_step), METH_FASTCALL, kMemoryStep},
                                  {"values_at", fast(&values_at), METH_FASTCALL, kValuesAt},
                                  {nullptr, nullptr, 0, nullptr}};

}  // namespace routing_ext::python
