// What the kernels of the pair operation are given; see docs/derivation.md for the symbols.
//
// H heads, F frames, K = H*F + 2, R = 2*H*F + F + 2 product rows of a video: its keys (H*F), its
// frames (F) and its basis (K), in this order.
#pragma once

#include <cstdint>

namespace garevla {

// One video's factors; row-major.
template <typename T>
struct VideoView {
  int heads;
  int frames;
  const bool* frame_mask;  // (F)
  const T* key_offset;     // (H, F)
  const T* key_bias;       // (H, F)
  const T* value_gram;     // (H*F, H*F), symmetric like all Gram matrices
  const T* hidden_gram;    // (H*F+1, H*F+1)
  const T* basis_gram;     // (K, K)
  const T* frame_gram;     // (F, F)
  const T* basis_frame;    // (K, F)
};

// Where the gradients of one video's factors go, apart from its product rows.
template <typename T>
struct VideoGradient {
  T* key_offset;   // (H, F)
  T* key_bias;     // (H, F)
  T* value_gram;   // (H*F, H*F)
  T* hidden_gram;  // (H*F+1, H*F+1)
  T* basis_gram;   // (K, K)
  T* frame_gram;   // (F, F)
  T* basis_frame;  // (K, F)
};

template <typename T>
struct PairConstants {
  T layer_norm_eps[3];  // of the gap's, the attention's and the last LayerNorm
  T inverse_temperature;
};

// What the streaming loss's backward pass knows of a video, so that a pair's gradient is a closed
// form. Pointers of length A belong to the texts, the rest to one video.
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

}  // namespace garevla
