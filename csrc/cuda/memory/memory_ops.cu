// TERMINOLOGY
//   phase     what all threads of a block do between two barriers; usage.cuh, allocation.cuh, link.cuh, content.cuh and
//             passes.cuh have them, and the steps of whole networks are made of the same ones
//   arrays    what the phases of an operator hand to each other, see workspace.cuh
//   partials  sums of single warps, which the next phase adds up
#include "memory_ops.cuh"

#include "allocation.cuh"
#include "content.cuh"
#include "link.cuh"
#include "operator.cuh"
#include "passes.cuh"
#include "usage.cuh"

namespace routing_ext::cuda {
namespace {

using Shape = MemoryOpShape;

// ---- content ---------------------------------------------------------------------------------------------------------------

template <class T>
__device__ Lookup<T> lookup_of(const MemoryOpSample<T>& s, const T* keys, const T* strengths, const T* memory) {
  return {s.heads, s.locations, s.word, keys, nullptr, strengths, memory, T(kEpsilon)};
}

template <class T>
struct ContentArrays {
  T *dots, *norms, *key_partials, *partials;  // [H,N], [N]
  template <class W>
  __host__ __device__ ContentArrays(W& w, const Shape& s)
      : dots(w.take(s.heads * s.locations)),
        norms(w.take(s.locations)),
        key_partials(w.take_partials(partials_size(s.heads, 1))),
        partials(w.take_partials(partials_size(s.heads, 2))) {}
};

// The weights [H,N], and the norms of the keys. Barriers within; none after.
template <class Group, class T>
__device__ RowSums<1, T> find_by_content(const Group& group, const Lookup<T>& look, const ContentArrays<T>& a, T* weights) {
  const RowSums<1, T> norms = key_norms(group, look, a.key_partials);
  look_up(group, look, a.dots, a.norms);
  group.sync();
  const Softmax<T> softmax =
      content_softmax(group, look, norms, a.dots, a.norms, weights, a.partials, static_cast<T*>(nullptr));
  group.sync();
  softmax.finish(group);
  return norms;
}

// keys, strengths, memory -> weights
template <class T>
struct ContentWeights {
  using Arrays = ContentArrays<T>;
  template <class Group>
  static __device__ void run(const Group& group, const MemoryOpSample<T>& s, const Arrays& a) {
    find_by_content(group, lookup_of(s, s.in(0), s.in(1), s.in(2)), a, s.out(0));
  }
};

// grad, keys, strengths, memory -> of keys, strengths, memory
template <class T>
struct ContentWeightsBackward {
  struct Arrays {
    ContentArrays<T> content;
    T *weights, *grad, *grad_norms;  // [H,N] each
    T *along_partials, *column_partials;
    template <class W>
    __host__ __device__ Arrays(W& w, const Shape& s)
        : content(w, s),
          weights(w.take(s.heads * s.locations)),
          grad(w.take(s.heads * s.locations)),
          grad_norms(w.take(s.heads * s.locations)),
          along_partials(w.take_partials(partials_size(s.heads, 1))),
          column_partials(take_column_partials(w, kHeads, s.word)) {}
  };
  template <class Group>
  static __device__ void run(const Group& group, const MemoryOpSample<T>& s, const Arrays& a) {
    const Lookup<T> look = lookup_of(s, s.in(1), s.in(2), s.in(3));
    for_each(group, s.heads * s.locations, [&](int i) { a.grad[i] = s.in(0)[i]; });
    const RowSums<1, T> norms = find_by_content(group, look, a.content, a.weights);
    group.sync();
    const RowSums<1, T> along(group, s.heads, s.locations, a.along_partials, [&](int h) {
      const T *const g = a.grad + h * s.locations, *const weights = a.weights + h * s.locations;
      return [=](int i, T* sums) { sums[0] += g[i] * weights[i]; };
    });
    group.sync();
    const RowSums<2, T> scalars = content_backward(
        group, look, norms, a.content.norms, a.content.dots, a.weights, [&](int h) { return along.total(h); }, a.grad,
        a.grad_norms, a.content.partials);
    group.sync();
    for_each(group, s.heads, [&](int h) { s.out(1)[h] = scalars.total(h, 0); });
    const LookupGradients<T> of{a.grad, a.grad_norms, scalars, nullptr, nullptr, nullptr, s.out(2), s.out(0), nullptr};
    look_up_backward(group, look, of, a.column_partials);
  }
};

// ---- usage and allocation --------------------------------------------------------------------------------------------------

// usage, write_weights, free_gates, read_weights -> usage
template <class T>
struct Usage {
  struct Arrays {
    template <class W>
    __host__ __device__ Arrays(W&, const Shape&) {}
  };
  template <class Group>
  static __device__ void run(const Group& group, const MemoryOpSample<T>& s, const Arrays&) {
    const UsageWeights<T> weights{s.locations, s.writes, s.reads, s.in(1), s.in(3), s.in(2)};
    update_usage(group, weights, s.in(0), [&](int i, T freed, T) { s.out(0)[i] = freed; });
  }
};

// grad, usage, write_weights, free_gates, read_weights -> of usage, write_weights, free_gates, read_weights
template <class T>
struct UsageBackward {
  struct Arrays {
    T* partials;
    template <class W>
    __host__ __device__ Arrays(W& w, const Shape& s) : partials(w.take_partials(partials_size(s.reads, 1))) {}
  };
  template <class Group>
  static __device__ void run(const Group& group, const MemoryOpSample<T>& s, const Arrays& a) {
    const UsageWeights<T> weights{s.locations, s.writes, s.reads, s.in(2), s.in(4), s.in(3)};
    const UsageGradients<T> of{s.in(0), nullptr, nullptr, s.out(0), s.out(1), s.out(3)};
    const RowSums<1, T> of_gates = update_usage_backward(group, weights, s.in(1), of, a.partials);
    group.sync();
    for_each(group, s.reads, [&](int r) { s.out(2)[r] = of_gates.total(r); });
  }
};

// usage, write_gates -> allocation, usage, kept
template <class T>
struct AllocationForward {
  struct Arrays {
    T *usage, *s, *partials;  // [N] twice
    template <class W>
    __host__ __device__ Arrays(W& w, const Shape& s)
        : usage(w.take(s.locations)), s(w.take(s.locations)), partials(w.take_partials(partials_size(1, 2))) {}
  };
  template <class Group>
  static __device__ void run(const Group& group, const MemoryOpSample<T>& s, const Arrays& a) {
    const Allocation<T> allocation{s.locations, s.temperature};
    for_each(group, s.locations, [&](int i) { a.usage[i] = s.in(0)[i]; });
    group.sync();
    for (int v = 0; v < s.writes; ++v) {
      const int64_t row = static_cast<int64_t>(v) * s.locations;
      T *const kept = s.out(2) + row, *const found = s.out(0) + row;
      find_free(group, allocation, a.usage, a.s, a.partials, kept);
      group.sync();
      const T gate = s.in(1)[v];
      for_each(group, s.locations, [&](int i) {
        found[i] = allocation.found(a.usage[i], kept[i]);
        a.usage[i] = more_used(a.usage[i], gate, found[i]);
      });
      group.sync();
    }
    for_each(group, s.locations, [&](int i) { s.out(1)[i] = a.usage[i]; });
  }
};

// grad_allocation, grad_usage, usage, write_gates, kept -> of usage, write_gates
template <class T>
struct AllocationBackward {
  struct Arrays {
    T *usages, *grad_usage, *grad, *s, *x, *partials, *gate_partials;  // [V,N], [N] four times
    template <class W>
    __host__ __device__ Arrays(W& w, const Shape& s_)
        : usages(w.take(s_.writes * s_.locations)),
          grad_usage(w.take(s_.locations)),
          grad(w.take(s_.locations)),
          s(w.take(s_.locations)),
          x(w.take(s_.locations)),
          partials(w.take_partials(partials_size(1, 1))),
          gate_partials(w.take_partials(partials_size(1, 1))) {}
  };
  template <class Group>
  static __device__ void run(const Group& group, const MemoryOpSample<T>& s, const Arrays& a) {
    const Allocation<T> allocation{s.locations, s.temperature};
    const T *const grad_found = s.in(0), *const gates = s.in(3), *const kept = s.in(4);
    for_each(group, s.locations, [&](int i) {
      T usage = s.in(2)[i];
      for (int v = 0; v < s.writes; ++v) {  // as each head found it
        const int64_t at = static_cast<int64_t>(v) * s.locations + i;
        a.usages[at] = usage;
        usage = more_used(usage, gates[v], allocation.found(usage, kept[at]));
      }
      a.grad_usage[i] = s.in(1) ? s.in(1)[i] : T(0);
    });
    group.sync();
    for (int v = s.writes - 1; v >= 0; --v) {
      const int64_t row = static_cast<int64_t>(v) * s.locations;
      const T* const usage = a.usages + row;
      const RowSums<1, T> of_gate(group, 1, s.locations, a.gate_partials, [&](int) {
        return [&](int i, T* sums) {
          const T found = allocation.found(usage[i], kept[row + i]);
          const MoreUsedGradient<T> of = more_used_backward(a.grad_usage[i], usage[i], gates[v], found);
          sums[0] += of.amount;
          a.grad[i] = (grad_found ? grad_found[row + i] : T(0)) + of.allocation;
          a.grad_usage[i] = of.usage;
        };
      });
      group.sync();
      if (group.rank() == 0) s.out(1)[v] = of_gate.total(0);
      find_free_backward(group, allocation, usage, kept + row, a.grad, a.s, a.x, a.partials, a.grad_usage);
      group.sync();
    }
    for_each(group, s.locations, [&](int i) { s.out(0)[i] = a.grad_usage[i]; });
  }
};

// ---- link ------------------------------------------------------------------------------------------------------------------

template <class T>
__device__ Link<T> link_of(const MemoryOpSample<T>& s, int v, const T* link, const T* precedence, const T* weights,
                           const T* read) {
  const int64_t row = static_cast<int64_t>(v) * s.locations;
  return {s.locations, s.reads, link + row * s.locations, precedence + row, weights + row, read};
}

// link, precedence, write_weights, read_weights -> link, precedence, forward, backward
template <class T>
struct TemporalLink {
  struct Arrays {
    T *partials, *column_partials;
    template <class W>
    __host__ __device__ Arrays(W& w, const Shape& s)
        : partials(w.take_partials(partials_size(s.writes, 1))),
          column_partials(take_column_partials(w, kHeads, s.locations)) {}
  };
  template <class Group>
  static __device__ void run(const Group& group, const MemoryOpSample<T>& s, const Arrays& a) {
    const RowSums<1, T> written = written_sums(group, s.writes, s.locations, s.in(2), a.partials);
    group.sync();
    update_precedence(group, s.locations, written, s.in(2), s.in(1), s.out(1));
    for (int v = 0; v < s.writes; ++v) {
      const Link<T> link = link_of(s, v, s.in(0), s.in(1), s.in(2), s.in(3));
      const int64_t matrix = static_cast<int64_t>(v) * s.locations * s.locations;
      const int64_t rows = static_cast<int64_t>(v) * s.reads * s.locations;
      update_link(group, link, s.out(0) + matrix, s.out(2) + rows, s.out(3) + rows, a.column_partials);
    }
  }
};

// grads of link, precedence, forward, backward; link, precedence, write_weights, read_weights -> of the last four
template <class T>
struct TemporalLinkBackward {
  struct Arrays {
    T *zeros, *partials, *column_partials;  // zeros [R,N]
    template <class W>
    __host__ __device__ Arrays(W& w, const Shape& s)
        : zeros(w.take(s.reads * s.locations)),
          partials(w.take_partials(partials_size(s.writes, 2))),
          column_partials(take_column_partials(w, kHeads + 2, s.locations)) {}
  };
  template <class Group>
  static __device__ void run(const Group& group, const MemoryOpSample<T>& s, const Arrays& a) {
    T *const of_precedence = s.out(1), *const of_weights = s.out(2), *const of_read = s.out(3);
    for_each(group, s.writes * s.locations, [&](int i) {
      of_precedence[i] = s.in(1) ? s.in(1)[i] : T(0);
      of_weights[i] = 0;
    });
    for_each(group, s.reads * s.locations, [&](int i) { of_read[i] = a.zeros[i] = 0; });
    group.sync();
    const RowSums<2, T> sums = precedence_sums(group, s.writes, s.locations, s.in(6), s.in(5), of_precedence, a.partials);
    group.sync();
    update_precedence_backward(group, s.locations, sums, of_precedence, of_weights);
    group.sync();
    for (int v = 0; v < s.writes; ++v) {
      const Link<T> link = link_of(s, v, s.in(4), s.in(5), s.in(6), s.in(7));
      const int64_t row = static_cast<int64_t>(v) * s.locations, matrix = row * s.locations, rows = row * s.reads;
      const LinkGradients<T> of{s.in(0) ? s.in(0) + matrix : nullptr,
                                s.in(2) ? s.in(2) + rows : a.zeros,
                                s.in(3) ? s.in(3) + rows : a.zeros,
                                s.out(0) + matrix,
                                of_read,
                                of_weights + row,
                                of_precedence + row};
      update_link_backward(group, link, of, a.column_partials);
    }
  }
};

// ---- write and read --------------------------------------------------------------------------------------------------------

// memory, write_weights, erase, add -> memory
template <class T>
struct MemoryWrite {
  struct Arrays {
    template <class W>
    __host__ __device__ Arrays(W&, const Shape&) {}
  };
  template <class Group>
  static __device__ void run(const Group& group, const MemoryOpSample<T>& s, const Arrays&) {
    const Write<T> write{s.writes, s.locations, s.word, s.in(0), nullptr, s.in(1), s.in(2), s.in(3)};
    write_memory(group, write, s.out(0), static_cast<T*>(nullptr));
  }
};

// grad, memory, write_weights, erase, add -> of the last four
template <class T>
struct MemoryWriteBackward {
  struct Arrays {
    T* column_partials;
    template <class W>
    __host__ __device__ Arrays(W& w, const Shape& s) : column_partials(take_column_partials(w, 2, s.word)) {}
  };
  template <class Group>
  static __device__ void run(const Group& group, const MemoryOpSample<T>& s, const Arrays& a) {
    const Write<T> write{s.writes, s.locations, s.word, s.in(1), nullptr, s.in(2), s.in(3), s.in(4)};
    for_each(group, s.writes * s.locations, [&](int i) { s.out(1)[i] = 0; });
    const int64_t elements = static_cast<int64_t>(s.locations) * s.word;
    for (int64_t i = group.rank(); i < elements; i += group.size()) s.out(0)[i] = s.in(0)[i];
    group.sync();
    write_memory_backward(group, write, s.out(0), s.out(1), static_cast<T*>(nullptr), s.out(2), s.out(3), a.column_partials);
  }
};

// memory, read_weights -> read
template <class T>
struct MemoryRead {
  struct Arrays {
    T* column_partials;
    template <class W>
    __host__ __device__ Arrays(W& w, const Shape& s) : column_partials(take_column_partials(w, kHeads, s.word)) {}
  };
  template <class Group>
  static __device__ void run(const Group& group, const MemoryOpSample<T>& s, const Arrays& a) {
    read_memory(group, s.reads, s.in(1), s.in(0), s.locations, s.word, s.out(0), a.column_partials);
  }
};

// grad, memory, read_weights -> of memory, read_weights
template <class T>
struct MemoryReadBackward {
  struct Arrays {
    template <class W>
    __host__ __device__ Arrays(W&, const Shape&) {}
  };
  template <class Group>
  static __device__ void run(const Group& group, const MemoryOpSample<T>& s, const Arrays&) {
    const T *const grad = s.in(0), *const weights = s.in(2);
    row_products(group, s.reads, grad, s.in(1), s.locations, s.word, false, s.out(1), static_cast<T*>(nullptr));
    const int lanes = lanes_for(s.word);
    for_each_row(group, s.locations, lanes, [&](int i, int lane, bool is_there) {
      if (!is_there) return;
      for (int w = lane; w < s.word; w += lanes) {
        T g = 0;
        for (int r = 0; r < s.reads; ++r) g += weights[static_cast<int64_t>(r) * s.locations + i] * grad[r * s.word + w];
        s.out(0)[static_cast<int64_t>(i) * s.word + w] = g;
      }
    });
  }
};

// ---- launches --------------------------------------------------------------------------------------------------------------

// f(OpType<Op>()) with the kernel's operator.
template <class Op>
struct OpType {
  using type = Op;
};
template <class T, class F>
auto with_op(MemoryOp op, const F& f) {
  switch (op) {
    case MemoryOp::content_weights:
      return f(OpType<ContentWeights<T>>());
    case MemoryOp::content_weights_backward:
      return f(OpType<ContentWeightsBackward<T>>());
    case MemoryOp::dnc_usage:
      return f(OpType<Usage<T>>());
    case MemoryOp::dnc_usage_backward:
      return f(OpType<UsageBackward<T>>());
    case MemoryOp::dnc_allocation:
      return f(OpType<AllocationForward<T>>());
    case MemoryOp::dnc_allocation_backward:
      return f(OpType<AllocationBackward<T>>());
    case MemoryOp::dnc_temporal_link:
      return f(OpType<TemporalLink<T>>());
    case MemoryOp::dnc_temporal_link_backward:
      return f(OpType<TemporalLinkBackward<T>>());
    case MemoryOp::memory_write:
      return f(OpType<MemoryWrite<T>>());
    case MemoryOp::memory_write_backward:
      return f(OpType<MemoryWriteBackward<T>>());
    case MemoryOp::memory_read:
      return f(OpType<MemoryRead<T>>());
    case MemoryOp::memory_read_backward:
      break;
  }
  return f(OpType<MemoryReadBackward<T>>());
}

}  // namespace

template <class T>
size_t memory_op_scratch_bytes(MemoryOp op, const MemoryOpShape& shape) {
  return with_op<T>(op, [&](auto kernel) { return memory_op_scratch<typename decltype(kernel)::type, T>(shape); });
}

template <class T>
cudaError_t launch_memory_op(MemoryOp op, const MemoryOpShape& shape, const MemoryOpTensors<T>& tensors, void* scratch,
                             cudaStream_t stream) {
  return with_op<T>(
      op, [&](auto kernel) { return launch_memory_op<typename decltype(kernel)::type, T>(shape, tensors, scratch, stream); });
}

#define INSTANTIATE(T)                                                        \
  template size_t memory_op_scratch_bytes<T>(MemoryOp, const MemoryOpShape&); \
  template cudaError_t launch_memory_op(MemoryOp, const MemoryOpShape&, const MemoryOpTensors<T>&, void*, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
