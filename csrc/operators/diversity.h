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
Tensor diversity_or_gradient(const Tensor& increments, const Tensor& norm, double alpha,
                             const Tensor& grad_output, const Tensor& gradient) {
  const Device device(increments);
  const TileSizes sizes("increments", increments);
  const Tensor lengths = sizes.checked("norm", norm, {sizes.videos, sizes.texts});
  if (gradient.defined()) sizes.checked("grad_output", grad_output, {});
  Tensor value;
  with_type_of("increments", increments, [&](auto zero) {
    using T = decltype(zero);
    value = compute_diversity(device, increments.contiguous(), lengths, T(alpha), grad_output,
                              gradient);
  });
  return value;
}

template <typename Device>
Tensor diversity(const Tensor& increments, const Tensor& norm, double alpha) {
  return diversity_or_gradient<Device>(increments, norm, alpha, {}, {});
}

template <typename Device>
Tensor diversity_gradient(const Tensor& increments, const Tensor& norm, double alpha,
                          const Tensor& grad_output) {
  const Tensor gradient = increments.like();
  diversity_or_gradient<Device>(increments, norm, alpha, grad_output, gradient);
  return gradient;
}

}  // namespace garevla
