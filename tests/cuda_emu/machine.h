// The engine of cuda_runtime.h beside it: threads of a block as fibers, and the scheduler that runs them.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <random>
#include <source_location>
#include <string>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifndef __x86_64__
#error "the CUDA emulation switches stacks by hand, on x86-64 only"
#endif

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  uint64_t count() const { return uint64_t{x} * y * z; }
};
inline uint3 threadIdx, blockIdx;  // of the fiber that runs
inline dim3 blockDim, gridDim;

namespace cuda_emu {

using Site = std::source_location;

inline constexpr unsigned kLanes = 32;
inline constexpr size_t kStackBytes = 256 << 10, kStackGuard = 4096;
inline constexpr size_t kRedZone = 4096;      // before and after each array of dynamic shared memory
inline constexpr unsigned char kFill = 0xFF;  // of fresh shared memory: NaN as float and double, -1 as int

// 0: threads, warps and blocks run in ascending order; -1: descending; any other value: the seed of a random order.
inline int64_t order = 0;
inline std::string message;  // what was wrong with the last launch that failed

enum class Wait : uint8_t { runnable, warp, block, cluster, done };
enum class WarpOp : uint8_t { sync, shuffle, ballot, match };

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  uint3 thread{}, block{};
  unsigned rank = 0, lane = 0;  // rank: of the block in its cluster
  Wait wait = Wait::done;
  Site site;
  // The warp operation that it waits in.
  WarpOp op = WarpOp::sync;
  unsigned mask = 0, source_lane = 0;
  uint64_t value = 0, result = 0;
};

// Memory aligned as a block's shared memory is.
template <class T>
struct SharedAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{128};

  SharedAllocator() = default;
  template <class U>
  SharedAllocator(const SharedAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kAlignment)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kAlignment); }
  bool operator==(const SharedAllocator&) const = default;
};

// One array in a block's dynamic shared memory, in an allocation of its own with a red zone on both sides.
class Slice {
 public:
  const size_t offset, bytes;

  Slice(size_t offset_, size_t bytes_) : offset(offset_), bytes(bytes_), memory_(bytes_ + 2 * kRedZone, kFill) {
    poison(true);
  }
  Slice(Slice&&) = default;
  ~Slice() {
    if (!memory_.empty()) poison(false);
  }
  unsigned char* data() { return memory_.data() + kRedZone; }
  bool intact() {
    poison(false);
    const auto untouched = [](const unsigned char* zone) {
      return std::all_of(zone, zone + kRedZone, [](unsigned char c) { return c == kFill; });
    };
    return untouched(memory_.data()) && untouched(data() + bytes);
  }

 private:
  std::vector<unsigned char, SharedAllocator<unsigned char>> memory_;

  void poison([[maybe_unused]] bool on) {
#ifdef __SANITIZE_ADDRESS__
    for (unsigned char* zone : {memory_.data(), data() + bytes}) {
      on ? __asan_poison_memory_region(zone, kRedZone) : __asan_unpoison_memory_region(zone, kRedZone);
    }
#endif
  }
};

struct Block {
  std::vector<Slice> shared;
  unsigned live = 0;  // threads that have not ended
};

// Saves the callee-saved registers and the stack pointer, and continues on another stack. noipa: callers must not learn from
// the body which registers it leaves alone.
[[gnu::naked, gnu::noinline, gnu::noipa]] inline void switch_stack(void** /*save*/, void* /*load*/) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

void fiber_entry();

class Machine {
 public:
  Fiber* self = nullptr;      // the fiber that runs
  std::vector<Block> blocks;  // of the cluster that runs

  bool run_grid(dim3 grid, dim3 block, dim3 cluster, size_t shared_bytes, const std::function<void()>& kernel) {
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
#ifdef __SANITIZE_ADDRESS__
    if (failed_) {  // that launch left its fibers in the middle of their frames
      for (auto& f : fibers_) __asan_unpoison_memory_region(f->stack, kStackBytes);
    }
#endif
    gridDim = grid, blockDim = block, shared_bytes_ = shared_bytes, kernel_ = &kernel, failed_ = false;
    random_.seed(static_cast<uint64_t>(order));
    const dim3 clusters(grid.x / cluster.x, grid.y / cluster.y, grid.z / cluster.z);
    for (const unsigned c : permutation(static_cast<unsigned>(clusters.count()))) {
      const uint3 first{c % clusters.x * cluster.x, c / clusters.x % clusters.y * cluster.y,
                        c / clusters.x / clusters.y * cluster.z};
      run_cluster(first, cluster);
      if (failed_) break;
    }
    return !failed_;
  }

  // Called by fibers.
  void wait(Wait kind, Site site) {
    self->wait = kind, self->site = site;
    leave();
  }
  // Reports the launch as failed. A fiber that calls this does not go on.
  [[gnu::noinline]] void fail(const std::string& what, Site site) {
    if (!failed_) {
      message = what;
      if (site.line() != 0) message = std::string(site.file_name()) + ":" + std::to_string(site.line()) + ": " + what;
      std::fprintf(stderr, "cuda_emu: %s\n", message.c_str());
    }
    failed_ = true;
    if (self) leave();
  }
  // The array at an offset of a block's dynamic shared memory.
  unsigned char* slice(unsigned rank, size_t offset, size_t bytes, Site site) {
    for (Slice& s : blocks[rank].shared) {
      if (s.offset != offset) continue;
      if (s.bytes != bytes) fail("threads disagree about the layout of dynamic shared memory", site);
      return s.data();
    }
    if (offset + bytes > shared_bytes_) {
      fail("kernel takes " + std::to_string(offset + bytes) + " bytes of dynamic shared memory, launch gave " +
               std::to_string(shared_bytes_),
           site);
    }
    return blocks[rank].shared.emplace_back(offset, bytes).data();
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  const std::function<void()>* kernel_ = nullptr;
  size_t shared_bytes_ = 0;
  std::mt19937_64 random_;
  bool failed_ = false;
  Fiber scheduler_;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;

  friend void fiber_entry();

  std::vector<unsigned> permutation(unsigned n) {
    std::vector<unsigned> p(n);
    std::iota(p.begin(), p.end(), 0u);
    if (order == -1) std::reverse(p.begin(), p.end());
    if (order != 0 && order != -1) std::shuffle(p.begin(), p.end(), random_);
    return p;
  }

  void switch_between(Fiber& from, Fiber& to, [[maybe_unused]] const void* bottom, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from.fake_stack, bottom, bytes);
#endif
    asm volatile("" ::: "memory");  // other fibers write memory before this one goes on
    switch_stack(&from.stack_pointer, to.stack_pointer);
    asm volatile("" ::: "memory");
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
  }
  void leave() { switch_between(*self, scheduler_, scheduler_stack_, scheduler_stack_bytes_); }
  void resume(Fiber& f) {
    self = &f, threadIdx = f.thread, blockIdx = f.block;
    switch_between(scheduler_, f, f.stack, kStackBytes);
    self = nullptr;
  }

  // Puts thread t of a block at the start of the kernel.
  void prepare(size_t index, uint3 block, unsigned rank, unsigned t) {
    if (index == fibers_.size()) {
      void* const memory =
          mmap(nullptr, kStackBytes + kStackGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED || mprotect(memory, kStackGuard, PROT_NONE) != 0) std::abort();
      fibers_.push_back(std::make_unique<Fiber>());
      fibers_.back()->stack = static_cast<char*>(memory) + kStackGuard;
    }
    Fiber& f = *fibers_[index];
    f.thread = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
    f.block = block, f.rank = rank, f.lane = t % kLanes, f.wait = Wait::runnable;
    const size_t stagger = index % 61 * 64;  // else the hot lines of all stacks fall into the same cache sets
    void** const top = reinterpret_cast<void**>(f.stack + kStackBytes - stagger) - 8;
    top[6] = reinterpret_cast<void*>(&fiber_entry), top[7] = nullptr;  // six registers, then the return address
    f.stack_pointer = top;
  }

  // A block runs as far as it can before the next one does, so that it is as far ahead of the others as is allowed.
  void run_cluster(uint3 first, dim3 cluster) {
    const unsigned threads = static_cast<unsigned>(blockDim.count()), count = static_cast<unsigned>(cluster.count());
    blocks.clear();
    blocks.resize(count);
    for (unsigned b = 0; b < count; ++b) {
      const uint3 at{first.x + b % cluster.x, first.y + b / cluster.x % cluster.y, first.z + b / cluster.x / cluster.y};
      for (unsigned t = 0; t < threads; ++t) prepare(size_t{b} * threads + t, at, b, t);
      blocks[b].live = threads;
    }
    do {
      for (const unsigned b : permutation(count)) {
        const size_t begin = size_t{b} * threads;
        do {
          for (const unsigned w : permutation((threads + kLanes - 1) / kLanes)) {
            run_warp(&fibers_[begin + w * kLanes], std::min(kLanes, threads - w * kLanes), blocks[b]);
          }
        } while (!failed_ && open_barrier(&fibers_[begin], threads, Wait::block));
        if (failed_) return;
        if (blocks[b].live == 0) end_block(blocks[b]);
      }
    } while (!failed_ && open_barrier(&fibers_[0], size_t{count} * threads, Wait::cluster));
  }

  // Its shared memory goes, so that a late access from the cluster is a use after free.
  void end_block(Block& block) {
    for (Slice& s : block.shared) {
      if (s.intact()) continue;
      fail("a write outside the " + std::to_string(s.bytes) + " bytes of shared memory at offset " + std::to_string(s.offset),
           Site());
    }
    block.shared.clear();
  }

  // Runs a warp until each of its threads waits for the block or the cluster, or has ended.
  void run_warp(std::unique_ptr<Fiber>* lane, unsigned lanes, Block& block) {
    bool again = !failed_;
    while (again) {
      const uint64_t r = order == 0 ? 0 : order == -1 ? ~uint64_t{0} : random_();
      const unsigned start = r % kLanes, stride = r / kLanes % kLanes | 1;  // an affine permutation of the lanes costs nothing
      for (unsigned k = 0; k < kLanes; ++k) {
        const unsigned l = (start + k * stride) % kLanes;
        if (l >= lanes || lane[l]->wait != Wait::runnable) continue;
        resume(*lane[l]);
        if (failed_) return;
        block.live -= lane[l]->wait == Wait::done;
      }
      again = false;
      unsigned seen = 0;
      for (unsigned l = 0; l < lanes; ++l) {
        if (lane[l]->wait != Wait::warp || (seen >> l & 1)) continue;
        const unsigned arrived = lanes_at_operation(lane, lanes, *lane[l]);
        if (arrived == 0) continue;
        finish_operation(lane, arrived);
        seen |= arrived, again = true;
      }
    }
    for (unsigned l = 0; l < lanes; ++l) {
      if (lane[l]->wait == Wait::warp) return fail("a warp operation is not reached by all lanes of its mask", lane[l]->site);
    }
  }

  // The lanes at the warp operation of `first`, or 0 if one of its mask that can still arrive has not.
  static unsigned lanes_at_operation(std::unique_ptr<Fiber>* lane, unsigned lanes, const Fiber& first) {
    unsigned arrived = 0;
    for (unsigned l = 0; l < kLanes; ++l) {
      if (!(first.mask >> l & 1) || l >= lanes || lane[l]->wait == Wait::done) continue;
      const Fiber& f = *lane[l];
      if (f.wait != Wait::warp || f.mask != first.mask || !same(f.site, first.site)) return 0;
      arrived |= 1u << l;
    }
    return arrived;
  }

  static void finish_operation(std::unique_ptr<Fiber>* lane, unsigned arrived) {
    const auto lanes_with = [&](auto&& condition) {
      unsigned found = 0;
      for (unsigned l = 0; l < kLanes; ++l) {
        if ((arrived >> l & 1) && condition(*lane[l])) found |= 1u << l;
      }
      return found;
    };
    const auto each = [&](auto&& action) {
      for (unsigned l = 0; l < kLanes; ++l) {
        if (arrived >> l & 1) action(*lane[l]);
      }
    };
    const unsigned voted = lanes_with([](const Fiber& f) { return f.op == WarpOp::ballot && f.value != 0; });
    each([&](Fiber& f) {
      if (f.op == WarpOp::ballot) f.result = voted;
      // A lane that is not there reads as NaN.
      if (f.op == WarpOp::shuffle) f.result = arrived >> f.source_lane & 1 ? lane[f.source_lane]->value : ~uint64_t{0};
      if (f.op == WarpOp::match) f.result = lanes_with([&](const Fiber& other) { return other.value == f.value; });
    });
    each([](Fiber& f) { f.wait = Wait::runnable; });
  }

  static bool same(const Site& a, const Site& b) {
    return a.line() == b.line() && a.column() == b.column() && a.file_name() == b.file_name();
  }

  // Opens a barrier if all threads of its scope wait there. Some there and some elsewhere (at another barrier, gone): an
  // error.
  bool open_barrier(std::unique_ptr<Fiber>* fibers, size_t n, Wait kind) {
    const auto end = fibers + n;
    const auto first = std::find_if(fibers, end, [&](const auto& f) { return f->wait == kind; });
    if (first == end) return false;
    const Fiber& here = **first;
    for (auto f = fibers; f != end; ++f) {
      const Fiber& other = **f;
      if (other.wait == kind && same(other.site, here.site)) continue;
      fail("barrier reached by " + name(here) + ", but " + name(other) +
               (other.wait == Wait::done ? " has left the kernel" : " waits in line " + std::to_string(other.site.line())),
           here.site);
      return false;
    }
    for (auto f = fibers; f != end; ++f) (*f)->wait = Wait::runnable;
    return true;
  }

  static std::string name(const Fiber& f) {
    const auto triple = [](const uint3& i) {
      return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
    };
    return "thread " + triple(f.thread) + " of block " + triple(f.block);
  }
};
inline Machine machine;

inline void fiber_entry() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack_, &machine.scheduler_stack_bytes_);
#endif
  (*machine.kernel_)();
  machine.self->wait = Wait::done;
  machine.leave();
}

}  // namespace cuda_emu
