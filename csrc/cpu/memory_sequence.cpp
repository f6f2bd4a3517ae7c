// A memory network over a sequence. The threads share the samples, and each takes its own through all steps: within a sequence
// no thread waits for another. It takes a few at a time, so that their state stays in its cache from step to step.
//
// The tape [T+1,B,row_size] has the states before and after all steps, and what the backward pass needs of them. Of the links,
// by far the largest part of a state, every link_every-th is kept; the backward pass makes those between again.
#include <ATen/ops/constant_pad_nd.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>
#include <tuple>

#include "memory_cell.h"

namespace routing_ext::cpu {
namespace {

constexpr int64_t kBlockBytes = 2 << 20;  // of the states of samples that are taken through the sequence together

// The samples of a thread, and how many of them it takes at a time.
struct Samples {
  int64_t batch, threads, at_a_time;

  // alone: the samples come one by one, for a team of threads works on each.
  Samples(const CellShape& s, int64_t steps, int64_t batch_, int64_t state_bytes, bool alone) : batch(batch_) {
    const int64_t most = alone ? 1 : std::min<int64_t>(batch, at::get_num_threads());
    threads = std::clamp<int64_t>(steps * batch * cell_cost(s) / kMultiplicationsPerThread, 1, std::max<int64_t>(most, 1));
    const int64_t own = divide_up(batch, threads);
    const int64_t blocks = divide_up(own * state_bytes, kBlockBytes);
    at_a_time = std::max<int64_t>(divide_up(own, std::max<int64_t>(blocks, 1)), 1);
  }
  // f(block) for the t-th thread.
  template <class F>
  void for_each_block(int64_t t, const F& f) const {
    const Span mine = part_of(batch, t, threads);
    for (int64_t b = mine.begin; b < mine.end; b += at_a_time) f(Span{b, std::min(b + at_a_time, mine.end)});
  }
};

// Memory of each thread, from one tensor: parts are taken in turn.
template <class C>
class Work {
 public:
  explicit Work(C* memory) : next_(memory) {}
  C* take(int64_t count) {
    C* const here = next_;
    next_ += AccessLayout<C>::padded(count);
    return here;
  }

 private:
  C* next_;
};

// Where the states and the links of a sample are, C const for the backward pass.
template <class C>
struct Tape {
  C *rows, *links;  // [T+1,B,row_size], [kept,B,V,N,n]
  int64_t batch, row_size, link_size, link_every;

  C* state(int64_t t, int64_t sample) const { return rows + (t * batch + sample) * row_size; }
  // After step t > 0; one that is kept.
  bool keeps_link(int64_t t) const { return t % link_every == 0; }
  C* link(int64_t t, int64_t sample) const { return links + ((t / link_every - 1) * batch + sample) * link_size; }
};

// The number of links between the first and the last state that are kept.
int64_t kept_links(int64_t steps, int64_t link_every) { return steps > 0 ? (steps - 1) / link_every : 0; }

int64_t padded_locations(const MemorySizes& s, int64_t element_size) {
  const int64_t align = 64 / element_size;
  return divide_up(s.locations, align) * align;
}
// Links with rows as long as the kernels have them; the same tensor where they are.
at::Tensor padded_link(const MemorySizes& s, const at::Tensor& link) {
  const int64_t n = padded_locations(s, link.element_size());
  return n == s.locations ? link : at::constant_pad_nd(link, {0, n - s.locations});
}
at::Tensor unpadded_link(const MemorySizes& s, const at::Tensor& link) {
  return link.size(-1) == s.locations ? link : link.narrow(-1, 0, s.locations).contiguous();
}
at::Tensor empty_links(const MemorySizes& s, int64_t count, const at::TensorOptions& options) {
  const int64_t n = padded_locations(s, options.dtype().itemsize());
  return pooled_empty({count, s.dnc ? s.batch : 0, s.writes, s.locations, n}, options);
}

std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>> memory_sequence_cpu(
    std::string_view model, at::ArrayRef<double> options_, const at::Tensor& x, at::TensorList state, at::TensorList weights,
    int64_t num_locations, double clip_value, int64_t link_every, bool keep) {
  const MemorySequenceArgs a(model, options_, x, state, weights, num_locations, link_every);
  const MemorySizes& sizes = a.sizes;
  const CellShape shape = cell_shape(sizes, clip_value);
  const int64_t steps = sizes.steps, batch = sizes.batch;
  const at::TensorOptions options = x.options();
  const at::Tensor y = pooled_empty({steps, batch, sizes.output}, options);
  std::vector<at::Tensor> final_state, tape_tensors;
  for (const Shape& s : sizes.state_shapes()) final_state.push_back(pooled_empty(s, options));
  at::Tensor link, final_link;  // padded
  if (sizes.dnc) {
    at::Tensor& last = final_state[MemorySizes::kLink];
    if (!a.state.empty()) link = padded_link(sizes, a.state[MemorySizes::kLink]);
    final_link = padded_locations(sizes, x.element_size()) == sizes.locations ? last : empty_links(sizes, 1, options)[0];
    if (steps == 0) link.defined() ? final_link.copy_(link) : final_link.zero_();
  }

  with_memory_kernels(x.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const CellLayout<C> at(shape);
    const PackedLayout<C> packed_at(shape);
    const int64_t row = at.row_size, link_size = at.access.link_size, interface_size = shape.access.interface_size();
    const SampleTeam team(shape, batch, at.access.n, options);
    const Samples samples(shape, steps, batch, sizeof(C) * (2 * at.access.memory_size + link_size), team.get());
    if (keep) {
      tape_tensors = {pooled_empty({steps + 1, batch, row}, options),
                      empty_links(sizes, kept_links(steps, link_every), options)};
    }

    const WeightPointers<const C> given(sizes, a.weights);
    const at::Tensor packed_tensor = pooled_empty({packed_at.forward_size}, options);
    C* const packed = data_of<C>(packed_tensor);
    in_threads(samples.threads, [&](int64_t t) { kernels.cell.pack_forward(shape, *given, packed, t, samples.threads); });

    const CellState<const C> before = cell_state<const C>(sizes, a.state);
    const CellState<C> after = cell_state<C>(sizes, final_state);
    const int64_t rows_at_a_time = samples.at_a_time;
    const int64_t slots = keep ? 0 : 2 * rows_at_a_time * row, between = rows_at_a_time * link_size;
    const int64_t work_size = slots + between + AccessLayout<C>::padded(rows_at_a_time * interface_size) +
                              AccessLayout<C>::padded(at.access.scratch_size);
    const at::Tensor work_tensor = pooled_empty({samples.threads, work_size}, options);
    C *const work_data = data_of<C>(work_tensor), *const y_data = data_of<C>(y), *const last_link = data_of<C>(final_link);
    const C *const x_data = data_of<const C>(a.x), *const first_link = data_of<const C>(link);
    const auto tape_data = [&](size_t i) { return keep ? data_of<C>(tape_tensors[i]) : nullptr; };
    const Tape<C> tape{tape_data(0), tape_data(1), batch, row, link_size, link_every};

    in_threads(samples.threads, [&](int64_t thread) {
      Work<C> work(work_data + thread * work_size);
      C *const own_rows = work.take(slots), *const own_links = work.take(between);
      C *const interface = work.take(rows_at_a_time * interface_size), *const scratch = work.take(at.access.scratch_size);
      samples.for_each_block(thread, [&](Span block) {
        const int64_t first = block.begin;
        const auto slot = [&](int64_t t) { return keep ? tape.state(t, first) : own_rows + t % 2 * rows_at_a_time * row; };
        const auto link_after = [&](int64_t t) {
          if (t == steps) return last_link + first * link_size;
          return keep && tape.keeps_link(t) ? tape.link(t, first) : own_links;
        };
        kernels.cell.import_state(shape, before, block, false, slot(0), row);
        const C* previous_link = first_link ? first_link + first * link_size : nullptr;
        for (int64_t t = 0; t < steps; ++t) {
          C* const next_link = link_after(t + 1);
          kernels.cell.forward(
              shape, {block.size(), packed, x_data + (t * batch + first) * shape.input, slot(t), previous_link, slot(t + 1),
                      next_link, y_data + (t * batch + first) * shape.output, interface, scratch, team.get()});
          previous_link = next_link;
        }
        kernels.cell.export_state(shape, slot(steps), row, after, block);
      });
    });
  });
  if (sizes.dnc) final_state[MemorySizes::kLink] = unpadded_link(sizes, final_link);
  return {y, std::move(final_state), std::move(tape_tensors)};
}

std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>> memory_sequence_backward_cpu(
    std::string_view model, at::ArrayRef<double> options_, const std::optional<at::Tensor>& grad_y,
    const c10::List<std::optional<at::Tensor>>& grad_state, const at::Tensor& x, const std::optional<at::Tensor>& link,
    at::TensorList weights, at::TensorList given_tape, int64_t num_locations, double clip_value, int64_t link_every,
    std::array<bool, 3> output_mask) {
  MemorySequenceBackwardArgs a(model, options_, grad_y, grad_state, x, link, weights, num_locations, link_every, output_mask);
  const MemorySizes& sizes = a.sizes;
  const CellShape shape = cell_shape(sizes, clip_value);
  const int64_t steps = sizes.steps, batch = sizes.batch;
  const at::TensorOptions options = x.options();
  const at::Tensor grad_x = pooled_empty(a.wants_x ? a.x.sizes() : at::IntArrayRef{0}, options);
  std::vector<at::Tensor> grad_weights, grad_initial;
  if (a.wants_weights) {
    for (const Shape& s : sizes.weight_shapes()) grad_weights.push_back(pooled_empty(s, options));
  }
  if (a.wants_state) {
    for (const Shape& s : sizes.state_shapes()) grad_initial.push_back(pooled_empty(s, options));
  }
  at::Tensor first_link, of_last_link, of_first_link;  // padded
  if (sizes.dnc) {
    if (a.link.defined()) first_link = padded_link(sizes, a.link);
    if (a.grad_state[MemorySizes::kLink].defined()) of_last_link = padded_link(sizes, a.grad_state[MemorySizes::kLink]);
    if (a.wants_state) {
      const bool direct = padded_locations(sizes, x.element_size()) == sizes.locations;
      of_first_link = direct ? grad_initial[MemorySizes::kLink] : empty_links(sizes, 1, options)[0];
    }
  }

  with_memory_kernels(x.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const CellLayout<C> at(shape);
    const PackedLayout<C> packed_at(shape);
    const int64_t row = at.row_size, link_size = at.access.link_size;
    const auto is_tape = [&](size_t i, int64_t count) {
      const at::Tensor& t = given_tape[i];
      return t.numel() == count && t.is_contiguous() && t.scalar_type() == x.scalar_type();
    };
    CHECK_ARG(a.kOp, "tape",
              given_tape.size() == 2 && is_tape(0, (steps + 1) * batch * row) &&
                  is_tape(1, kept_links(steps, link_every) * batch * link_size),
              "must be the one that the forward pass gave");
    const SampleTeam team(shape, batch, at.access.n, options);
    const Samples samples(shape, 3 * steps, batch,
                          sizeof(C) * (2 * at.access.memory_size + (1 + std::min(link_every, steps)) * link_size), team.get());

    const WeightPointers<const C> given(sizes, a.weights);
    const at::Tensor packed_tensor = pooled_empty({packed_at.backward_size}, options);
    C* const packed = data_of<C>(packed_tensor);
    in_threads(samples.threads, [&](int64_t t) { kernels.cell.pack_backward(shape, *given, packed, t, samples.threads); });

    const CellState<const C> after = cell_state<const C>(sizes, a.grad_state);
    const CellState<C> before = cell_state<C>(sizes, grad_initial);
    const int64_t at_a_time = samples.at_a_time,
                  between = std::max<int64_t>(std::min(link_every, steps) - 1, 0) * at_a_time * link_size;
    const int64_t own_grad_link = of_first_link.defined() ? 0 : at_a_time * link_size;
    const int64_t work_size =
        at_a_time * at.state_size + own_grad_link + between + AccessLayout<C>::padded(at.access.scratch_size);
    const at::Tensor work_tensor = pooled_empty({samples.threads, work_size}, options);
    const at::Tensor grads_tensor = pooled_empty({steps, batch, at.grad_size}, options);
    C *const work_data = data_of<C>(work_tensor), *const grads = data_of<C>(grads_tensor),
             *const x_grads = a.wants_x ? data_of<C>(grad_x) : nullptr;
    const C *const y_grads = data_of<const C>(a.grad_y), *const link_0 = data_of<const C>(first_link);
    const C* const link_grads = data_of<const C>(of_last_link);
    C* const link_0_grads = data_of<C>(of_first_link);
    const Tape<const C> tape{
        data_of<const C>(given_tape[0]), data_of<const C>(given_tape[1]), batch, row, link_size, link_every};

    in_threads(samples.threads, [&](int64_t thread) {
      Work<C> work(work_data + thread * work_size);
      C *const grad_rows = work.take(at_a_time * at.state_size), *const own_link_grads = work.take(own_grad_link);
      C *const own_links = work.take(between), *const scratch = work.take(at.access.scratch_size);
      samples.for_each_block(thread, [&](Span block) {
        const int64_t first = block.begin, links_offset = first * link_size, of_block = block.size() * link_size;
        const auto link_after = [&](int64_t t) -> const C* {
          if (t == 0) return link_0 ? link_0 + links_offset : nullptr;
          if (tape.keeps_link(t)) return tape.link(t, first);
          return own_links + (t % link_every - 1) * at_a_time * link_size;
        };
        // The links after the steps kept + 1 .. t, of which the one after `kept` is there.
        const auto remake_links = [&](int64_t kept, int64_t t) {
          for (; kept < t; ++kept) {
            kernels.cell.relink(shape, block.size(), tape.state(kept, first), link_after(kept), tape.state(kept + 1, first),
                                own_links + kept % link_every * at_a_time * link_size, team.get());
          }
        };
        C* const grad_link = link_0_grads ? link_0_grads + links_offset : own_link_grads;
        if (link_grads) {
          std::copy_n(link_grads + links_offset, of_block, grad_link);
        } else if (link_size > 0) {
          std::fill_n(grad_link, of_block, C(0));
        }
        kernels.cell.import_state(shape, after, block, true, grad_rows, at.state_size);
        for (int64_t t = steps; t > 0; --t) {
          const int64_t kept = (t - 1) / link_every * link_every;
          if (link_size > 0 && (t == steps || tape.keeps_link(t))) remake_links(kept, t - 1);
          const int64_t sample = (t - 1) * batch + first;
          kernels.cell.backward(
              shape, {block.size(), packed, tape.state(t - 1, first), link_after(t - 1), tape.state(t, first),
                      y_grads ? y_grads + sample * shape.output : nullptr, grad_rows, grad_link, grads + sample * at.grad_size,
                      x_grads ? x_grads + sample * shape.input : nullptr, scratch, team.get()});
        }
        if (a.wants_state) kernels.cell.export_state(shape, grad_rows, at.state_size, before, block);
      });
    });

    if (!a.wants_weights) return;
    const WeightPointers<C> wanted(sizes, grad_weights);
    const int64_t threads = at::get_num_threads();
    in_threads(threads, [&](int64_t t) {
      kernels.cell.weight_gradients(shape, {steps, batch, data_of<const C>(a.x), tape.rows, grads, *wanted}, t, threads);
    });
  });
  if (sizes.dnc && a.wants_state) grad_initial[MemorySizes::kLink] = unpadded_link(sizes, of_first_link);
  return {grad_x, std::move(grad_weights), std::move(grad_initial)};
}

int64_t memory_row_size(std::string_view model, at::ArrayRef<double> options, at::IntArrayRef sizes, at::ScalarType dtype) {
  constexpr const char* kOp = "memory_row_size";
  CHECK_ARG(kOp, "sizes", sizes.size() == 8, "must have 8 numbers, got ", sizes);
  const CellShape shape{{model == "dnc" ? MemoryKind::dnc : MemoryKind::ntm, sizes[3], sizes[4], sizes[6], sizes[5], sizes[7],
                         memory_options(kOp, options)},
                        sizes[0],
                        sizes[1],
                        sizes[2],
                        0};
  return dtype == at::kFloat ? CellLayout<float>(shape).row_size : CellLayout<double>(shape).row_size;
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CompositeExplicitAutograd, m) { m.impl("memory_row_size", memory_row_size); }
TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  m.impl("memory_sequence", memory_sequence_cpu);
  m.impl("memory_sequence_backward", memory_sequence_backward_cpu);
}

}  // namespace routing_ext::cpu
