// direction, the cubic regularizer with its gradient, on any device (operators.h).
#pragma once

#include <ATen/ATen.h>

#include <tuple>

namespace garevla {

// Added to the mean over a text's pairs of videos before its logarithm is taken.
constexpr double direction_epsilon = 1e-8;

template <typename Device>
std::tuple<at::Tensor, at::Tensor, at::Tensor> direction(const at::Tensor& unit_coefficients,
                                                         const at::Tensor& basis, double alpha,
                                                         bool with_gradient) {
  const Device device(unit_coefficients);
  TORCH_CHECK_VALUE(unit_coefficients.dim() == 3 && basis.dim() == 3 &&
                        unit_coefficients.size(0) == basis.size(0) &&
                        unit_coefficients.size(1) == basis.size(1),
                    "unit_coefficients must have shape (B, K, A) and basis (B, K, D), got ",
                    unit_coefficients.sizes(), " and ", basis.sizes());
  TORCH_CHECK_VALUE(unit_coefficients.numel() > 0 && basis.numel() > 0,
                    "the directional diversity needs a text, a video and a feature at least");
  TORCH_CHECK_TYPE(unit_coefficients.scalar_type() == basis.scalar_type(), "basis must be ",
                   unit_coefficients.scalar_type(), ", got ", basis.scalar_type());
  TORCH_CHECK_VALUE(unit_coefficients.device() == basis.device(), "basis is on ", basis.device(),
                    ", unit_coefficients on ", unit_coefficients.device());
  const at::Tensor unit = unit_coefficients.contiguous(), vectors = basis.contiguous();
  // A gradient that is not wanted is empty; outputs do not share memory.
  auto none = [&] { return at::empty({0}, unit.options()); };
  const at::Tensor grad_unit = with_gradient ? at::empty_like(unit) : none();
  const at::Tensor grad_basis = with_gradient ? at::zeros_like(vectors) : none();
  at::Tensor value;
  AT_DISPATCH_FLOATING_TYPES(unit.scalar_type(), "direction", [&] {
    value = compute_direction(device, unit, vectors, scalar_t(alpha), grad_unit, grad_basis);
  });
  return {value, grad_unit, grad_basis};
}

}  // namespace garevla
