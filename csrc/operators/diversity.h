// The directional diversity of a tile's texts and its gradient, on any device (register.h): as
// direction.h, from increments in memory.
//
// A Device's namespace has compute_diversity, which returns the sum (0-d) and fills a gradient that
// is defined, from grad_output.
#pragma once

#include "operators/direction.h"
#include "operators/tiles.h"

namespace garevla {

// Lengths below count as this.
constexpr double shortest_increment = 1e-12;

template <typename Device>
at::Tensor diversity_or_gradient(const at::Tensor& increments, const at::Tensor& norm, double alpha,
                                 const at::Tensor& grad_output, const at::Tensor& gradient) {
  const Device device(increments);
  const TileSizes sizes("increments", increments);
  const at::Tensor lengths = sizes.checked("norm", norm, {sizes.videos, sizes.texts});
  at::Tensor value;
  AT_DISPATCH_FLOATING_TYPES(increments.scalar_type(), "diversity", [&] {
    value = compute_diversity(device, increments.contiguous(), lengths, scalar_t(alpha),
                              grad_output, gradient);
  });
  return value;
}

template <typename Device>
at::Tensor diversity(const at::Tensor& increments, const at::Tensor& norm, double alpha) {
  return diversity_or_gradient<Device>(increments, norm, alpha, {}, {});
}

template <typename Device>
at::Tensor diversity_gradient(const at::Tensor& increments, const at::Tensor& norm, double alpha,
                              const at::Tensor& grad_output) {
  const at::Tensor gradient = at::empty(increments.sizes(), increments.options());
  diversity_or_gradient<Device>(increments, norm, alpha, grad_output, gradient);
  return gradient;
}

}  // namespace garevla
