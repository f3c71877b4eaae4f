// The activations of a hidden layer and their derivatives, once for every processor. `Lane` is the
// number type: a vector of hidden units on a CPU, one on a GPU.
#pragma once

#include "tile_types.h"

namespace garevla {
namespace GAREVLA_VARIANT {

// 1 / (1 + exp(-x)), which leaves exp no room to overflow, and 1 minus it.
template <typename T, typename Lane>
struct Sigmoid {
  Lane value, rest;

  GAREVLA_INLINE explicit Sigmoid(const Lane& x) {
    const Lane zero(T(0)), power = exp_nonpositive(minimum(x, -x));
    const Lane large = T(1) / (power + T(1)), small = power * large;
    value = select_greater(x, zero, large, small);
    rest = select_greater(x, zero, small, large);
  }
};

template <typename T, Activation name>
struct ActivationOf {
  static constexpr T root_half = T(0.70710678118654752440);  // sqrt(1 / 2)
  static constexpr T density = T(0.39894228040143267794);    // 1 / sqrt(2 pi)
  // gelu_tanh: 0.5 (1 + tanh(u)) is the sigmoid of 2 u.
  static constexpr T tanh_rate = T(1.59576912160573071176);  // 2 sqrt(2 / pi)
  static constexpr T tanh_cubic = T(0.044715);
  static constexpr T rate = name == Activation::quick_gelu ? T(1.702) : T(1);

  template <typename Lane>
  static GAREVLA_INLINE Lane value(const Lane& x) {
    if constexpr (name == Activation::gelu) {
      return T(0.5) * x * (error_function(root_half * x) + T(1));
    } else if constexpr (name == Activation::gelu_tanh) {
      return x * Sigmoid<T, Lane>(tanh_rate * x * (tanh_cubic * x * x + T(1))).value;
    } else if constexpr (name == Activation::relu) {
      return maximum(x, Lane(T(0)));
    } else {
      return x * Sigmoid<T, Lane>(rate * x).value;
    }
  }

  template <typename Lane>
  static GAREVLA_INLINE Lane slope(const Lane& x) {
    if constexpr (name == Activation::gelu) {
      const Lane bell = density * exp_nonpositive(T(-0.5) * x * x);
      return T(0.5) * (error_function(root_half * x) + T(1)) + x * bell;
    } else if constexpr (name == Activation::gelu_tanh) {
      const Lane square = x * x;
      const Sigmoid<T, Lane> gate(tanh_rate * x * (tanh_cubic * square + T(1)));
      const Lane inner = tanh_rate * (T(3) * tanh_cubic * square + T(1));
      return gate.value + x * gate.value * gate.rest * inner;
    } else if constexpr (name == Activation::relu) {
      return select_greater(x, Lane(T(0)), Lane(T(1)), Lane(T(0)));
    } else {
      const Sigmoid<T, Lane> gate(rate * x);
      return gate.value * (rate * x * gate.rest + T(1));
    }
  }
};

}  // namespace GAREVLA_VARIANT
}  // namespace garevla
