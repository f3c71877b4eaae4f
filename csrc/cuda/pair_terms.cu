// The forward pass of pair_similarity, pair_terms and pair_statistics.

#include "cuda/pair_tasks.h"

namespace garevla::cuda {
namespace {

template <typename T, typename Shape>
struct ForwardTask {
  static constexpr bool staged = Shape::staged;
  PairChunk<T> chunk;
  PairScores<T> to;

  template <typename Stage>
  GAREVLA_INLINE VideoView<T> view(std::int64_t video, Stage& stage) const {
    return stage_video<Shape>(chunk.view, video, stage);
  }

  GAREVLA_INLINE void operator()(const VideoView<T>& view, std::int64_t video,
                                 std::int64_t text) const {
    T workspace[forward_workspace<Shape>];
    const PairSizes size(view.heads, view.frames);
    const std::int64_t texts = chunk.texts, pair = video * texts + text;
    PairState<T> state(size, workspace);
    forward_text(chunk, view, pair, text,
                 {chunk.products + video * size.rows * texts + text, texts}, state);
    to.similarity[pair] = state.similarity;
    if (to.norm) to.norm[pair] = state.increment_norm;
    if (to.coefficients) {
      T* coefficients = to.coefficients + video * size.basis * texts + text;
      for (int k = 0; k < size.basis; ++k) coefficients[k * texts] = state.coefficients[k];
    }
  }
};

}  // namespace

template <typename T>
cudaError_t launch_forward(const PairChunk<T>& chunk, const PairScores<T>& to,
                           cudaStream_t stream) {
  const PairSizes size(chunk.view.heads, chunk.view.frames);
  const std::int64_t bytes = staged_bytes<T>(size);
  return with_shape(chunk.view, bytes, [&](auto shape) {
    const ForwardTask<T, decltype(shape)> task{chunk, to};
    return launch_staged(task, chunk.videos, chunk.texts, int(bytes), stream);
  });
}

template cudaError_t launch_forward(const PairChunk<float>&, const PairScores<float>&,
                                    cudaStream_t);
template cudaError_t launch_forward(const PairChunk<double>&, const PairScores<double>&,
                                    cudaStream_t);

}  // namespace garevla::cuda
