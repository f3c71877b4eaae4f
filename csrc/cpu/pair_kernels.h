// One video against all texts, on one thread of a CPU.
//
// A texts are the fastest axis of every per-pair array: products (R, A), coefficients (K, A), rows
// of length A.
#pragma once

#include <cstdint>

#include "pair_types.h"

namespace garevla::cpu {

template <typename T>
struct PairKernels {
  const char* name;

  // Elements of scratch that a call needs, to be aligned to 64 bytes.
  std::int64_t (*scratch_size)(int heads, int frames);

  // Scores; norm (A) and coefficients (K, A) may be null.
  void (*forward)(const VideoView<T>& video, const PairConstants<T>& constants, std::int64_t texts,
                  const T* products, const T* gap_variance, const T* squared_norm, T* similarity,
                  T* norm, T* coefficients, T* scratch);

  // Gradients from those of similarity (A), norm (A) and coefficients (K, A); the last two may be
  // null. Overwrites products with its gradient and adds nothing: every output is written.
  void (*backward)(const VideoView<T>& video, const PairConstants<T>& constants, std::int64_t texts,
                   T* products, const T* gap_variance, const T* squared_norm,
                   const T* grad_similarity, const T* grad_norm, const T* grad_coefficients,
                   T* grad_gap_variance, T* grad_squared_norm, const VideoGradient<T>& gradient,
                   T* scratch);

  // The same from the gradients of the streaming statistics, and of the coefficients (K, A) of
  // sampled pairs, which may be null. Returns the gradient of logit_scale.
  T (*statistics_backward)(const VideoView<T>& video, const PairConstants<T>& constants,
                           std::int64_t texts, T* products, const T* gap_variance,
                           const T* squared_norm, const StatisticsGradient<T>& given,
                           const T* grad_coefficients, T* grad_gap_variance, T* grad_squared_norm,
                           const VideoGradient<T>& gradient, T* scratch);

  // log of the sum over texts of exp(scale * similarity).
  T (*column_logsumexp)(std::int64_t texts, const T* similarity, T scale);

  // Mean (K) and unbiased covariance (K, K) of the coefficients (K, A) over the texts; centres them
  // in place.
  void (*moments)(int basis, std::int64_t texts, T* coefficients, T* mean, T* covariance,
                  T* scratch);

  // Takes `videos` more rows (stride `stride`) of similarity and norm into the running statistics
  // of texts [0, texts): top and sum of exponentials of scale * similarity, mean and sum of squared
  // deviations of norm.
  void (*update_rows)(std::int64_t videos_before, std::int64_t videos, std::int64_t texts,
                      std::int64_t stride, const T* similarity, const T* norm, T scale, T* top,
                      T* sum, T* mean, T* squares);

  // Replaces cosines by exp(-alpha (1 - cosine)) and returns their sum.
  T (*cosine_kernel)(std::int64_t length, T alpha, T* cosines);
};

// For the best instruction set of this processor that the library was compiled for; the environment
// variable GAREVLA_CPU_CAPABILITY (avx512, avx2, baseline) holds it to a smaller one.
template <typename T>
const PairKernels<T>& pair_kernels();

}  // namespace garevla::cpu
