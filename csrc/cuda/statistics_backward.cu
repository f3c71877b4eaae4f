// The adjoint of the pair operation under the streaming loss: the gradient of a pair's scores is a
// closed form of the saved statistics.

#include "cuda/pair_tasks.h"

namespace garevla::cuda {
namespace {

template <typename T>
struct StatisticsView {
  VideoView<T> video;
  StatisticsGradient<T> given;
};

template <typename T, typename Shape>
struct StatisticsTask {
  static constexpr bool staged = Shape::staged;
  PairChunk<T> chunk;
  StatisticsGradients<T> given;
  PairAdjoint<T> to;

  template <typename Stage>
  GAREVLA_INLINE StatisticsView<T> view(std::int64_t video, Stage& stage) const {
    const int basis = PairSizes(chunk.first.heads, chunk.first.frames).basis;
    StatisticsView<T> view;
    view.given.logit_scale = *given.logit_scale;
    view.given.column_logsumexp = given.column_logsumexp[video];
    view.given.grad_column_logsumexp = given.grad_column_logsumexp[video];
    view.given.row_logsumexp = given.row_logsumexp;
    view.given.grad_row_logsumexp = given.grad_row_logsumexp;
    view.given.grad_target = given.grad_target;
    view.given.norm_mean = given.norm_mean;
    view.given.norm_slope = given.norm_slope;
    view.given.coefficient_mean = stage(given.coefficient_mean + video * basis, basis);
    view.given.mean_slope = stage(given.mean_slope + video * basis, basis);
    view.given.covariance_slope =
        stage(given.covariance_slope + video * basis * basis, basis * basis);
    view.video = stage_video<Shape>(chunk.first, video, stage);
    return view;
  }

  GAREVLA_INLINE void operator()(const StatisticsView<T>& view, std::int64_t video,
                                 std::int64_t text) const {
    T workspace[backward_workspace<Shape>];
    const PairSizes size(view.video.heads, view.video.frames);
    const std::int64_t texts = chunk.texts, pair = video * texts + text;
    T* own = chunk.products + video * size.rows * texts + text;
    const TextProducts<T> products{own, texts};
    PairState<T> state(size, workspace);
    forward_text(chunk, view.video, pair, text, products, state);

    T* outside = workspace + size.state();
    T* scratch = outside + size.basis;
    StatisticsGradient<T> of_pair = view.given;
    if (given.targets[text] != given.first_video + video) of_pair.grad_target = nullptr;
    T grad_similarity, grad_norm;
    given.logit_scale_gradient[pair] = statistics_pair_gradient(
        of_pair, size, state, [&](const T* array) { return array ? array[text] : T(0); }, scratch,
        grad_similarity, grad_norm, outside);
    if (given.coefficients) {
      const T* sampled = given.coefficients + video * size.basis * texts + text;
      for (int k = 0; k < size.basis; ++k) outside[k] += sampled[k * texts];
    }
    TextSink<T> sink{size, to.rows, own, to.buffer + video * to.rows.total * texts + text, texts};
    const auto gradient = pair_adjoint(view.video, chunk.constants, products, state,
                                       grad_similarity, grad_norm, outside, scratch, sink);
    to.gap_variance[pair] = gradient.gap_variance;
    to.squared_norm[pair] = gradient.squared_norm;
  }
};

}  // namespace

template <typename T>
cudaError_t launch_statistics_backward(const PairChunk<T>& chunk,
                                       const StatisticsGradients<T>& given,
                                       const PairAdjoint<T>& to, cudaStream_t stream) {
  const PairSizes size(chunk.first.heads, chunk.first.frames);
  const std::int64_t elements = video_elements(size) + (size.basis + 2) * std::int64_t(size.basis);
  const std::int64_t bytes = elements * sizeof(T) + size.frames;
  return with_shape(chunk.first, bytes, [&](auto shape) {
    const StatisticsTask<T, decltype(shape)> task{chunk, given, to};
    return launch_staged(task, chunk.videos, chunk.texts, int(bytes), stream);
  });
}

template cudaError_t launch_statistics_backward(const PairChunk<float>&,
                                                const StatisticsGradients<float>&,
                                                const PairAdjoint<float>&, cudaStream_t);
template cudaError_t launch_statistics_backward(const PairChunk<double>&,
                                                const StatisticsGradients<double>&,
                                                const PairAdjoint<double>&, cudaStream_t);

}  // namespace garevla::cuda
