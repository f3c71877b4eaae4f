// direction, the cubic regularizer with its gradient, on any device (operators.h).
#pragma once

#include <tuple>

#include "tensor.h"

namespace garevla {

// Added to the mean over a text's pairs of videos before its logarithm is taken.
constexpr double direction_epsilon = 1e-8;

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> direction(const Tensor& unit_coefficients, const Tensor& basis,
                                             double alpha, bool with_gradient) {
  const Device device(unit_coefficients);
  require(unit_coefficients.axes() == 3 && basis.axes() == 3 &&
              unit_coefficients.size(0) == basis.size(0) &&
              unit_coefficients.size(1) == basis.size(1),
          "unit_coefficients must have shape (B, K, A) and basis (B, K, D), got ",
          unit_coefficients.sizes(), " and ", basis.sizes());
  require(unit_coefficients.count() > 0 && basis.count() > 0,
          "the directional diversity needs a text, a video and a feature at least");
  require(unit_coefficients.type() == basis.type(), "basis must be ", unit_coefficients.type(),
          ", got ", basis.type());
  require(unit_coefficients.device() == basis.device(), "basis is on ", basis.device(),
          ", unit_coefficients on ", unit_coefficients.device());
  const Tensor unit = unit_coefficients.contiguous(), vectors = basis.contiguous();
  // A gradient that is not wanted is empty; outputs do not share memory.
  auto none = [&] { return Tensor::empty({0}, unit.type(), unit.device()); };
  const Tensor grad_unit = with_gradient ? unit.like() : none();
  const Tensor grad_basis = with_gradient ? vectors.like() : none();
  if (with_gradient) grad_basis.zero();
  Tensor value;
  with_type_of("unit_coefficients", unit, [&](auto zero) {
    using T = decltype(zero);
    value = compute_direction(device, unit, vectors, T(alpha), grad_unit, grad_basis);
  });
  return {value, grad_unit, grad_basis};
}

}  // namespace garevla
