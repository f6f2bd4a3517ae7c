// What the memory networks ask of the kernels under simd/: the accessor of one sample at one time step. Torch-free.
//
// N memory locations of W words, R read heads, V write heads, S shifts (NTM). Rows over locations are padded to n, a multiple
// of 64 bytes; their padding is zero (one in `usage`: a padded location is never free).
#pragma once
#include <cstddef>
#include <cstdint>

#include "../math/memory_interface.h"
#include "kernel_tables.h"

#define ROUTING_EXT_INLINE __attribute__((always_inline)) inline

namespace routing_ext::cpu {

enum class MemoryKind { dnc, ntm };

struct AccessShape {
  MemoryKind kind;
  int64_t locations, word, reads, writes;  // N, W, R, V
  int64_t shifts;                          // S; NTM
  MemoryOptions options;                   // DNC

  ROUTING_EXT_INLINE bool linked() const { return kind == MemoryKind::dnc && !options.unlinked; }
  ROUTING_EXT_INLINE int64_t modes() const { return 2 * writes + 1; }
  ROUTING_EXT_INLINE int64_t interface_size() const {
    return InterfaceParts(kind == MemoryKind::dnc, writes, reads, word, shifts, options).total;
  }
  // Scalars of all heads, or more.
  ROUTING_EXT_INLINE int64_t scalars() const { return (writes + reads) * (2 * modes() + shifts + 8); }
};

// Where each row lies in the small state and in the record of a sample, counted in elements of C.
template <class C>
struct AccessLayout {
  static constexpr int64_t kAlign = 64 / sizeof(C);
  int64_t n, words;  // N and W, padded
  // The small state, after a step.
  int64_t usage, precedence, write_weights, read_weights, norms;  // [n], [V,n], [V,n], [R,n], [n]: |memory row|^2
  int64_t state_size;
  // What the backward pass needs of a step: the interface behind its activations, and the inner results of the addressing.
  int64_t write_keys, erase, add, read_keys;                 // [V,words] three times, [R,words]
  int64_t scalars;                                           // see the kernels
  int64_t write_cosine, write_content;                       // [V,n]
  int64_t read_cosine, read_content;                         // [R,n]
  int64_t usage_freed, allocation;                           // DNC: [n], [V,n]: see allocation.h
  int64_t forward, backward;                                 // DNC with a link: [V,R,n]
  int64_t sharp_forward, sharp_backward;                     // the same sharpened, if asked for
  int64_t write_masks, read_masks;                           // if asked for: [V,words], [R,words]
  int64_t masked_write_keys, masked_read_keys;               // likewise: keys times squared masks
  int64_t masked_write_norms, masked_read_norms;             // likewise: [V,n], [R,n], of the memory as each head sees it
  int64_t write_shifted, write_log, read_shifted, read_log;  // NTM: [V,n] twice, [R,n] twice
  int64_t record_size;
  int64_t memory_size, link_size;  // W n, V N n
  int64_t scratch_size;

  ROUTING_EXT_INLINE static int64_t padded(int64_t count) { return (count + kAlign - 1) / kAlign * kAlign; }

  ROUTING_EXT_INLINE explicit AccessLayout(const AccessShape& s) {
    const bool dnc = s.kind == MemoryKind::dnc;
    n = padded(s.locations), words = padded(s.word);
    const int64_t v = s.writes * n, r = s.reads * n;
    int64_t at = 0;
    const auto take = [&at](int64_t count) __attribute__((always_inline)) {
      const int64_t here = at;
      at += count;
      return here;
    };
    usage = take(dnc ? n : 0), precedence = take(s.linked() ? v : 0);
    write_weights = take(v), read_weights = take(r), norms = take(n);
    state_size = at, at = 0;
    write_keys = take(s.writes * words), erase = take(s.writes * words), add = take(s.writes * words);
    read_keys = take(s.reads * words);
    scalars = take(padded(s.scalars()) + 8 * kAlign);
    write_cosine = take(v), write_content = take(v), read_cosine = take(r), read_content = take(r);
    usage_freed = take(dnc ? n : 0), allocation = take(dnc ? v : 0);
    forward = take(s.linked() ? s.writes * r : 0), backward = take(s.linked() ? s.writes * r : 0);
    const bool sharpens = s.options.sharpens_link, masks = s.options.masks;
    sharp_forward = take(sharpens ? s.writes * r : 0), sharp_backward = take(sharpens ? s.writes * r : 0);
    write_masks = take(masks ? s.writes * words : 0), read_masks = take(masks ? s.reads * words : 0);
    masked_write_keys = take(masks ? s.writes * words : 0), masked_read_keys = take(masks ? s.reads * words : 0);
    masked_write_norms = take(masks ? v : 0), masked_read_norms = take(masks ? r : 0);
    write_shifted = take(dnc ? 0 : v), write_log = take(dnc ? 0 : v);
    read_shifted = take(dnc ? 0 : r), read_log = take(dnc ? 0 : r);
    record_size = at;
    memory_size = s.word * n, link_size = s.linked() ? v * s.locations : 0;
    scratch_size = (6 + 6 * s.writes + 5 * s.reads) * n + (3 * s.writes + s.reads) * words + padded(8 * kAlign + s.scalars()) +
                   2 * (n + 2 * padded(s.shifts)) + (masks ? (s.writes + s.reads) * (n + words) : 0) +
                   (s.options.erases_freed ? memory_size + n : 0);
  }
};

// The state of one sample, or the gradient of it. C: float or double, perhaps const.
template <class C>
struct AccessState {
  C* small;   // [state_size]
  C* memory;  // [W,n]: transposed
  C* link;    // [V,N,n]; a previous link of nullptr is zero
};

// Threads that share the work on one sample, where there are more of them than samples.
struct Team {
  int64_t parts;
  void* memory;  // [size]
  // f(argument, part) for each part, at the same time.
  void (*run)(const Team& team, void (*f)(void*, int64_t), void* argument);

  // For each part but one, sums of up to four heads and two more rows.
  ROUTING_EXT_INLINE static int64_t size(int64_t parts, int64_t n) { return (parts - 1) * 6 * n; }
};
inline constexpr int64_t kTeamLocations = 256;  // with fewer, sharing costs more than it saves

template <class C>
struct AccessStep {
  const C* interface;  // [interface_size], before its activations
  AccessState<const C> previous;
  AccessState<C> next;
  C* record;   // [record_size]
  C* read;     // [R,W], the read vectors
  C* scratch;  // [scratch_size]
  const Team* team = nullptr;
};

template <class C>
struct AccessStepBackward {
  AccessState<const C> previous, next;  // next.link is not read
  const C* record;
  const C* grad_read;         // [R,W]
  AccessState<C> grad_state;  // of the next state; becomes that of the previous one. Its norms are not used.
  C* grad_interface;          // [interface_size]
  C* scratch;                 // [scratch_size]
  const Team* team = nullptr;
};

template <class C>
struct AccessKernels {
  void (*forward)(const AccessShape&, const AccessStep<C>&);
  void (*backward)(const AccessShape&, const AccessStepBackward<C>&);
  // next.link of previous.link and both small states: what forward does to it.
  void (*relink)(const AccessShape&, const AccessState<const C>& previous, const AccessState<C>& next, const Team* team);
};

}  // namespace routing_ext::cpu
