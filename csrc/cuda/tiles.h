// The elementwise parts of a tile of pairs, on a GPU. Sums over pairs are taken in order, without
// atomics: over a video's texts, and then over the videos.
#pragma once

#include "cuda/device.h"
#include "cuda/tile_kernels.h"
#include "operators/diversity.h"

namespace garevla::cuda {

template <typename T>
at::Tensor scratch(at::IntArrayRef shape) {
  return at::empty(shape, at::TensorOptions(at::DeviceType::GAREVLA_DEVICE_KEY)
                              .dtype(c10::CppTypeToScalarType<T>::value));
}

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
    const at::Tensor by_video = scratch<T>({videos, columns});
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
  const at::Tensor memory = scratch<T>({tile.videos, tile.texts, tile.size});
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
at::Tensor compute_diversity(const OnDeviceOf& device, const at::Tensor& increments,
                             const at::Tensor& norm, T alpha, const at::Tensor& grad_output,
                             const at::Tensor& gradient) {
  const std::int64_t videos = increments.size(0), texts = increments.size(1);
  const double pairs = double(videos) * double(videos);
  const at::Tensor inverse = norm.clamp_min(shortest_increment).reciprocal_().unsqueeze_(2);
  const at::Tensor unit = (increments * inverse).transpose(0, 1);  // (a, B, D)
  const at::Tensor kernel = at::bmm(unit, unit.mT());              // (a, B, B)
  device.check(launch_cosine_kernel<T>(1, texts * videos * videos, alpha, data_at<T>(kernel),
                                       device.stream()));
  const at::Tensor mean = kernel.sum({1, 2}).div_(pairs).add_(direction_epsilon);
  if (gradient.defined()) {
    // Each direction meets the symmetric kernel as row and as column.
    const at::Tensor product = kernel.bmm(unit);
    const at::Tensor tangent = product - (product * unit).sum(2, true) * unit;
    const at::Tensor slope = grad_output * (2.0 * double(alpha) / pairs) / mean;  // (a)
    at::Tensor to = gradient;
    to.copy_(tangent.transpose(0, 1)).mul_(inverse * slope.unsqueeze(1));
  }
  return mean.log().sum();
}

}  // namespace garevla::cuda
