// The arguments of the direction operator, checked.
#pragma once

#include <ATen/ATen.h>

namespace garevla {

inline void check_direction(const at::Tensor& unit_coefficients, const at::Tensor& basis) {
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
}

}  // namespace garevla
