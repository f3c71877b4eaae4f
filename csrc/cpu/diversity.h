// The directional diversity of a tile's texts, on a CPU: a text's matrices stay near its thread.
#pragma once

#include <cmath>
#include <vector>

#include "cpu/direction.h"
#include "cpu/tile_kernels.h"
#include "operators/diversity.h"

namespace garevla::cpu {

// increments (B, a, D), norm (B, a).
template <typename T>
Tensor compute_diversity(const Device&, const Tensor& increments, const Tensor& norm, T alpha,
                         const Tensor& grad_output, const Tensor& gradient) {
  const TileKernels<T>& kernels = tile_kernels<T>();
  const std::int64_t videos = increments.size(0), texts = increments.size(1);
  const std::int64_t dim = increments.size(2);
  const double pairs = double(videos) * double(videos);
  const bool with_gradient = gradient.defined();
  const double upstream = with_gradient ? double(*data_at<const T>(grad_output)) : 0;
  const T *from = data_at<const T>(increments), *lengths = data_at<const T>(norm);
  T* to = data_at<T>(gradient);
  auto empty = [&](const Shape& shape) {
    return Tensor::empty(shape, increments.type(), increments.device());
  };
  std::vector<double> logarithms(texts);
  parallel_pieces(texts, [&](std::int64_t first, std::int64_t last) {
    const Tensor unit = empty({videos, dim}), kernel = empty({videos, videos});
    const Tensor through = with_gradient ? empty({videos, dim}) : Tensor();
    for (std::int64_t i = first; i < last; ++i) {
      auto inverse_length = [&](std::int64_t j) {
        return T(1) / std::max(lengths[j * texts + i], T(shortest_increment));
      };
      for (std::int64_t j = 0; j < videos; ++j)
        kernels.scale(dim, inverse_length(j), from + (j * texts + i) * dim, data_at<T>(unit, j));
      const double mean =
          similarity_kernel<T>(unit, alpha, with_gradient, kernel) / pairs + direction_epsilon;
      logarithms[i] = std::log(mean);
      if (!with_gradient) continue;
      // Each direction meets the symmetric kernel as row and as column.
      product(through, kernel, unit);
      const T slope = T(2.0 * double(alpha) * upstream / (pairs * mean));
      for (std::int64_t j = 0; j < videos; ++j)
        kernels.tangent(dim, slope * inverse_length(j), data_at<const T>(unit, j),
                        data_at<const T>(through, j), to + (j * texts + i) * dim);
    }
  });
  double total = 0;
  for (const double value : logarithms) total += value;
  const Tensor value = empty({});
  *data_at<T>(value) = T(total);
  return value;
}

}  // namespace garevla::cpu
