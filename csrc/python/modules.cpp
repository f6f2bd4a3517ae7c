#include "modules.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/Exceptions.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "objects.h"

namespace routing_ext::python {
namespace {

// A name that is looked up often.
class Name {
 public:
  explicit Name(const char* text) : name_(PyUnicode_InternFromString(text)) {}
  PyObject* in(PyObject* dict) const { return PyDict_GetItemWithError(dict, name_); }  // borrowed, or nullptr

 private:
  PyObject* const name_;
};

// Calls f(module._parameters) for each of the modules, while it returns true. False if it did not, or if a module is not
// exactly of `cls`, or calling it does not call the forward of its class alone.
template <class F>
bool for_each_plain(PyObject* const* modules, Py_ssize_t count, PyObject* cls, const F& f) {
  static const std::array hooks{Name("_forward_hooks"), Name("_forward_pre_hooks"), Name("_backward_hooks"),
                                Name("_backward_pre_hooks")};
  static const Name forward("forward"), parameters("_parameters");
  for (Py_ssize_t k = 0; k < count; ++k) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(modules[k])) != cls) return false;
    const Owned dict(PyObject_GenericGetDict(modules[k], nullptr));
    if (!dict) return false;
    for (const Name& name : hooks) {
      PyObject* const registered = name.in(dict.get());
      if (registered == nullptr || !PyDict_Check(registered) || PyDict_GET_SIZE(registered) > 0) return false;
    }
    PyObject* const own = parameters.in(dict.get());
    if (own == nullptr || !PyDict_Check(own) || forward.in(dict.get()) != nullptr || !f(own)) return false;
  }
  return true;
}

// Whether both are None, or plain tensors of one shape and dtype on one device.
bool are_alike(PyObject* t, PyObject* first) {
  if (t == Py_None || first == Py_None) return t == first;
  if (!is_plain_tensor(t)) return false;
  if (t == first) return true;
  const at::Tensor &a = THPVariable_Unpack(t), &b = THPVariable_Unpack(first);
  return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() && a.device() == b.device();
}

constexpr const char* kParametersOf =
    "parameters_of(modules: list, cls, names)\n--\n\n"
    "For each of the names a list with the modules' parameter, or None if they have none.\n\n"
    "None instead of it all unless every module is exactly of the class, has no hooks and no forward of its own, and the\n"
    "parameters of a name are plain tensors, of one shape and dtype, on one device, or all None.";

PyObject* parameters_of(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 3 && PyList_Check(args[0]) && PyTuple_Check(args[2]),
                   "parameters_of: takes (modules: list, cls: type, names: tuple)");
  PyObject* const names = args[2];
  const Py_ssize_t num_modules = PyList_GET_SIZE(args[0]), num_names = PyTuple_GET_SIZE(names);
  if (num_modules == 0) return none();
  const Owned found(PyTuple_New(num_names));
  for (Py_ssize_t n = 0; n < num_names; ++n) PyTuple_SET_ITEM(found.get(), n, PyList_New(num_modules));
  Py_ssize_t k = 0;
  const bool alike = for_each_plain(&PyList_GET_ITEM(args[0], 0), num_modules, args[1], [&](PyObject* parameters) {
    for (Py_ssize_t n = 0; n < num_names; ++n) {
      PyObject* const list = PyTuple_GET_ITEM(found.get(), n);
      PyObject* const t = PyDict_GetItemWithError(parameters, PyTuple_GET_ITEM(names, n));
      if (t == nullptr || !are_alike(t, k == 0 ? t : PyList_GET_ITEM(list, 0))) return false;
      PyList_SET_ITEM(list, k, Py_NewRef(t));
    }
    ++k;
    return true;
  });
  if (!alike) return PyErr_Occurred() ? nullptr : none();
  for (Py_ssize_t n = 0; n < num_names; ++n) {
    if (PyList_GET_ITEM(PyTuple_GET_ITEM(found.get(), n), 0) == Py_None) PyTuple_SetItem(found.get(), n, none());
  }
  return Py_NewRef(found.get());
  END_HANDLE_TH_ERRORS
}

constexpr const char* kSelectLinear =
    "select_linear(x, actions, mask, modules: list, cls, relu: bool)\n--\n\n"
    "ops.grouped_linear of those of the modules that have samples, all nn.Linear in effect, perhaps with a ReLU behind.\n\n"
    "None unless they are plain and alike, see parameters_of, and all is plain tensors on the CPU, without autocast.";

template <class Signature>
c10::TypedOperatorHandle<Signature> operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

bool is_on_cpu(PyObject* t, int64_t dim) {
  return is_plain_tensor(t) && THPVariable_Unpack(t).is_cpu() && THPVariable_Unpack(t).dim() == dim;
}

PyObject* select_linear(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 6 && PyList_Check(args[3]) && PyBool_Check(args[5]),
                   "select_linear: takes (x, actions, mask, modules: list, cls: type, relu: bool)");
  if (!is_on_cpu(args[0], 2) || !THPVariable_Unpack(args[0]).is_floating_point() || !is_on_cpu(args[1], 1) ||
      !(args[2] == Py_None || is_on_cpu(args[2], 1)) || at::autocast::is_autocast_enabled(at::kCPU)) {
    return none();
  }
  const at::Tensor &x = THPVariable_Unpack(args[0]), &actions = THPVariable_Unpack(args[1]);
  const std::optional<at::Tensor> mask = args[2] == Py_None ? std::nullopt : std::optional(THPVariable_Unpack(args[2]));
  const int64_t num_modules = PyList_GET_SIZE(args[3]);
  static const auto make_plan =
      operator_named<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, c10::SymInt, const std::optional<at::Tensor>&)>(
          "routing_ext::dispatch_plan");
  const auto [order, layout] = make_plan.call(actions, num_modules, mask);
  if (layout.key_set().has(c10::DispatchKey::Python)) return none();
  const int64_t* const offsets = layout.const_data_ptr<int64_t>();
  std::vector<int64_t> selected;
  std::vector<PyObject*> modules;
  for (int64_t k = 0; k < num_modules; ++k) {
    if (offsets[k] == offsets[k + 1]) continue;
    selected.push_back(k);
    modules.push_back(PyList_GET_ITEM(args[3], k));
  }
  if (selected.empty()) return none();
  static const Name weight("weight"), bias("bias");
  PyObject *first_weight = nullptr, *first_bias = nullptr;
  std::vector<at::Tensor> weights, biases;
  weights.reserve(selected.size());
  biases.reserve(selected.size());
  bool needs_gradient = x.requires_grad();
  const bool alike = for_each_plain(modules.data(), modules.size(), args[4], [&](PyObject* parameters) {
    PyObject *const w = weight.in(parameters), *const b = bias.in(parameters);
    if (first_weight == nullptr) first_weight = w, first_bias = b;
    if (w == nullptr || b == nullptr || w == Py_None || !are_alike(w, first_weight) || !are_alike(b, first_bias)) return false;
    weights.push_back(THPVariable_Unpack(w));
    if (b != Py_None) biases.push_back(THPVariable_Unpack(b));
    needs_gradient |= weights.back().requires_grad() || (b != Py_None && biases.back().requires_grad());
    return true;
  });
  if (!alike) return PyErr_Occurred() ? nullptr : none();
  if (weights[0].dim() != 2 || (!biases.empty() && biases[0].sizes() != weights[0].sizes().slice(0, 1))) return none();
  using Forward = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, at::TensorList, at::TensorList,
                             at::IntArrayRef, c10::SymInt, bool);
  static const auto raw = operator_named<Forward>("routing_ext::grouped_linear");
  static const auto node = operator_named<Forward>("routing_ext::grouped_linear_node");
  const auto& forward = needs_gradient && at::GradMode::is_enabled() ? node : raw;
  const int64_t out_features = weights[0].size(0);
  const bool relu = args[5] == Py_True;
  at::Tensor y;
  {
    const pybind11::gil_scoped_release no_gil;
    y = forward.call(x, order, layout, weights, biases, selected, out_features, relu);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

}  // namespace

PyMethodDef kModuleFunctions[] = {{"parameters_of", fast(&parameters_of), METH_FASTCALL, kParametersOf},
                                  {"select_linear", fast(&select_linear), METH_FASTCALL, kSelectLinear},
                                  {nullptr, nullptr, 0, nullptr}};

}  // namespace routing_ext::python
