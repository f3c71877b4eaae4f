// What the pair kernels share: a video's factors at hand, a text's products, the choice of a
// kernel.
#pragma once

#include "cuda/launch.h"

namespace garevla::cuda {

using scalar::pair_forward;
using scalar::PairSizes;
using scalar::PairState;

// What a kernel knows of the sizes when it is compiled: H*F and F at most `most`, or all, which
// keeps a thread's arrays in registers.
template <int most, bool in_shared>
struct UpTo {
  static constexpr int capacity = most;
  static constexpr bool staged = in_shared;
  static GAREVLA_INLINE int heads(int heads) { return heads; }
  static GAREVLA_INLINE int frames(int frames) { return frames; }
};
template <int num_heads, int num_frames>
struct Exactly {
  static constexpr int capacity = num_heads * num_frames;
  static constexpr bool staged = true;
  static GAREVLA_INLINE int heads(int) { return num_heads; }
  static GAREVLA_INLINE int frames(int) { return num_frames; }
};

// Of a video's factors, and of as many more elements of type T.
template <typename T>
std::int64_t staged_bytes(const PairSizes& size, std::int64_t more_elements = 0) {
  auto square = [](std::int64_t n) { return n * n; };
  const std::int64_t elements = 2 * size.attention + square(size.attention) + square(size.hidden) +
                                square(size.basis) + square(size.frames) +
                                std::int64_t(size.basis) * size.frames + more_elements;
  return elements * std::int64_t(sizeof(T)) + size.frames;
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

// Length of a thread's workspace.
template <typename Shape>
inline constexpr int forward_workspace = PairSizes(1, Shape::capacity).state();

template <typename T>
GAREVLA_INLINE void forward_text(const PairChunk<T>& chunk, const VideoView<T>& view,
                                 std::int64_t pair, std::int64_t text,
                                 const TextProducts<T>& products, PairState<T>& state) {
  pair_forward(view, chunk.constants, chunk.gap_variance[pair], chunk.squared_norm[text], products,
               state);
}

// Bytes of shared memory that every GPU gives a block unasked.
constexpr std::int64_t largest_staged_bytes = 48 << 10;

// Calls body(shape), the published shape having a kernel of its own. Shared memory is used where it
// suffices. Every kernel costs build time, and double precision is for checks: fewer do.
template <typename T, typename Body>
cudaError_t with_shape(const VideoView<T>& video, std::int64_t shared_bytes, const Body& body) {
  const int attention = video.heads * video.frames;
  const int needed = attention > video.frames ? attention : video.frames;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (video.heads == 1 && video.frames == 12) return body(Exactly<1, 12>{});
    if (needed <= 16) return body(UpTo<16, true>{});
    if (needed <= 64 && shared_bytes <= largest_staged_bytes) return body(UpTo<64, true>{});
    if (needed <= 256) return body(UpTo<256, false>{});
  } else {
    if (needed <= 64) return body(UpTo<64, false>{});
  }
  return body(UpTo<largest_capacity, false>{});
}

}  // namespace garevla::cuda
