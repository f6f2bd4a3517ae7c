// What a step of a memory network does differently if asked to, and what it reads from its interface vector. Torch-free.
#pragma once
#include <cstdint>

namespace routing_ext {

// routing_ext/_memory_options.py explains them. All zero: as in the reference.
struct MemoryOptions {
  bool separate_allocation;  // counts as used by both gates, for the other heads only
  bool detached_usage;       // no gradient from usage to the write weights
  double temperature;        // of allocation by softmax; zero: by sorting
  bool oneplus_strengths, linear_words, plain_cosine;
  bool masks;
  double mask_min;
  bool erases_freed, sharpens_link, unlinked;
  bool linear_output, zero_state;  // of a sequence
  bool normalises;                 // the interface, of a sequence: (x - mean) / sqrt(variance + epsilon) * weight + bias
  double epsilon;

  static constexpr int kCount = 12;  // numbers, in this order; usage is 0 for reference, 1 for paper, 2 for package
  static MemoryOptions of(const double* numbers) {
    const auto flag = [&](int i) { return numbers[i] != 0; };
    return {flag(0), numbers[0] == 1, numbers[1], flag(2), flag(3),  flag(4),          numbers[5] >= 0, numbers[5],
            flag(6), flag(7),         flag(8),    flag(9), flag(10), numbers[11] >= 0, numbers[11]};
  }
};

// The parts of the interface vector, in order, and how many elements each has. V write heads, R read heads, W elements of a
// location, S shifts.
//   DNC  write keys [V,W], strengths [V], allocation gates [V], write gates [V], erase [V,W], add [V,W],
//        read keys [R,W], strengths [R], free gates [R], modes [R,2V+1] (V backward, V forward, content) if linked,
//        write masks [V,W] and read masks [R,W] if asked for, sharpness of the link [R,2V] (V backward, V forward) likewise
//   NTM  write keys [V,W], strengths [V], gates [V], shifts [V,S], sharpness [V], erase [V,W], add [V,W],
//        read keys [R,W], strengths [R], gates [R], shifts [R,S], sharpness [R]
struct InterfaceParts {
  int count = 0;
  int64_t sizes[13];
  int64_t total = 0;

  __attribute__((always_inline)) inline InterfaceParts(bool dnc, int64_t v, int64_t r, int64_t w, int64_t s,
                                                       const MemoryOptions& o) {
    const auto part = [this](int64_t size) __attribute__((always_inline)) { sizes[count++] = size, total += size; };
    part(v * w), part(v);
    if (dnc) {
      part(v), part(v);
    } else {
      part(v), part(v * s), part(v);
    }
    part(v * w), part(v * w), part(r * w), part(r);
    if (!dnc) {
      part(r), part(r * s), part(r);
      return;
    }
    part(r);
    if (!o.unlinked) part(r * (2 * v + 1));
    if (o.masks) part(v * w), part(r * w);
    if (o.sharpens_link) part(r * 2 * v);
  }
};

}  // namespace routing_ext
