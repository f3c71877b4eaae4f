// The adjoint of pair_similarity and pair_terms.

#include "cuda/pair_adjoint.h"

namespace garevla::cuda {
namespace {

template <typename T>
struct StoredGradients {
  PairScores<const T> scores;

  struct View {};
  template <typename Stage>
  GAREVLA_INLINE View view(std::int64_t, int, Stage&) const {
    return {};
  }

  GAREVLA_INLINE void of_pair(const View&, const PairChunk<T>& chunk, const PairSizes& size,
                              std::int64_t video, std::int64_t text, const PairState<T>&,
                              T& similarity, T& norm, T* coefficients, T*) const {
    const std::int64_t texts = chunk.texts, pair = video * texts + text;
    similarity = scores.similarity[pair];
    norm = scores.norm ? scores.norm[pair] : T(0);
    const std::int64_t first = video * size.basis * texts + text;
    for (int k = 0; k < size.basis; ++k)
      coefficients[k] = scores.coefficients ? scores.coefficients[first + k * texts] : T(0);
  }
};

}  // namespace

template <typename T>
cudaError_t launch_backward(const PairChunk<T>& chunk, const PairScores<const T>& grad_scores,
                            const PairAdjoint<T>& to, cudaStream_t stream) {
  return launch_adjoint(chunk, StoredGradients<T>{grad_scores}, 0, to, stream);
}

template cudaError_t launch_backward(const PairChunk<float>&, const PairScores<const float>&,
                                     const PairAdjoint<float>&, cudaStream_t);
template cudaError_t launch_backward(const PairChunk<double>&, const PairScores<const double>&,
                                     const PairAdjoint<double>&, cudaStream_t);

}  // namespace garevla::cuda
