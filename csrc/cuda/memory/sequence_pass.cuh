// A block takes one sample from its first step to its last, or back: controller and accessor, phase by phase. What the kernels
// want of an accessor is a type:
//   Value           float or double
//   Plan            sizes and options, from a StepShape
//   Work            the arrays of a step
//   step(...)       of one sample; the forward pass' has a barrier at the end
//   relink(...)     makes a link again; in the backward pass
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "lstm.cuh"
#include "matrix.cuh"
#include "sequence.cuh"
#include "workspace.cuh"

namespace routing_ext::cuda {

// from nullptr: zero.
template <class Group, class T>
__device__ void copy_array(const Group& group, const T* from, T* to, int size) {
  if (to == nullptr || to == from) return;
  for_each(group, size, [&](int i) { to[i] = from != nullptr ? from[i] : T(0); });
}

// Sizes of the controller, as the device wants them.
struct ControllerPlan {
  int hidden, features, interface;
  bool holds_weights;

  ControllerPlan(const SequenceShape& s, SequenceFit fit)
      : hidden(static_cast<int>(s.hidden)),
        features(static_cast<int>(s.features())),
        interface(static_cast<int>(s.step.interface_size())),
        holds_weights(fit == SequenceFit::weights) {}
};

// From device memory, or from where the block holds them.
template <class T>
struct ControllerWeights {
  T *recurrent, *interface;  // [4H,F], [IF,H]
};
// nullptr if they are not held.
template <class T, class Space>
__host__ __device__ ControllerWeights<T> place_of_weights(Space& space, const ControllerPlan& p) {
  const int64_t hidden = p.holds_weights ? p.hidden : 0;
  T* const recurrent = space.take(4 * hidden * p.features);
  return {recurrent, space.take(hidden * p.interface)};
}
// The weights are there after a barrier.
template <class Group, class T>
__device__ ControllerWeights<const T> held_weights(const Group& group, const ControllerPlan& plan, const T* recurrent,
                                                   const T* interface, const ControllerWeights<T>& place) {
  if (!plan.holds_weights) return {recurrent, interface};
  copy_array(group, recurrent, place.recurrent, 4 * plan.hidden * plan.features);
  copy_array(group, interface, place.interface, plan.interface * plan.hidden);
  return {place.recurrent, place.interface};
}

// ---- forward ---------------------------------------------------------------------------------------------------------------

template <class T>
struct ControllerWork {
  ControllerWeights<T> weights;
  T *seen, *gates, *hidden, *interface;  // [F], [4H], [H], [IF]

  template <class Space>
  __host__ __device__ ControllerWork(Space& space, const ControllerPlan& p) : weights(place_of_weights<T>(space, p)) {
    const bool is_there = p.hidden > 0;
    seen = space.take(is_there ? p.features : 0), gates = space.take(4 * p.hidden), hidden = space.take(p.hidden);
    interface = space.take(is_there ? p.interface : 0);
  }
};

// The controller's part of a step: work.interface and the features' hidden state are there at the end.
template <class Group, class T>
__device__ void controller_step(const Group& group, const ControllerPlan& plan, const SequenceForward<T>& run,
                                const ControllerWeights<const T>& weights, int64_t sample, int64_t time, bool anew,
                                const ControllerWork<T>& work) {
  const int hidden = plan.hidden;
  const T* const before = run.features.at(time)[sample];
  T* const gates = run.gates.at(time + 1)[sample];
  for_each(group, plan.features, [&](int i) { work.seen[i] = anew ? feature_anew(i, hidden, run.initial_read) : before[i]; });
  copy_array<Group, T>(group, gates, work.gates, 4 * hidden);
  group.sync();
  matrix_times_vector(group, 4 * hidden, plan.features, weights.recurrent, static_cast<const T*>(work.seen),
                      [&](int row, T product) { work.gates[row] += product; });
  group.sync();
  const T* const cell_before = run.cell.at(time)[sample];
  T *const cell = run.cell.at(time + 1)[sample], *const tanh_cell = run.tanh_cell.at(time + 1)[sample];
  T* const features = run.features.at(time + 1)[sample];
  for_each(group, hidden, [&](int j) {
    work.hidden[j] = features[j] =
        lstm_unit<T>(work.gates + j, gates + j, hidden, anew ? T(0) : cell_before[j], run.clip, cell[j], tanh_cell[j]);
  });
  copy_array(group, run.interface_bias, work.interface, plan.interface);
  group.sync();
  matrix_times_vector(group, plan.interface, hidden, weights.interface, static_cast<const T*>(work.hidden),
                      [&](int row, T product) { work.interface[row] += product; });
  group.sync();
}

template <class Accessor, class T = typename Accessor::Value>
__global__ void __launch_bounds__(kMaxGroup, 1)
    sequence_kernel(const ControllerPlan controller, const typename Accessor::Plan __grid_constant__ plan, int64_t steps,
                    const SequenceForward<T> __grid_constant__ run) {
  const int64_t sample = blockIdx.x;
  Workspace<T, true> space(nullptr);
  const ControllerWork<T> own(space, controller);
  const typename Accessor::Work work(space, plan);
  const BlockGroup group;
  const ControllerWeights<const T> weights =
      held_weights(group, controller, run.recurrent, run.interface_weights, own.weights);
  group.sync();

  const int64_t end = run.samples.end(sample, steps);
#pragma unroll 1
  for (int64_t time = 0; time < end; ++time) {
    const bool anew = run.samples.at(time).begins(sample);
    if (controller.hidden > 0) controller_step(group, controller, run, weights, sample, time, anew, own);
    const SampleState<const T> before(anew ? run.initial : run.state.at(time, run.link.at(time)), sample);
    const SampleState<T> after(run.state.at(time + 1, run.link.made(time + 1)), sample);
    Accessor::step(group, plan, controller.hidden > 0 ? own.interface : run.interface.at(time)[sample], before, after,
                   SampleState<T>({}, sample), run.features.at(time + 1)[sample] + controller.hidden,
                   run.record.at(time + 1)[sample], work);
  }

  const SampleState<const T> found(run.state.at(end, run.link.at(end)), sample);
  const SampleState<T> last(run.last, sample);
  const int n = plan.locations, writes = plan.writes * n;
  copy_array(group, found.memory, last.memory, n * plan.word);
  copy_array(group, found.usage, last.usage, n);
  copy_array(group, found.precedence, last.precedence, writes);
  copy_array(group, found.link, last.link, writes * n);
  copy_array(group, found.write_weights, last.write_weights, writes);
  copy_array(group, found.read_weights, last.read_weights, plan.reads * n);
  const T* const features = run.features.at(end)[sample];
  copy_array(group, features, run.last_hidden[sample], controller.hidden);
  copy_array(group, features + controller.hidden, run.last_read[sample], controller.features - controller.hidden);
  copy_array<BlockGroup, T>(group, run.cell.at(end)[sample], run.last_cell[sample], controller.hidden);
}

// ---- backward --------------------------------------------------------------------------------------------------------------

template <class T>
struct ControllerBackwardWork {
  ControllerWeights<T> weights;
  T *gates, *interface;  // [4H], [IF]: gradients, before the activations
  T* partials;

  template <class Space>
  __host__ __device__ ControllerBackwardWork(Space& space, const ControllerPlan& p) : weights(place_of_weights<T>(space, p)) {
    const bool is_there = p.hidden > 0;
    gates = space.take(4 * p.hidden), interface = space.take(is_there ? p.interface : 0);
    partials = space.take_partials(is_there ? VectorTimesMatrix<T>::partials_size(p.features) : 0);
  }
};

// From the gradient of the interface, in work.interface, to those of the gates and of the features before.
template <class Group, class T>
__device__ void controller_step_backward(const Group& group, const ControllerPlan& plan, const SequenceBackward<T>& run,
                                         const ControllerWeights<const T>& weights, int64_t sample, int64_t time, bool anew,
                                         const ControllerBackwardWork<T>& work) {
  const int hidden = plan.hidden;
  copy_array(group, static_cast<const T*>(work.interface), run.of_interface.at(time)[sample], plan.interface);
  const VectorTimesMatrix<T> to_hidden(group, plan.interface, hidden, work.interface, weights.interface, work.partials);
  group.sync();
  const T *const of_features = run.of_features.at(time + 1)[sample], *const gates = run.gates.at(time + 1)[sample];
  const T *const cell_before = run.cell.at(time)[sample], *const tanh_cell = run.tanh_cell.at(time + 1)[sample];
  T *const of_cell = run.of_cell[sample], *const of_gates = run.of_gates.at(time)[sample];
  for_each(group, hidden, [&](int j) {
    T grads[4];
    lstm_unit_backward<T>(gates + j, hidden, cell_before[j], tanh_cell[j], of_features[j] + to_hidden.total(j), run.clip, anew,
                          of_cell[j], grads);
#pragma unroll
    for (int k = 0; k < 4; ++k) of_gates[k * hidden + j] = work.gates[k * hidden + j] = grads[k];
  });
  group.sync();
  if (anew) return;  // its features come from nowhere
  const VectorTimesMatrix<T> to_features(group, 4 * hidden, plan.features, work.gates, weights.recurrent, work.partials);
  group.sync();
  T* const of_before = run.of_features.at(time)[sample];
  for_each(group, plan.features, [&](int i) { of_before[i] += to_features.total(i); });
}

// What flows into a state that was left behind, when its sample began anew, is nobody's.
template <class Group, class T>
__device__ void cut_array(const Group& group, T* grad, T* sum, int size) {
  if (grad == nullptr) return;
  for_each(group, size, [&](int i) {
    if (sum != nullptr) sum[i] += grad[i];
    grad[i] = 0;
  });
}

template <class Accessor, class T = typename Accessor::Value>
__global__ void __launch_bounds__(kMaxGroup, 1)
    sequence_backward_kernel(const ControllerPlan controller, const typename Accessor::Plan __grid_constant__ plan,
                             int64_t steps, const SequenceBackward<T> __grid_constant__ run) {
  const int64_t sample = blockIdx.x;
  Workspace<T, true> space(nullptr);
  const ControllerBackwardWork<T> own(space, controller);
  const typename Accessor::Work work(space, plan);
  const BlockGroup group;
  const ControllerWeights<const T> weights =
      held_weights(group, controller, run.recurrent, run.interface_weights, own.weights);
  group.sync();
  const SampleState<T> grad(run.of_state, sample);
  const SampleState<const T> grad_next(grad);
  const int n = plan.locations, writes = plan.writes * n;

  const int64_t end = run.samples.end(sample, steps);
  for (int64_t time = end; time < steps; ++time)
    copy_array<BlockGroup, T>(group, nullptr, run.of_gates.at(time)[sample], 4 * controller.hidden);
  const auto before_step = [&](int64_t time) {
    return SampleState<const T>(
        run.samples.at(time).begins(sample) ? run.initial : run.state.template at<const T>(time, run.link.at(time)), sample);
  };
#pragma unroll 1
  for (int64_t time = end - 1; time >= 0; --time) {
    if (run.link.size > 0 && run.link.every > 1 && (time == end - 1 || (time + 1) % run.link.every == 0)) {
      for (int64_t t = time / run.link.every * run.link.every; t < time; ++t) {
        Accessor::relink(group, plan, before_step(t), run.state.write_weights.at(t + 1)[sample], run.link.made(t + 1)[sample]);
        group.sync();
      }
    }
    const bool anew = run.samples.at(time).begins(sample);
    T* const of_interface = controller.hidden > 0 ? own.interface : run.of_interface.at(time)[sample];
    Accessor::step(group, plan, before_step(time), SampleState<const T>(run.state.template at<const T>(time + 1, {}), sample),
                   run.record.at(time + 1)[sample], grad_next, run.of_features.at(time + 1)[sample] + controller.hidden, grad,
                   of_interface, work);
    group.sync();
    if (controller.hidden > 0) controller_step_backward(group, controller, run, weights, sample, time, anew, own);
    if (anew) {
      cut_array(group, grad.memory, run.of_reset_memory[sample], n * plan.word);
      cut_array<BlockGroup, T>(group, grad.usage, nullptr, n);
      cut_array<BlockGroup, T>(group, grad.precedence, nullptr, writes);
      cut_array<BlockGroup, T>(group, grad.link, nullptr, writes * n);
      cut_array<BlockGroup, T>(group, grad.write_weights, nullptr, writes);
      cut_array<BlockGroup, T>(group, grad.read_weights, nullptr, plan.reads * n);
    }
    group.sync();
  }
}

// ---- launches --------------------------------------------------------------------------------------------------------------

template <class Accessor, class OwnWork>
size_t sequence_shared_bytes(const SequenceShape& shape, SequenceFit fit) {
  WorkspaceSize<typename Accessor::Value> size;
  [[maybe_unused]] const OwnWork own(size, ControllerPlan(shape, fit));
  [[maybe_unused]] const typename Accessor::Work work(size, typename Accessor::Plan(shape.step));
  return size.shared_bytes(true);
}
template <class Accessor, class OwnWork>
SequenceFit fit_of(const SequenceShape& shape) {
  const StepShape& step = shape.step;
  const int64_t rows = larger(step.writes, step.reads) * larger(step.locations, step.word);
  if (!countable(larger(rows, larger(4 * shape.features(), step.interface_size())))) return SequenceFit::none;
  const auto fits = [&](SequenceFit fit) { return sequence_shared_bytes<Accessor, OwnWork>(shape, fit) <= shared_limit(); };
  if (step.batch <= multiprocessors() && fits(SequenceFit::weights)) return SequenceFit::weights;
  return fits(SequenceFit::vectors) ? SequenceFit::vectors : SequenceFit::none;
}
template <class Accessor>
SequenceFit sequence_fit(const SequenceShape& shape) {
  return fit_of<Accessor, ControllerWork<typename Accessor::Value>>(shape);
}
template <class Accessor>
SequenceFit sequence_backward_fit(const SequenceShape& shape) {
  return fit_of<Accessor, ControllerBackwardWork<typename Accessor::Value>>(shape);
}

template <class Accessor, class OwnWork, class Kernel, class Sequence>
cudaError_t launch_pass(Kernel kernel, const SequenceShape& shape, const Sequence& sequence, cudaStream_t stream) {
  if (shape.step.batch == 0) return cudaSuccess;
  const SequenceFit fit = fit_of<Accessor, OwnWork>(shape);
  if (fit == SequenceFit::none || !countable(shape.step.batch)) return cudaErrorInvalidValue;
  const int64_t widest = larger(larger(shape.step.locations, shape.step.word), shape.features());
  return launch(kernel, dim3(static_cast<unsigned>(shape.step.batch)), dim3(group_threads(widest)),
                sequence_shared_bytes<Accessor, OwnWork>(shape, fit), stream, ControllerPlan(shape, fit),
                typename Accessor::Plan(shape.step), shape.steps, sequence);
}
template <class Accessor, class T>
cudaError_t launch_sequence(const SequenceShape& shape, const SequenceForward<T>& sequence, cudaStream_t stream) {
  return launch_pass<Accessor, ControllerWork<T>>(sequence_kernel<Accessor>, shape, sequence, stream);
}
template <class Accessor, class T>
cudaError_t launch_sequence_backward(const SequenceShape& shape, const SequenceBackward<T>& sequence, cudaStream_t stream) {
  return launch_pass<Accessor, ControllerBackwardWork<T>>(sequence_backward_kernel<Accessor>, shape, sequence, stream);
}

}  // namespace routing_ext::cuda
