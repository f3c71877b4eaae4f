// The adjoint of the pair operation under the streaming loss: the gradient of a pair's scores is a
// closed form of the saved statistics.

#include "cuda/pair_adjoint.h"

namespace garevla::cuda {
namespace {

template <typename T>
struct ClosedForm {
  StatisticsGradients<T> statistics;
  StatisticsExtras<T> extras;

  using View = StatisticsGradient<T>;
  template <typename Stage>
  GAREVLA_INLINE View view(std::int64_t video, int basis, Stage& stage) const {
    View view = statistics.of_video(video, basis);
    view.coefficient_mean = stage(view.coefficient_mean, basis);
    view.mean_slope = stage(view.mean_slope, basis);
    view.covariance_slope = stage(view.covariance_slope, basis * basis);
    return view;
  }

  GAREVLA_INLINE void of_pair(const View& view, const PairChunk<T>& chunk, const PairSizes& size,
                              std::int64_t video, std::int64_t text, const PairState<T>& state,
                              T& similarity, T& norm, T* coefficients, T* scratch) const {
    const std::int64_t texts = chunk.texts;
    StatisticsGradient<T> of_pair = view;
    if (extras.targets[text] != chunk.first + video) of_pair.grad_target = nullptr;
    extras.grad_logit_scale[video * texts + text] = scalar::statistics_pair_gradient(
        of_pair, size, state, [&](const T* array) { return array ? array[text] : T(0); }, scratch,
        similarity, norm, coefficients);
    if (extras.grad_coefficients) {
      const T* sampled = extras.grad_coefficients + video * size.basis * texts + text;
      for (int k = 0; k < size.basis; ++k) coefficients[k] += sampled[k * texts];
    }
  }
};

}  // namespace

template <typename T>
cudaError_t launch_statistics_backward(const PairChunk<T>& chunk,
                                       const StatisticsGradients<T>& statistics,
                                       const StatisticsExtras<T>& extras, const PairAdjoint<T>& to,
                                       cudaStream_t stream) {
  const std::int64_t basis = PairSizes(chunk.view.heads, chunk.view.frames).basis;
  return launch_adjoint(chunk, ClosedForm<T>{statistics, extras}, (basis + 2) * basis, to, stream);
}

#define GAREVLA_INSTANTIATE(T)                                                        \
  template cudaError_t launch_statistics_backward(                                    \
      const PairChunk<T>&, const StatisticsGradients<T>&, const StatisticsExtras<T>&, \
      const PairAdjoint<T>&, cudaStream_t);
GAREVLA_INSTANTIATE(float)
GAREVLA_INSTANTIATE(double)
#undef GAREVLA_INSTANTIATE

}  // namespace garevla::cuda
