// Options of memory networks, as operators get them: a number each, or none at all for what the reference does.
#pragma once
#include <c10/util/ArrayRef.h>

#include "../math/memory_interface.h"
#include "checks.h"

namespace routing_ext {

inline MemoryOptions memory_options(const char* op, at::ArrayRef<double> numbers) {
  CHECK_ARG(op, "options", numbers.empty() || numbers.size() == MemoryOptions::kCount, "must be ", MemoryOptions::kCount,
            " numbers, or none, got ", numbers.size());
  return numbers.empty() ? MemoryOptions{} : MemoryOptions::of(numbers.data());
}

}  // namespace routing_ext
