// What the pair kernels share: a video's factors at hand, a text's products, the choice of a
// kernel.
#pragma once

#include "cuda/launch.h"

namespace garevla::cuda {

using scalar::pair_adjoint;
using scalar::pair_forward;
using scalar::PairSizes;
using scalar::PairState;
using scalar::statistics_pair_gradient;

// What a kernel knows of the sizes when it is compiled: H*F and F at most `most`, or all, which
// keeps a thread's arrays in registers.
template <int most, bool in_shared>
struct UpTo {
  static constexpr int capacity = most;
  static constexpr bool staged = in_shared;
  static GAREVLA_INLINE int heads(int given) { return given; }
  static GAREVLA_INLINE int frames(int given) { return given; }
};
template <int num_heads, int num_frames>
struct Exactly {
  static constexpr int capacity = num_heads * num_frames;
  static constexpr bool staged = true;
  static GAREVLA_INLINE int heads(int) { return num_heads; }
  static GAREVLA_INLINE int frames(int) { return num_frames; }
};

inline std::int64_t video_elements(const PairSizes& size) {
  auto square = [](std::int64_t n) { return n * n; };
  return 2 * size.attention + square(size.attention) + square(size.hidden) + square(size.basis) +
         square(size.frames) + std::int64_t(size.basis) * size.frames;
}

// The mask comes last, for its alignment.
template <typename Shape, typename T, typename Stage>
GAREVLA_INLINE VideoView<T> stage_video(const VideoView<T>& first, std::int64_t video,
                                        Stage& stage) {
  VideoView<T> view;
  view.heads = Shape::heads(first.heads);
  view.frames = Shape::frames(first.frames);
  const PairSizes size(view.heads, view.frames);
  auto at = [&](const T* array, int count) { return stage(array + video * count, count); };
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
  GAREVLA_INLINE void key(int k, T grad_bias, T) {
    buffer[(rows.key_bias + k) * texts] = grad_bias;
  }
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

// Lengths of a thread's workspace.
template <typename Shape>
inline constexpr int forward_workspace = PairSizes(1, Shape::capacity).state();
template <typename Shape>
inline constexpr int backward_workspace =
    PairSizes(1, Shape::capacity).state() + PairSizes(1, Shape::capacity).basis +
    PairSizes(1, Shape::capacity).adjoint();

template <typename T>
GAREVLA_INLINE void forward_text(const PairChunk<T>& chunk, const VideoView<T>& view,
                                 std::int64_t pair, std::int64_t text,
                                 const TextProducts<T>& products, PairState<T>& state) {
  pair_forward(view, chunk.constants, chunk.gap_variance[pair], chunk.squared_norm[text], products,
               state);
}

// Calls body(shape), the published shape having a kernel of its own. Shared memory is used where it
// suffices. Every kernel costs build time, and double precision is for checks: fewer do.
template <typename T, typename Body>
cudaError_t with_shape(const VideoView<T>& video, std::int64_t shared_bytes, const Body& body) {
  constexpr std::int64_t most_shared = 48 << 10;
  const int attention = video.heads * video.frames;
  const int needed = attention > video.frames ? attention : video.frames;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (video.heads == 1 && video.frames == 12) return body(Exactly<1, 12>{});
    if (needed <= 16) return body(UpTo<16, true>{});
    if (needed <= 64 && shared_bytes <= most_shared) return body(UpTo<64, true>{});
    if (needed <= 256) return body(UpTo<256, false>{});
  } else {
    if (needed <= 64) return body(UpTo<64, false>{});
  }
  return body(UpTo<largest_capacity, false>{});
}

}  // namespace garevla::cuda
