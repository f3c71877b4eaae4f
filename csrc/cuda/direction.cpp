// direction: the cubic regulariser and its gradient on a GPU.

#include <algorithm>
#include <tuple>

#include "cuda/device.h"
#include "cuda/pair_engine.h"
#include "direction_inputs.h"

namespace garevla::cuda {
namespace {

template <typename T>
at::Tensor run(const OnDeviceOf& device, const at::Tensor& unit, const at::Tensor& basis, T alpha,
               const at::Tensor& grad_unit, const at::Tensor& grad_basis) {
  const std::int64_t videos = unit.size(0), texts = unit.size(2), dim = basis.size(2);
  const double pairs = double(videos) * double(videos);
  const bool with_gradient = grad_basis.defined();
  const std::int64_t per_text = videos * (videos + 2 * dim) * sizeof(T);
  const std::int64_t step =
      std::clamp<std::int64_t>(chunk_bytes() / per_text, 1, std::min(texts, largest_chunk));
  const at::Tensor means = at::empty({texts}, unit.options());
  for (std::int64_t first = 0; first < texts; first += step) {
    const std::int64_t length = std::min(step, texts - first);
    const at::Tensor own = unit.narrow(2, first, length);               // (B, K, a)
    const at::Tensor directions = own.mT().bmm(basis).transpose(0, 1);  // (a, B, D)
    const at::Tensor kernel = at::bmm(directions, directions.mT());     // (a, B, B)
    device.check(launch_cosine_kernel<T>(length, videos * videos, alpha, kernel.data_ptr<T>(),
                                         device.stream()));
    at::Tensor mean = means.narrow(0, first, length);
    mean.copy_(kernel.sum({1, 2})).div_(pairs).add_(1e-8);
    if (!with_gradient) continue;
    // Each direction meets the symmetric kernel as row and as column.
    const at::Tensor slope = (2.0 * double(alpha) / (pairs * double(texts))) / mean;  // (a)
    const at::Tensor gradient = kernel.bmm(directions).transpose(0, 1);               // (B, a, D)
    grad_unit.narrow(2, first, length).copy_(basis.bmm(gradient.mT()).mul_(slope));
    at::Tensor sum = grad_basis;
    sum.baddbmm_(own * slope, gradient);
  }
  return means.to(at::kDouble).log_().mean().to(unit.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> direction(const at::Tensor& unit_coefficients,
                                                         const at::Tensor& basis, double alpha,
                                                         bool with_gradient) {
  const OnDeviceOf device(unit_coefficients);
  check_direction(unit_coefficients, basis);
  const at::Tensor unit = unit_coefficients.contiguous(), vectors = basis.contiguous();
  const at::Tensor grad_unit =
      with_gradient ? at::empty_like(unit) : at::empty({0}, unit.options());
  const at::Tensor grad_basis =
      with_gradient ? at::zeros_like(vectors) : at::empty({0}, unit.options());
  at::Tensor value;
  AT_DISPATCH_FLOATING_TYPES(unit.scalar_type(), "direction", [&] {
    value = run<scalar_t>(device, unit, vectors, scalar_t(alpha), grad_unit,
                          with_gradient ? grad_basis : at::Tensor());
  });
  return {value, grad_unit, grad_basis};
}

}  // namespace
}  // namespace garevla::cuda

TORCH_LIBRARY_IMPL(garevla, GAREVLA_DEVICE_KEY, m) {
  m.impl("direction", garevla::cuda::direction);
}
