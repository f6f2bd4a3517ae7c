// Single elements of what policy gradients on tables compute, and of its gradients. Torch-free.
#pragma once
#include <cfloat>

#ifndef ROUTING_EXT_HOST_DEVICE
#ifdef __CUDACC__
#define ROUTING_EXT_HOST_DEVICE __host__ __device__
#else
#define ROUTING_EXT_HOST_DEVICE
#endif
#endif

namespace routing_ext {

template <class T>
constexpr T kEpsilon = sizeof(T) == sizeof(float) ? static_cast<T>(FLT_EPSILON) : static_cast<T>(DBL_EPSILON);

// A preference, to which the probability is in proportion: never quite zero.
template <class T>
ROUTING_EXT_HOST_DEVICE inline T shifted_preference(T preference, T least) {
  return preference - least + static_cast<T>(1e-6);
}

// The probability whose logarithm a state has.
template <class T>
ROUTING_EXT_HOST_DEVICE inline T clamped_prob(T prob) {
  constexpr T eps = kEpsilon<T>;
  return prob < eps ? eps : prob > 1 - eps ? 1 - eps : prob;
}

// The gradient of a probability, of the gradient of the logarithm in the state.
template <class T>
ROUTING_EXT_HOST_DEVICE inline T gradient_of_prob(T grad, T prob) {
  constexpr T eps = kEpsilon<T>;
  return prob >= eps && prob <= 1 - eps ? grad / prob : static_cast<T>(0);
}

// The weighted policy learner's loss of a decision, and its gradients: of the log-probability and of the value.
template <class T>
struct WplTerms {
  T loss, of_policy, of_value;
};

template <class T>
ROUTING_EXT_HOST_DEVICE inline WplTerms<T> wpl_terms(T policy, T value, T returned) {
  const T gradient = returned - value;
  const T difference = policy - policy * (gradient < 0 ? 1 + gradient : 2 - gradient);
  return {difference * difference + gradient * gradient, 2 * difference, -2 * gradient};
}

// A decision's own reward, of the one that its choice got; count: how many decisions its sample made.
template <class T>
ROUTING_EXT_HOST_DEVICE inline T own_reward(T given, T count, T final_reward, bool normalise, bool is_last) {
  const T share = given / count, size = final_reward < 0 ? -final_reward : final_reward;
  const T reward = normalise ? share * size : share;
  return is_last ? reward + final_reward : reward;
}

}  // namespace routing_ext
