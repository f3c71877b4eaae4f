// The elementwise parts of a tile of pairs, on a GPU: launches, in the manner of pair_kernels.h.
#pragma once

#include "cuda/pair_kernels.h"
#include "tile_types.h"

namespace garevla::cuda {

// y (b, a, H).
template <typename T>
cudaError_t launch_gap_hidden(const GapTile<T>& tile, T* hidden, cudaStream_t stream);

// through (b, a, H): the gradient of what goes into the activation, from grad (b, a, H) of what
// comes out; and the coefficients' gradient (b, a).
template <typename T>
cudaError_t launch_gap_hidden_backward(const GapTile<T>& tile, const T* grad, T* through,
                                       T* grad_coefficients, cudaStream_t stream);

// y (b, a, H) and inverse deviations (b, a), from mixed (b, a, 2*H) and shift (2*H).
template <typename T>
cudaError_t launch_attention_hidden(const AttentionTile<T>& tile, const T* mixed, const T* shift,
                                    T* hidden, T* inverse, cudaStream_t stream);

// grad_mixed (b, a, 2*H) from grad and hidden (b, a, H) and inverse (b, a).
template <typename T>
cudaError_t launch_attention_hidden_backward(const AttentionTile<T>& tile, const T* grad,
                                             const T* hidden, const T* inverse, T* grad_mixed,
                                             cudaStream_t stream);

template <typename T>
cudaError_t launch_contract(const Increments<T>& tile, const Contraction<T>& to,
                            cudaStream_t stream);

// Adds to grad (b, a, D).
template <typename T>
cudaError_t launch_increment_gradient(const Increments<T>& tile, const IncrementGradient<T>& from,
                                      T* grad, cudaStream_t stream);

// Sums over one axis of the pairs, in order: to (groups, columns) = sum over `count` members of
// scale * weights[pair] * values[pair], pair = group * group_stride + member * member_stride.
template <typename T>
struct PairSum {
  std::int64_t groups, group_stride, count, member_stride, columns;
  const T* values;   // (pairs, columns)
  const T* weights;  // (pairs), or null for 1
  T scale;
  T* to;
};
template <typename T>
cudaError_t launch_pair_sum(const PairSum<T>& sum, cudaStream_t stream);

}  // namespace garevla::cuda
