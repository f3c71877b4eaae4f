// What the kernels of the pair operations are given; see docs/derivation.md for the symbols.
//
// A texts, B videos, D features, H heads, F frames, K = H*F + 2 basis vectors, R = 2*H*F + F + 2
// product rows of a video: its keys (H*F), its frames (F) and its basis (K), in this order. n is
// the number of videos that a kernel is given at once. Texts are the fastest axis of every per-pair
// array.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define GAREVLA_INLINE __host__ __device__ __forceinline__
#else
#define GAREVLA_INLINE inline __attribute__((always_inline))
#endif

namespace garevla {

// Arrays of one video's factors, or of their gradients, apart from its product rows and its mean
// frame; row-major. Gram matrices are symmetric.
template <typename T>
struct VideoArrays {
  T* key_offset;   // (H, F)
  T* key_bias;     // (H, F)
  T* value_gram;   // (H*F, H*F)
  T* hidden_gram;  // (H*F+1, H*F+1)
  T* basis_gram;   // (K, K)
  T* frame_gram;   // (F, F)
  T* basis_frame;  // (K, F)
};

// One video's factors.
template <typename T>
struct VideoView : VideoArrays<const T> {
  int heads;
  int frames;
  const bool* frame_mask;  // (F)
};

template <typename T>
struct PairConstants {
  T layer_norm_eps[3];  // of the gap's, the attention's and the last LayerNorm
  T inverse_temperature;
};

// n videos against all texts.
template <typename T>
struct PairChunk {
  std::int64_t first;  // number of the first video
  std::int64_t videos, texts;
  VideoView<T> view;  // of the first video; the others follow it in memory
  PairConstants<T> constants;
  T* products;            // (n, R, A) of the texts with the videos' product rows
  const T* gap_variance;  // (n, A) over the features
  const T* squared_norm;  // (A) of the texts
};

// What the pair operations find for n videos, or, with a constant T, its gradients.
template <typename T>
struct PairScores {
  T* similarity;    // (n, A)
  T* norm;          // (n, A) of the increments, or null
  T* coefficients;  // (n, K, A) or null

  // The same from another video on.
  GAREVLA_INLINE PairScores from(std::int64_t video, std::int64_t texts, std::int64_t basis) const {
    return {similarity + video * texts, norm ? norm + video * texts : nullptr,
            coefficients ? coefficients + video * basis * texts : nullptr};
  }
};

// What the streaming loss's backward pass knows of a video, so that a pair's gradient is a closed
// form.
template <typename T>
struct StatisticsGradient {
  T logit_scale;
  T column_logsumexp;
  T grad_column_logsumexp;
  const T* row_logsumexp;       // (A)
  const T* grad_row_logsumexp;  // (A)
  const T* grad_target;  // (A) of the logit-free similarity, 0 where the text has another video
  const T* norm_mean;    // (A)
  const T* norm_slope;   // (A) grad of the variance * 2 / (B - 1)
  const T* coefficient_mean;  // (K)
  const T* mean_slope;        // (K) grad of the mean / A
  const T* covariance_slope;  // (K, K) symmetric: (grad + its transpose) / (A - 1)
};

// The same of n videos.
template <typename T>
struct StatisticsGradients {
  const T* logit_scale;            // ()
  const T* row_logsumexp;          // (A)
  const T* grad_row_logsumexp;     // (A)
  const T* grad_target;            // (A) of each text's own target
  const T* norm_mean;              // (A)
  const T* norm_slope;             // (A)
  const T* column_logsumexp;       // (n)
  const T* grad_column_logsumexp;  // (n)
  const T* coefficient_mean;       // (n, K)
  const T* mean_slope;             // (n, K)
  const T* covariance_slope;       // (n, K, K)

  GAREVLA_INLINE StatisticsGradient<T> of_video(std::int64_t video, std::int64_t basis) const {
    return {*logit_scale,
            column_logsumexp[video],
            grad_column_logsumexp[video],
            row_logsumexp,
            grad_row_logsumexp,
            grad_target,
            norm_mean,
            norm_slope,
            coefficient_mean + video * basis,
            mean_slope + video * basis,
            covariance_slope + video * basis * basis};
  }
};

// Running statistics of every text over the videos so far.
template <typename T>
struct RowStatistics {
  T* top;      // (A) largest logit
  T* sum;      // (A) of exp(logit - top)
  T* mean;     // (A) of the norm
  T* squares;  // (A) sum of squared deviations of the norm
};

}  // namespace garevla
