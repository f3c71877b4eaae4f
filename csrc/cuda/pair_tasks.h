// What the pair kernels share: a video's factors at hand, a text's products, the choice of a capacity.
#pragma once

#include <type_traits>

#include "cuda/launch.h"

namespace garevla::cuda {

using scalar::pair_adjoint;
using scalar::pair_forward;
using scalar::PairSizes;
using scalar::PairState;
using scalar::statistics_pair_gradient;

template <typename T>
inline std::int64_t video_elements(const PairSizes& size) {
  auto square = [](std::int64_t n) { return n * n; };
  return 2 * size.attention + square(size.attention) + square(size.hidden) + square(size.basis) +
         square(size.frames) + std::int64_t(size.basis) * size.frames;
}

// The mask comes last, for its alignment.
template <typename T, typename Stage>
GAREVLA_INLINE VideoView<T> stage_video(const VideoView<T>& first, std::int64_t video, Stage& stage) {
  const PairSizes size(first.heads, first.frames);
  auto at = [&](const T* array, int count) { return stage(array + video * count, count); };
  VideoView<T> view;
  view.heads = first.heads;
  view.frames = first.frames;
  view.key_offset = at(first.key_offset, size.attention);
  view.key_bias = at(first.key_bias, size.attention);
  view.value_gram = at(first.value_gram, size.attention * size.attention);
  view.hidden_gram = at(first.hidden_gram, size.hidden * size.hidden);
  view.basis_gram = at(first.basis_gram, size.basis * size.basis);
  view.frame_gram = at(first.frame_gram, size.frames * size.frames);
  view.basis_frame = at(first.basis_frame, size.basis * size.frames);
  view.frame_mask = stage(first.frame_mask + video * size.frames, size.frames);
  return view;
}

// One text's products with a video's rows.
template <typename T>
struct TextProducts {
  const T* first;
  std::int64_t texts;
  GAREVLA_INLINE T operator()(int row) const { return first[row * texts]; }
};

// Takes what the adjoint of one text of one video leaves.
template <typename T>
struct TextSink {
  PairSizes size;
  AdjointRows rows;
  T* products;
  T* buffer;
  std::int64_t texts;

  GAREVLA_INLINE void store(int first, int count, T weight, const T* x) {
    for (int k = 0; k < count; ++k) buffer[(first + k) * texts] = weight * x[k];
  }
  GAREVLA_INLINE void product(int row, T gradient) { products[row * texts] = gradient; }
  // The gradient of key_offset is that of the keys' products, but for its sign.
  GAREVLA_INLINE void key(int k, T grad_bias, T) { buffer[(rows.key_bias + k) * texts] = grad_bias; }
  GAREVLA_INLINE void value_gram(T weight, const T* x) {
    store(rows.attention, size.attention, T(1), x);
    store(rows.weighted_attention, size.attention, weight, x);
  }
  GAREVLA_INLINE void hidden_gram(T weight, const T* x) {
    store(rows.hidden, size.hidden, T(1), x);
    store(rows.weighted_hidden, size.hidden, weight, x);
  }
  GAREVLA_INLINE void basis_gram(T weight, const T* x) {
    store(rows.coefficients, size.basis, T(1), x);
    store(rows.weighted_coefficients, size.basis, weight, x);
  }
  GAREVLA_INLINE void frame_gram(T weight, const T* x) {
    store(rows.pool, size.frames, T(1), x);
    store(rows.weighted_pool, size.frames, weight, x);
  }
  GAREVLA_INLINE void basis_frame(T weight, const T* x, const T*) {
    store(rows.scored_coefficients, size.basis, weight, x);
  }
};

// A thread's arrays, in local memory, for H*F and F up to a capacity.
constexpr int forward_workspace(int capacity) { return 8 * capacity + 8; }
constexpr int backward_workspace(int capacity) { return 12 * capacity + 12; }

template <typename T>
GAREVLA_INLINE void forward_text(const PairChunk<T>& chunk, const VideoView<T>& view, std::int64_t pair,
                                 std::int64_t text, const TextProducts<T>& products, PairState<T>& state) {
  pair_forward(view, chunk.constants, chunk.gap_variance[pair], chunk.squared_norm[text], products, state);
}

// Body(capacity, staged) is called with compile-time constants; shared memory is used where it suffices.
template <typename Body>
cudaError_t with_capacity(const PairSizes& size, std::int64_t shared_bytes, const Body& body) {
  constexpr std::int64_t most_shared = 48 << 10;
  using std::integral_constant;
  const int needed = size.attention > size.frames ? size.attention : size.frames;
  if (needed <= 16) return body(integral_constant<int, 16>{}, std::true_type{});
  if (needed <= 64 && shared_bytes <= most_shared)
    return body(integral_constant<int, 64>{}, std::true_type{});
  if (needed <= 64) return body(integral_constant<int, 64>{}, std::false_type{});
  if (needed <= 256) return body(integral_constant<int, 256>{}, std::false_type{});
  return body(integral_constant<int, largest_capacity>{}, std::false_type{});
}

}  // namespace garevla::cuda
