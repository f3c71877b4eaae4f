// The adjoint of a chunk's pairs: a pair's forward pass again, then its gradient.
#pragma once

#include "cuda/pair_tasks.h"

namespace garevla::cuda {

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

// Length of a thread's workspace.
template <typename Shape>
inline constexpr int backward_workspace =
    PairSizes(1, Shape::capacity).state() + PairSizes(1, Shape::capacity).basis +
    PairSizes(1, Shape::capacity).adjoint();

// ScoreGradients hands out the gradients of the pairs' scores, from what it stages of a video:
//   view(video, basis, stage)
//   of_pair(view, chunk, size, video, text, state, similarity, norm, coefficients, scratch)
// where coefficients and scratch have K elements.
template <typename T, typename Shape, typename ScoreGradients>
struct AdjointTask {
  static constexpr bool staged = Shape::staged;
  PairChunk<T> chunk;
  ScoreGradients score_gradients;
  PairAdjoint<T> to;

  struct View {
    typename ScoreGradients::View gradients;
    VideoView<T> video;
  };

  template <typename Stage>
  GAREVLA_INLINE View view(std::int64_t video, Stage& stage) const {
    const int basis = PairSizes(chunk.view.heads, chunk.view.frames).basis;
    View view;
    view.gradients = score_gradients.view(video, basis, stage);
    view.video = stage_video<Shape>(chunk.view, video, stage);
    return view;
  }

  GAREVLA_INLINE void operator()(const View& view, std::int64_t video, std::int64_t text) const {
    T workspace[backward_workspace<Shape>];
    const PairSizes size(view.video.heads, view.video.frames);
    const std::int64_t texts = chunk.texts, pair = video * texts + text;
    T* products_of_text = chunk.products + video * size.rows * texts + text;
    const TextProducts<T> products{products_of_text, texts};
    PairState<T> state(size, workspace);
    forward_text(chunk, view.video, pair, text, products, state);

    T* grad_coefficients = workspace + size.state();
    T* scratch = grad_coefficients + size.basis;
    T grad_similarity, grad_norm;
    score_gradients.of_pair(view.gradients, chunk, size, video, text, state, grad_similarity,
                            grad_norm, grad_coefficients, scratch);
    TextSink<T> sink{size, to.rows, products_of_text,
                     to.buffer + video * to.rows.total * texts + text, texts};
    const auto gradient =
        scalar::pair_adjoint(view.video, chunk.constants, products, state, grad_similarity,
                             grad_norm, grad_coefficients, scratch, sink);
    to.gap_variance[pair] = gradient.gap_variance;
    to.squared_norm[pair] = gradient.squared_norm;
  }
};

// staged_elements: how many score_gradients stages of a video.
template <typename T, typename ScoreGradients>
cudaError_t launch_adjoint(const PairChunk<T>& chunk, const ScoreGradients& score_gradients,
                           std::int64_t staged_elements, const PairAdjoint<T>& to,
                           cudaStream_t stream) {
  const PairSizes size(chunk.view.heads, chunk.view.frames);
  const std::int64_t bytes = staged_bytes<T>(size, staged_elements);
  return with_shape(chunk.view, bytes, [&](auto shape) {
    const AdjointTask<T, decltype(shape), ScoreGradients> task{chunk, score_gradients, to};
    return launch_staged(task, chunk.videos, chunk.texts, int(bytes), stream);
  });
}

}  // namespace garevla::cuda
