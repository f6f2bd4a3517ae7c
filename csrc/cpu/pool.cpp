#include "pool.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <mutex>
#include <unordered_map>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace routing_ext::cpu {
namespace {

constexpr size_t kPooledBytes = 64 << 10;  // smaller blocks come from the C library without page faults
constexpr size_t kPageBytes = 4 << 10;
constexpr size_t kHugePageBytes = 2 << 20;
constexpr size_t kMaxKeptBytes = size_t{512} << 20;

class Pool final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const size_t rounded = size_class(bytes);
    void* memory = take(rounded);
    if (memory == nullptr) memory = fresh(rounded);
    if (memory == nullptr) {
      release_kept();
      memory = fresh(rounded);
    }
    TORCH_CHECK(memory != nullptr, "routing_ext: no memory for a tensor of ", bytes, " bytes");
    auto* const block = new Block{memory, rounded};
    return {memory, block, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }  // a block is more than its address
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  struct Block {
    void* memory;
    size_t bytes;
  };

  // Rounded up to an eighth of the power of two below, so that batches of varying size find each other's blocks.
  static size_t size_class(size_t bytes) {
    const size_t step = std::max(std::bit_floor(bytes) / 8, kPageBytes);
    return (bytes + step - 1) / step * step;
  }

  // nullptr if there is none.
  static void* fresh(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, bytes < kHugePageBytes ? kPageBytes : kHugePageBytes, bytes) != 0) return nullptr;
#if defined(__linux__)
    if (bytes >= kHugePageBytes) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
  }

  void* take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto found = kept_.find(bytes);
    if (found == kept_.end() || found->second.empty()) return nullptr;
    void* const memory = found->second.back();
    found->second.pop_back();
    kept_bytes_ -= bytes;
    return memory;
  }
  void release_kept() {
    const std::lock_guard lock(mutex_);
    for (auto& [bytes, blocks] : kept_) {
      for (void* memory : blocks) std::free(memory);
    }
    kept_.clear();
    kept_bytes_ = 0;
  }
  void keep(const Block& block) {
    if (block.bytes > kMaxKeptBytes) return std::free(block.memory);
    if (kept_bytes() + block.bytes > kMaxKeptBytes) release_kept();  // mostly of sizes that are out of use
    const std::lock_guard lock(mutex_);
    kept_[block.bytes].push_back(block.memory);
    kept_bytes_ += block.bytes;
  }
  size_t kept_bytes() {
    const std::lock_guard lock(mutex_);
    return kept_bytes_;
  }
  static void release(void* context);

  std::mutex mutex_;
  std::unordered_map<size_t, std::vector<void*>> kept_;  // by size
  size_t kept_bytes_ = 0;
};

// Never destroyed: a tensor may outlive all static objects.
Pool& pool() {
  static Pool* const p = new Pool;
  return *p;
}

void Pool::release(void* context) {
  const auto* const block = static_cast<Block*>(context);
  pool().keep(*block);
  delete block;
}

}  // namespace

at::Tensor pooled_empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const at::ScalarType dtype = c10::typeMetaToScalarType(options.dtype());
  const at::Context& context = at::globalContext();
  if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory()) return at::empty(sizes, options);
  const bool is_small = c10::multiply_integers(sizes) * c10::elementSize(dtype) < kPooledBytes;
  // Not at::empty, whose way through the dispatcher takes longer than the memory of a small tensor.
  c10::Allocator* const allocator = is_small ? c10::GetCPUAllocator() : &pool();
  return at::detail::empty_generic(sizes, allocator, c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt);
}

}  // namespace routing_ext::cpu
