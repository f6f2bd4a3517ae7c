// Raw operators, as the doors in this folder call them.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

namespace routing_ext::autograd {

// The operator of that name, whose schema must be that of Signature.
template <class Signature>
c10::TypedOperatorHandle<Signature> raw_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace routing_ext::autograd
