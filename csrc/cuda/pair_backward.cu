// The adjoint of the pair operation: a pair's forward pass again, then its gradient.

#include "cuda/pair_tasks.h"

namespace garevla::cuda {
namespace {

template <typename T, typename Shape>
struct BackwardTask {
  static constexpr bool staged = Shape::staged;
  PairChunk<T> chunk;
  ScoreGradients<T> given;
  PairAdjoint<T> to;

  template <typename Stage>
  GAREVLA_INLINE VideoView<T> view(std::int64_t video, Stage& stage) const {
    return stage_video<Shape>(chunk.first, video, stage);
  }

  GAREVLA_INLINE void operator()(const VideoView<T>& view, std::int64_t video,
                                 std::int64_t text) const {
    T workspace[backward_workspace<Shape>];
    const PairSizes size(view.heads, view.frames);
    const std::int64_t texts = chunk.texts, pair = video * texts + text;
    T* own = chunk.products + video * size.rows * texts + text;
    const TextProducts<T> products{own, texts};
    PairState<T> state(size, workspace);
    forward_text(chunk, view, pair, text, products, state);

    T* outside = workspace + size.state();
    const std::int64_t first = video * size.basis * texts + text;
    for (int k = 0; k < size.basis; ++k)
      outside[k] = given.coefficients ? given.coefficients[first + k * texts] : T(0);
    TextSink<T> sink{size, to.rows, own, to.buffer + video * to.rows.total * texts + text, texts};
    const auto gradient =
        pair_adjoint(view, chunk.constants, products, state, given.similarity[pair],
                     given.norm ? given.norm[pair] : T(0), outside, outside + size.basis, sink);
    to.gap_variance[pair] = gradient.gap_variance;
    to.squared_norm[pair] = gradient.squared_norm;
  }
};

}  // namespace

template <typename T>
cudaError_t launch_backward(const PairChunk<T>& chunk, const ScoreGradients<T>& given,
                            const PairAdjoint<T>& to, cudaStream_t stream) {
  const PairSizes size(chunk.first.heads, chunk.first.frames);
  const std::int64_t bytes = video_elements(size) * sizeof(T) + size.frames;
  return with_shape(chunk.first, bytes, [&](auto shape) {
    const BackwardTask<T, decltype(shape)> task{chunk, given, to};
    return launch_staged(task, chunk.videos, chunk.texts, int(bytes), stream);
  });
}

template cudaError_t launch_backward(const PairChunk<float>&, const ScoreGradients<float>&,
                                     const PairAdjoint<float>&, cudaStream_t);
template cudaError_t launch_backward(const PairChunk<double>&, const ScoreGradients<double>&,
                                     const PairAdjoint<double>&, cudaStream_t);

}  // namespace garevla::cuda
