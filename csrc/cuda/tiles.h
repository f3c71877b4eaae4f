// The elementwise parts of a tile of pairs, on a GPU. Sums over pairs are taken in order, without
// atomics: over a video's texts, and then over the videos.
#pragma once

#include "cuda/expressions.h"
#include "cuda/tile_kernels.h"
#include "operators/diversity.h"

namespace garevla::cuda {

// Sums of values (b, a, columns) over one axis of the pairs or both.
template <typename T>
struct PairSums {
  const OnDeviceOf& device;
  std::int64_t videos, texts, columns;
  const T* values;

  // to (b, columns), weights (b, a) or null.
  void over_texts(const T* weights, T* to) const {
    run({videos, texts, texts, 1, columns, values, weights, T(1), to});
  }
  // to (a, columns).
  void over_videos(const T* weights, T scale, T* to) const {
    run({texts, 1, videos, texts, columns, values, weights, scale, to});
  }
  // to (columns).
  void over_all(T* to) const {
    const Tensor by_video = device.empty<T>({videos, columns});
    over_texts(nullptr, data_at<T>(by_video));
    run({1, 0, videos, 1, columns, data_at<const T>(by_video), nullptr, T(1), to});
  }
  void run(const PairSum<T>& sum) const { device.check(launch_pair_sum(sum, device.stream())); }
};

template <typename T>
void compute_gap_hidden(const OnDeviceOf& device, const GapTile<T>& tile, T* hidden) {
  device.check(launch_gap_hidden(tile, hidden, device.stream()));
}

template <typename T>
void compute_gap_hidden_backward(const OnDeviceOf& device, const GapTile<T>& tile, const T* grad,
                                 const GapGradient<T>& to) {
  const Tensor memory = device.empty<T>({tile.videos, tile.texts, tile.size});
  T* through = data_at<T>(memory);
  device.check(launch_gap_hidden_backward(tile, grad, through, to.coefficients, device.stream()));
  const PairSums<T> sums{device, tile.videos, tile.texts, tile.size, through};
  sums.over_texts(tile.coefficients, to.video);
  sums.over_videos(tile.coefficients, T(-1), to.text);
  sums.over_all(to.shift);
}

template <typename T>
void compute_attention_hidden(const OnDeviceOf& device, const AttentionTile<T>& tile,
                              const T* mixed, const T* shift, T* hidden, T* inverse) {
  device.check(launch_attention_hidden(tile, mixed, shift, hidden, inverse, device.stream()));
}

template <typename T>
void compute_attention_hidden_backward(const OnDeviceOf& device, const AttentionTile<T>& tile,
                                       const T* grad, const T* hidden, const T* inverse,
                                       T* grad_mixed, T* sum) {
  device.check(
      launch_attention_hidden_backward(tile, grad, hidden, inverse, grad_mixed, device.stream()));
  PairSums<T>{device, tile.videos, tile.texts, 2 * tile.size, grad_mixed}.over_all(sum);
}

template <typename T>
void compute_contract(const OnDeviceOf& device, const Increments<T>& tile,
                      const Contraction<T>& to) {
  device.check(launch_contract(tile, to, device.stream()));
}

template <typename T>
void compute_increment_gradient(const OnDeviceOf& device, const Increments<T>& tile,
                                const IncrementGradient<T>& from, T* grad, T* sum, T* grad_text) {
  device.check(launch_increment_gradient(tile, from, grad, device.stream()));
  PairSums<T>{device, tile.videos, tile.texts, tile.size, grad}.over_all(sum);
  PairSums<T>{device, tile.videos, tile.texts, tile.size, tile.increments}.over_videos(
      from.text_product, T(1), grad_text);
}

// increments (B, a, D), norm (B, a).
template <typename T>
Tensor compute_diversity(const OnDeviceOf& device, const Tensor& increments, const Tensor& norm,
                         T alpha, const Tensor& grad_output, const Tensor& gradient) {
  const std::int64_t videos = increments.size(0), texts = increments.size(1);
  const double pairs = double(videos) * double(videos);
  const Tensor lengths = tensor_of("aten::maximum", "", norm, constant(shortest_increment, norm));
  const Tensor inverse = reciprocal(lengths).with_axis(2);
  const Tensor unit = (increments * inverse).swapped(0, 1);  // (a, B, D)
  const Tensor kernel = device.empty<T>({texts, videos, videos});
  product(kernel, unit, unit.transposed());
  device.check(launch_cosine_kernel<T>(1, texts * videos * videos, alpha, data_at<T>(kernel),
                                       device.stream()));
  const Tensor mean = sum(kernel, {1, 2}) * (1 / pairs) + direction_epsilon;
  if (gradient.defined()) {
    // Each direction meets the symmetric kernel as row and as column.
    const Tensor through = device.empty<T>({texts, videos, increments.size(2)});
    product(through, kernel, unit);
    const Tensor tangent = through - sum(through * unit, {2}, true) * unit;
    const Tensor slope = grad_output * (2.0 * double(alpha) / pairs) * reciprocal(mean);  // (a)
    gradient.copy_from(tangent.swapped(0, 1) * (inverse * slope.with_axis(1)));
  }
  return sum(log(mean), {0});
}

}  // namespace garevla::cuda
