// A group, one block or a cluster of some, takes one sample from its first step to its last, or back: controller and accessor,
// phase by phase. What the kernels want of an accessor is a type:
//   Value           float or double
//   Plan            sizes and options, from a StepShape
//   Work            the arrays of a step
//   step(...)       of one sample; the forward pass' has a barrier at the end
//   relink(...)     makes a link again; in the backward pass
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cluster.cuh"
#include "lstm.cuh"
#include "matrix.cuh"
#include "norm.cuh"
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
  bool normalises, holds_weights;

  ControllerPlan(const SequenceShape& s, SequenceFit fit)
      : hidden(static_cast<int>(s.hidden)),
        features(static_cast<int>(s.features())),
        interface(static_cast<int>(s.step.interface_size())),
        normalises(hidden > 0 && s.step.options.normalises),
        holds_weights(fit == SequenceFit::weights) {}
};

// Where a block holds its rows of the weights; nullptr if it does not.
template <class T>
struct WeightsPlace {
  T *recurrent, *interface;

  template <class Space>
  __host__ __device__ WeightsPlace(Space& space, const ControllerPlan& p) {
    const bool held = p.holds_weights;
    recurrent = space.take_own(held ? most_rows_of_block(4 * p.hidden, space.blocks()) * p.features : 0);
    interface = space.take_own(held ? most_rows_of_block(p.interface, space.blocks()) * p.hidden : 0);
  }
};
// The rows of the weights that a block takes: from device memory, or from where it holds them, after a barrier.
template <class T>
struct ControllerWeights {
  RowsOfBlock<const T> recurrent, interface;  // of [4H,F] and [IF,H]

  template <class Group>
  __device__ ControllerWeights(const Group& group, const ControllerPlan& p, const T* recurrent_, const T* interface_,
                               const WeightsPlace<T>& place)
      : recurrent(group, 4 * p.hidden, p.features, recurrent_), interface(group, p.interface, p.hidden, interface_) {
    if (!p.holds_weights) return;
    hold(group.in_block(), recurrent, place.recurrent);
    hold(group.in_block(), interface, place.interface);
  }

 private:
  __device__ static void hold(const BlockGroup& group, RowsOfBlock<const T>& rows, T* place) {
    copy_array(group, rows.data, place, rows.count * rows.cols);
    rows.data = place;
  }
};

// ---- forward ---------------------------------------------------------------------------------------------------------------

template <class T>
struct ControllerWork {
  WeightsPlace<T> weights;
  T *seen, *gates, *hidden, *interface;  // [F], of each block; [4H], [H], [IF]
  T* norm_partials;

  template <class Space>
  __host__ __device__ ControllerWork(Space& space, const ControllerPlan& p) : weights(space, p) {
    const bool is_there = p.hidden > 0;
    seen = space.take_own(is_there ? p.features : 0), gates = space.take(4 * p.hidden), hidden = space.take(p.hidden);
    interface = space.take(is_there ? p.interface : 0);
    norm_partials = space.take_partials(p.normalises ? norm_partials_size() : 0);
  }
};

// The controller's part of a step: work.interface and the features' hidden state are there at the end.
template <class Group, class T>
__device__ void controller_step(const Group& group, const ControllerPlan& plan, const SequenceForward<T>& run,
                                const ControllerWeights<T>& weights, int64_t sample, int64_t time, bool anew,
                                const ControllerWork<T>& work) {
  const int hidden = plan.hidden;
  const T* const before = run.features.at(time)[sample];
  T* const gates = run.gates.at(time + 1)[sample];
  for_each(group.in_block(), plan.features,
           [&](int i) { work.seen[i] = anew ? feature_anew(i, hidden, run.initial_read) : before[i]; });
  copy_array<Group, T>(group, gates, work.gates, 4 * hidden);
  group.sync();
  matrix_times_vector(group.in_block(), weights.recurrent, static_cast<const T*>(work.seen),
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
  matrix_times_vector(group.in_block(), weights.interface, static_cast<const T*>(work.hidden),
                      [&](int row, T product) { work.interface[row] += product; });
  group.sync();
  if (!plan.normalises) return;
  normalise(group, plan.interface, run.epsilon, run.norm, run.norm_bias, work.interface, run.normed.at(time + 1)[sample],
            run.scale.at(time + 1)[sample], work.norm_partials);
  group.sync();
}

template <class Accessor, class Group, class T>
__device__ void take(const ControllerPlan& controller, const typename Accessor::Plan& plan, int64_t steps,
                     const SequenceForward<T>& run) {
  const Group group;
  const int64_t sample = blockIdx.x / static_cast<unsigned>(group.blocks());
  Workspace<T, true, Group> space(nullptr, group);
  const ControllerWork<T> own(space, controller);
  const typename Accessor::Work work(space, plan);
  const ControllerWeights<T> weights(group, controller, run.recurrent, run.interface_weights, own.weights);
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
  copy_array<Group, T>(group, run.cell.at(end)[sample], run.last_cell[sample], controller.hidden);
}

// ---- backward --------------------------------------------------------------------------------------------------------------

template <class T>
struct ControllerBackwardWork {
  WeightsPlace<T> weights;
  T *gates, *interface;  // [4H], [IF]: gradients, before the activations
  T *partials, *norm_partials;

  template <class Space>
  __host__ __device__ ControllerBackwardWork(Space& space, const ControllerPlan& p) : weights(space, p) {
    const bool is_there = p.hidden > 0;
    gates = space.take(4 * p.hidden), interface = space.take(is_there ? p.interface : 0);
    partials = space.take_own_partials(is_there ? VectorTimesMatrix<T>::partials_size(p.features, space.blocks()) : 0);
    norm_partials = space.take_partials(p.normalises ? norm_partials_size() : 0);
  }
};

// From the gradient of the interface, in work.interface, to those of the gates and of the features before.
template <class Group, class T>
__device__ void controller_step_backward(const Group& group, const ControllerPlan& plan, const SequenceBackward<T>& run,
                                         const ControllerWeights<T>& weights, int64_t sample, int64_t time, bool anew,
                                         const ControllerBackwardWork<T>& work) {
  const int hidden = plan.hidden;
  if (plan.normalises) {
    normalise_backward(group, plan.interface, run.norm, run.normed.at(time + 1)[sample], run.scale.at(time + 1)[sample],
                       work.interface, run.of_norm.at(time)[sample], run.of_norm_bias.at(time)[sample], work.norm_partials);
    group.sync();
  }
  copy_array(group, static_cast<const T*>(work.interface), run.of_interface.at(time)[sample], plan.interface);
  const VectorTimesMatrix<T> to_hidden(group, work.interface, weights.interface, work.partials);
  group.sync();
  const T *const of_features = run.of_features.at(time + 1)[sample], *const gates = run.gates.at(time + 1)[sample];
  const T *const cell_before = run.cell.at(time)[sample], *const tanh_cell = run.tanh_cell.at(time + 1)[sample];
  T *const of_cell = run.of_cell[sample], *const of_gates = run.of_gates.at(time)[sample];
  for_each(group, hidden, [&](int j) {
    T grads[4];
    lstm_unit_backward<T>(gates + j, hidden, cell_before[j], tanh_cell[j], of_features[j] + to_hidden.total(group, j),
                          run.clip, anew, of_cell[j], grads);
#pragma unroll
    for (int k = 0; k < 4; ++k) of_gates[k * hidden + j] = work.gates[k * hidden + j] = grads[k];
  });
  group.sync();
  if (anew) return;  // its features come from nowhere
  const VectorTimesMatrix<T> to_features(group, work.gates, weights.recurrent, work.partials);
  group.sync();
  T* const of_before = run.of_features.at(time)[sample];
  for_each(group, plan.features, [&](int i) { of_before[i] += to_features.total(group, i); });
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

template <class Accessor, class Group, class T>
__device__ void take(const ControllerPlan& controller, const typename Accessor::Plan& plan, int64_t steps,
                     const SequenceBackward<T>& run) {
  const Group group;
  const int64_t sample = blockIdx.x / static_cast<unsigned>(group.blocks());
  Workspace<T, true, Group> space(nullptr, group);
  const ControllerBackwardWork<T> own(space, controller);
  const typename Accessor::Work work(space, plan);
  const ControllerWeights<T> weights(group, controller, run.recurrent, run.interface_weights, own.weights);
  group.sync();
  const SampleState<T> grad(run.of_state, sample);
  const SampleState<const T> grad_next(grad);
  const int n = plan.locations, writes = plan.writes * n;

  const int64_t end = run.samples.end(sample, steps);
  for (int64_t time = end; time < steps; ++time) {
    copy_array<Group, T>(group, nullptr, run.of_gates.at(time)[sample], 4 * controller.hidden);
    copy_array<Group, T>(group, nullptr, run.of_norm.at(time)[sample], controller.interface);
    copy_array<Group, T>(group, nullptr, run.of_norm_bias.at(time)[sample], controller.interface);
  }
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
      cut_array<Group, T>(group, grad.usage, nullptr, n);
      cut_array<Group, T>(group, grad.precedence, nullptr, writes);
      cut_array<Group, T>(group, grad.link, nullptr, writes * n);
      cut_array<Group, T>(group, grad.write_weights, nullptr, writes);
      cut_array<Group, T>(group, grad.read_weights, nullptr, plan.reads * n);
    }
    group.sync();
  }
}

// ---- launches --------------------------------------------------------------------------------------------------------------

template <class Accessor_, template <class> class Sequence_, template <class> class Work_>
struct Pass {
  using Accessor = Accessor_;
  using T = typename Accessor::Value;
  using Sequence = Sequence_<T>;
  using Work = Work_<T>;
};
template <class Accessor>
using ForwardPass = Pass<Accessor, SequenceForward, ControllerWork>;
template <class Accessor>
using BackwardPass = Pass<Accessor, SequenceBackward, ControllerBackwardWork>;

template <class Pass, class Group>
__global__ void __launch_bounds__(kMaxGroup, 1)
    pass_kernel(const ControllerPlan controller, const typename Pass::Accessor::Plan __grid_constant__ plan, int64_t steps,
                const typename Pass::Sequence __grid_constant__ sequence) {
  if constexpr (kRunsHere<Group>) {
    take<typename Pass::Accessor, Group>(controller, plan, steps, sequence);
  } else {
    __trap();
  }
}

// The grid of a pass in which so many blocks take a sample.
template <class Pass>
LaunchGrid sequence_grid(const SequenceShape& shape, int blocks, SequenceFit fit) {
  WorkspaceSize<typename Pass::T> size(blocks);
  [[maybe_unused]] const typename Pass::Work own(size, ControllerPlan(shape, fit));
  [[maybe_unused]] const typename Pass::Accessor::Work work(size, typename Pass::Accessor::Plan(shape.step));
  const int64_t widest = larger(larger(shape.step.locations, shape.step.word), shape.features());
  return {dim3(static_cast<unsigned>(shape.step.batch * blocks)), dim3(group_threads(widest)), size.shared_bytes(true),
          static_cast<unsigned>(blocks)};
}
template <class Pass>
SequenceFit fit_of(const SequenceShape& shape, int blocks) {
  const StepShape& step = shape.step;
  const int64_t rows = larger(step.writes, step.reads) * larger(step.locations, step.word);
  if (!countable(larger(rows, larger(4 * shape.features(), step.interface_size()))) || !countable(step.batch * blocks)) {
    return SequenceFit::none;
  }
  const auto fits = [&](SequenceFit fit) {
    const LaunchGrid grid = sequence_grid<Pass>(shape, blocks, fit);
    if (grid.shared_bytes > shared_limit()) return false;
    return blocks == 1 || step.batch == 0 || step.batch <= clusters_at_once(pass_kernel<Pass, ClusterGroup>, grid);
  };
  if (step.batch * blocks <= multiprocessors() && fits(SequenceFit::weights)) return SequenceFit::weights;
  return fits(SequenceFit::vectors) ? SequenceFit::vectors : SequenceFit::none;
}
template <class Pass>
cudaError_t launch_pass(const SequenceShape& shape, SequenceWay way, const typename Pass::Sequence& sequence,
                        cudaStream_t stream) {
  if (shape.step.batch == 0) return cudaSuccess;
  return launch(way.blocks == 1 ? pass_kernel<Pass, BlockGroup> : pass_kernel<Pass, ClusterGroup>,
                sequence_grid<Pass>(shape, way.blocks, way.fit), stream, ControllerPlan(shape, way.fit),
                typename Pass::Accessor::Plan(shape.step), shape.steps, sequence);
}

}  // namespace routing_ext::cuda
