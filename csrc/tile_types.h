// What the kernels of a tile of pairs are given (garevla/ops/hidden/tiles.py): b videos, a texts,
// H hidden units, D features. Arrays are row-major; a pair's vector is contiguous.
#pragma once

#include "philox.h"

namespace garevla {

enum class Activation { gelu, gelu_tanh, silu, relu, quick_gelu };

// Calls body(constant) with the activation as a constant expression.
template <Activation value>
struct ActivationConstant {
  static constexpr Activation activation = value;
};
template <typename Body>
auto with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::gelu:
      return body(ActivationConstant<Activation::gelu>{});
    case Activation::gelu_tanh:
      return body(ActivationConstant<Activation::gelu_tanh>{});
    case Activation::silu:
      return body(ActivationConstant<Activation::silu>{});
    case Activation::relu:
      return body(ActivationConstant<Activation::relu>{});
    default:
      return body(ActivationConstant<Activation::quick_gelu>{});
  }
}

template <typename T>
struct GapTile {
  std::int64_t videos, texts, size;
  const T* coefficients;  // (b, a)
  const T* video;         // (b, H)
  const T* text;          // (a, H)
  const T* shift;         // (H)
  Activation activation;
  Dropout<T> dropout;
};

// Sums that a tile's pairs are added to.
template <typename T>
struct GapGradient {
  T* coefficients;  // (b, a) written
  T* video;         // (b, H)
  T* text;          // (a, H)
  T* shift;         // (H)
};

template <typename T>
struct AttentionTile {
  std::int64_t videos, texts, size;
  T eps;
  Dropout<T> dropout;
};

// Δ (b, a, D) and what it is multiplied with.
template <typename T>
struct Increments {
  std::int64_t videos, texts, size;
  const T* increments;  // (b, a, D)
  const T* text;        // (a, D)
};

template <typename T>
struct Contraction {
  T* text_product;  // (b, a) written
  T* norm;          // (b, a) written
  // Mean over the texts and sum of squared deviations, from zeros; null where they are not wanted.
  T* sum;      // (b, D)
  T* squares;  // (b, D)
};

template <typename T>
struct IncrementGradient {
  const T* text_product;  // (b, a)
  const T* norm;          // (b, a)
  const T* shift;         // (b, D), or null, as the next two
  const T* slope;         // (b, D)
  const T* center;        // (b, D)
};

}  // namespace garevla
