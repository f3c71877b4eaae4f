// A chunk of videos against all texts, on a GPU: what the kernels take and how they are launched.
//
// One thread's work is one text of one video. Launches return the launch's error; nothing waits for
// the device.
#pragma once

#include <cstdint>

#include "pair_types.h"

#if defined(GAREVLA_HOST_LAUNCH)  // tests without a GPU: launch.h
typedef int cudaError_t;
typedef void* cudaStream_t;
constexpr cudaError_t cudaSuccess = 0;
#else
#include <cuda_runtime_api.h>
#endif

namespace garevla::cuda {

// Largest H*F and largest F: a thread's arrays have fixed lengths.
constexpr int largest_capacity = 512;

// Largest number of videos of a chunk, and of texts of `direction`'s: the grid's second axis.
constexpr std::int64_t largest_chunk = 65535;

template <typename T>
cudaError_t launch_forward(const PairChunk<T>& chunk, const PairScores<T>& to, cudaStream_t stream);

// Rows of the buffer (n, rows, A) that the adjoint leaves for the gradients of the factors. That of
// a Gram matrix is the sum over texts of weight * x xᵀ: a product of weighted rows with rows.
struct AdjointRows {
  int attention;              // (H*F)
  int hidden;                 // (H*F+1)
  int coefficients;           // (K)
  int pool;                   // (F)
  int weighted_attention;     // (H*F)
  int weighted_hidden;        // (H*F+1)
  int weighted_coefficients;  // (K)
  int weighted_pool;          // (F)
  int scored_coefficients;    // (K) weighted for basis_frame
  int key_bias;               // (H*F) gradients, to be summed over texts
  int total;
};

inline AdjointRows adjoint_rows(int heads, int frames) {
  const int attention = heads * frames, basis = attention + 2;
  int next = 0;
  auto take = [&next](int count) { return (next += count) - count; };
  return {take(attention), take(attention + 1), take(basis),   take(frames),
          take(attention), take(attention + 1), take(basis),   take(frames),
          take(basis),     take(attention),     /*total=*/next};
}

template <typename T>
struct PairAdjoint {
  T* gap_variance;  // (n, A)
  T* squared_norm;  // (n, A)
  T* buffer;        // (n, rows.total, A)
  AdjointRows rows;
};

// Overwrites the products with their gradient, as do statistics.
template <typename T>
cudaError_t launch_backward(const PairChunk<T>& chunk, const PairScores<const T>& grad_scores,
                            const PairAdjoint<T>& to, cudaStream_t stream);

// What the adjoint under the streaming loss takes and leaves beside the rest.
template <typename T>
struct StatisticsExtras {
  const std::int64_t* targets;  // (A) numbers of videos
  const T* grad_coefficients;   // (n, K, A) from the sampled pairs, or null
  T* grad_logit_scale;          // (n, A) what every pair adds to it
};

template <typename T>
cudaError_t launch_statistics_backward(const PairChunk<T>& chunk,
                                       const StatisticsGradients<T>& statistics,
                                       const StatisticsExtras<T>& extras, const PairAdjoint<T>& to,
                                       cudaStream_t stream);

// Parts in which a chunk's videos are taken, and merged in their order.
constexpr std::int64_t row_parts = 16;

// Numbers that a part leaves for a text: those of RowStatistics.
constexpr std::int64_t row_numbers = 4;

// Takes n more rows of similarity and norm (n, A) into them; scratch (row_parts,
// row_numbers, A).
template <typename T>
cudaError_t launch_update_rows(std::int64_t videos_before, std::int64_t videos, std::int64_t texts,
                               const T* similarity, const T* norm, const T* logit_scale, T* scratch,
                               const RowStatistics<T>& to, cudaStream_t stream);

// Pairs (i, video_numbers[i, s]) of which the video is one of the chunk's: [first, first + n).
struct PairSamples {
  const std::int64_t* video_numbers;  // (A, per_text)
  std::int64_t texts, per_text, first, videos;
};

// to (A, per_text, rows) = from (n, rows, A) at the samples; other samples' entries are left alone.
template <typename T>
cudaError_t launch_gather(const PairSamples& samples, std::int64_t rows, const T* from, T* to,
                          cudaStream_t stream);

// The adjoint: to (n, rows, A) += from (A, per_text, rows) at the samples.
template <typename T>
cudaError_t launch_scatter(const PairSamples& samples, std::int64_t rows, const T* from, T* to,
                           cudaStream_t stream);

// Replaces cosines (matrices, length) by exp(-alpha (1 - cosine)).
template <typename T>
cudaError_t launch_cosine_kernel(std::int64_t matrices, std::int64_t length, T alpha, T* cosines,
                                 cudaStream_t stream);

}  // namespace garevla::cuda
