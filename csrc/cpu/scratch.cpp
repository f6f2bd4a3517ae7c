#include <cstdlib>
#include <new>

#include "kernel_tables.h"

namespace routing_ext::cpu {
namespace {

struct Scratch {
  void* memory = nullptr;
  size_t bytes = 0;
  ~Scratch() { std::free(memory); }
};

}  // namespace

void* thread_scratch(size_t bytes) {
  thread_local Scratch s;
  if (bytes > s.bytes) {
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    void* memory = std::aligned_alloc(64, rounded);
    if (memory == nullptr) throw std::bad_alloc();
    std::free(s.memory);
    s.memory = memory, s.bytes = rounded;
  }
  return s.memory;
}

}  // namespace routing_ext::cpu
