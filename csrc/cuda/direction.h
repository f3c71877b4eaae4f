// The regularizer of `direction`, and its gradient, on a GPU.
#pragma once

#include "cuda/pair_engine.h"
#include "operators/direction.h"

namespace garevla::cuda {

// unit (B, K, A) coefficients, basis (B, K, D); gradients that are not empty are filled.
template <typename T>
Tensor compute_direction(const OnDeviceOf& device, const Tensor& unit, const Tensor& basis, T alpha,
                         const Tensor& grad_unit, const Tensor& grad_basis) {
  const std::int64_t videos = unit.size(0), texts = unit.size(2), dim = basis.size(2);
  const double pairs = double(videos) * double(videos);
  const bool with_gradient = grad_basis.count() > 0;
  const std::int64_t bytes_per_text = videos * (videos + 2 * dim) * sizeof(T);
  const std::int64_t step =
      std::clamp<std::int64_t>(chunk_bytes() / bytes_per_text, 1, std::min(texts, largest_chunk));
  const Tensor means = device.empty<T>({texts});
  for (std::int64_t first = 0; first < texts; first += step) {
    const std::int64_t length = std::min(step, texts - first);
    const Tensor coefficients = unit.narrow(2, first, length);  // (B, K, a)
    const Tensor of_videos = device.empty<T>({videos, length, dim});
    product(of_videos, coefficients.transposed(), basis);
    const Tensor directions = of_videos.swapped(0, 1);  // (a, B, D)
    const Tensor kernel = device.empty<T>({length, videos, videos});
    product(kernel, directions, directions.transposed());
    device.check(launch_cosine_kernel<T>(length, videos * videos, alpha, data_at<T>(kernel),
                                         device.stream()));
    const Tensor mean = sum(kernel, {1, 2}) * (1 / pairs) + direction_epsilon;
    means.narrow(0, first, length).copy_from(mean);
    if (!with_gradient) continue;
    // Each direction meets the symmetric kernel as row and as column.
    const Tensor slope = reciprocal(mean) * (2.0 * double(alpha) / (pairs * double(texts)));  // (a)
    const Tensor of_texts = device.empty<T>({length, videos, dim});
    product(of_texts, kernel, directions);
    const Tensor gradient = of_texts.swapped(0, 1);  // (B, a, D)
    const Tensor through = device.empty<T>({videos, unit.size(1), length});
    product(through, basis, gradient.transposed());
    grad_unit.narrow(2, first, length).copy_from(through * slope);
    add_product(grad_basis, coefficients * slope, gradient);
  }
  const Tensor logarithms = log(means.to(type_of<double>()));
  return (sum(logarithms, {0}) * (1 / double(texts))).to(unit.type());
}

}  // namespace garevla::cuda
