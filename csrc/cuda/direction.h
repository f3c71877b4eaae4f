// The regularizer of `direction`, and its gradient, on a GPU.
#pragma once

#include "cuda/pair_engine.h"
#include "operators/direction.h"

namespace garevla::cuda {

// unit (B, K, A) coefficients, basis (B, K, D); gradients that are not empty are filled.
template <typename T>
at::Tensor compute_direction(const OnDeviceOf& device, const at::Tensor& unit,
                             const at::Tensor& basis, T alpha, const at::Tensor& grad_unit,
                             const at::Tensor& grad_basis) {
  const std::int64_t videos = unit.size(0), texts = unit.size(2), dim = basis.size(2);
  const double pairs = double(videos) * double(videos);
  const bool with_gradient = grad_basis.numel() > 0;
  const std::int64_t bytes_per_text = videos * (videos + 2 * dim) * sizeof(T);
  const std::int64_t step =
      std::clamp<std::int64_t>(chunk_bytes() / bytes_per_text, 1, std::min(texts, largest_chunk));
  const at::Tensor means = at::empty({texts}, unit.options());
  for (std::int64_t first = 0; first < texts; first += step) {
    const std::int64_t length = std::min(step, texts - first);
    const at::Tensor coefficients = unit.narrow(2, first, length);               // (B, K, a)
    const at::Tensor directions = coefficients.mT().bmm(basis).transpose(0, 1);  // (a, B, D)
    const at::Tensor kernel = at::bmm(directions, directions.mT());              // (a, B, B)
    device.check(launch_cosine_kernel<T>(length, videos * videos, alpha, kernel.data_ptr<T>(),
                                         device.stream()));
    at::Tensor mean = means.narrow(0, first, length);
    mean.copy_(kernel.sum({1, 2})).div_(pairs).add_(direction_epsilon);
    if (!with_gradient) continue;
    // Each direction meets the symmetric kernel as row and as column.
    const at::Tensor slope = (2.0 * double(alpha) / (pairs * double(texts))) / mean;  // (a)
    const at::Tensor gradient = kernel.bmm(directions).transpose(0, 1);               // (B, a, D)
    grad_unit.narrow(2, first, length).copy_(basis.bmm(gradient.mT()).mul_(slope));
    at::Tensor sum = grad_basis;
    sum.baddbmm_(coefficients * slope, gradient);
  }
  return means.to(at::kDouble).log_().mean().to(unit.scalar_type());
}

}  // namespace garevla::cuda
