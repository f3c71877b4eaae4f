// One video against all texts, on one thread of a CPU.
#pragma once

#include <cstdint>

#include "pair_types.h"

namespace garevla::cpu {

// Where the gradients of a video's pairs go, beside the products', which overwrite the products.
template <typename T>
struct VideoAdjoint {
  T* gap_variance;       // (A)
  T* squared_norm;       // (A)
  VideoArrays<T> video;  // summed over the texts
};

template <typename T>
struct PairKernels {
  const char* name;

  // Elements of scratch that a call needs, to be aligned to 64 bytes.
  std::int64_t (*scratch_size)(int heads, int frames);

  // A chunk is of one video here.
  void (*forward)(const PairChunk<T>& chunk, const PairScores<T>& to, T* scratch);

  // From the gradients of the scores. Nothing is added: every output is written.
  void (*backward)(const PairChunk<T>& chunk, const PairScores<const T>& grad_scores,
                   const VideoAdjoint<T>& to, T* scratch);

  // The same from the gradients of the streaming statistics, and of the coefficients (K, A) of
  // sampled pairs, which may be null. Returns the gradient of logit_scale.
  T (*statistics_backward)(const PairChunk<T>& chunk, const StatisticsGradient<T>& statistics,
                           const T* grad_coefficients, const VideoAdjoint<T>& to, T* scratch);

  // log of the sum over texts of exp(scale * similarity).
  T (*column_logsumexp)(std::int64_t texts, const T* similarity, T scale);

  // Mean (K) and unbiased covariance (K, K) of the coefficients (K, A) over the texts; centers them
  // in place.
  void (*moments)(int basis, std::int64_t texts, T* coefficients, T* mean, T* mean_remainder,
                  T* covariance, T* scratch);

  // Takes `videos` more rows (stride `stride`) of similarity and norm into the running statistics
  // of texts [0, texts).
  void (*update_rows)(std::int64_t videos_before, std::int64_t videos, std::int64_t texts,
                      std::int64_t stride, const T* similarity, const T* norm, T scale,
                      const RowStatistics<T>& to);

  // Replaces cosines by exp(-alpha (1 - cosine)) and returns their sum.
  T (*cosine_kernel)(std::int64_t length, T alpha, T* cosines);
};

// For the best instruction set of this processor that the library was compiled for; the environment
// variable GAREVLA_CPU_CAPABILITY (avx512, avx2, baseline) holds it to a smaller one.
template <typename T>
const PairKernels<T>& pair_kernels();

}  // namespace garevla::cpu
