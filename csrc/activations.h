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

// The normal distribution at x: exp(-x^2 / 2) and the probability of what is below x.
template <typename T, typename Lane>
struct Normal {
  Lane bell, below;

  GAREVLA_INLINE explicit Normal(const Lane& x) {
    const Lane distance = maximum(x, -x);
    bell = exp_nonpositive(T(-0.5) * x * x);
    Lane tail;  // beyond the distance
    if constexpr (sizeof(T) == sizeof(double)) {
      tail = T(0.5) * error_complement(T(0.70710678118654752440) * distance);
    } else {
      // tail / bell is P / Q, a minimax fit of the relative error (5e-9) up to 13.5, where the bell
      // is below every number. With rounding, the quotient is within 3e-7, 6e-8 on average.
      const Lane y = minimum(distance, Lane(T(13.5)));
      Lane p = y * T(4.037038888782263e-03) + T(4.009832441806793e-02);
      p = p * y + T(1.8164660036563873e-01);
      p = p * y + T(4.361472725868225e-01);
      p = p * y + T(0.5);
      Lane q = y * T(1.011921651661396e-02) + T(1.0051880776882172e-01);
      q = q * y + T(4.652772843837738e-01);
      q = q * y + T(1.1958993673324585);
      q = q * y + T(1.6701794862747192);
      q = q * y + T(1);
      tail = bell * p / q;
    }
    below = select_greater(x, Lane(T(0)), T(1) - tail, tail);
  }
};

template <typename T, Activation name>
struct ActivationOf {
  static constexpr T density = T(0.39894228040143267794);  // 1 / sqrt(2 pi)
  // gelu_tanh: 0.5 (1 + tanh(u)) is the sigmoid of 2 u.
  static constexpr T tanh_rate = T(1.59576912160573071176);  // 2 sqrt(2 / pi)
  static constexpr T tanh_cubic = T(0.044715);
  static constexpr T rate = name == Activation::quick_gelu ? T(1.702) : T(1);

  template <typename Lane>
  static GAREVLA_INLINE Lane value(const Lane& x) {
    if constexpr (name == Activation::gelu) {
      return x * Normal<T, Lane>(x).below;
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
      const Normal<T, Lane> normal(x);
      return normal.below + density * x * normal.bell;
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
