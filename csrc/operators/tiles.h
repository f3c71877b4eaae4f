// The elementwise parts of a tile of pairs, on any device (register.h): arguments checked, outputs
// made.
//
// A Device's namespace has compute_gap_hidden and so on. They are given structs of tile_types.h and
// arrays, of which sums are zeroed; compute_contract leaves sums of differences from the tile's
// first text.
#pragma once

#include <string>
#include <string_view>
#include <tuple>

#include "checks.h"
#include "tile_types.h"

namespace garevla {

inline Activation activation_named(std::string_view name) {
  constexpr std::string_view names[] = {"gelu", "gelu_tanh", "silu", "relu", "quick_gelu"};
  for (std::size_t k = 0; k < std::size(names); ++k)
    if (names[k] == name) return Activation(k);
  TORCH_CHECK_VALUE(false, "there is no activation ", std::string(name));
}

// The arguments of a tile's dropout, one after the other.
struct DropoutArguments {
  double probability;
  std::int64_t seed, first_text, first_video;

  template <typename T>
  Dropout<T> of() const {
    return Dropout<T>(probability, seed, first_text, first_video);
  }
};

// Of a tensor (b, a, H) and whatever lies beside it.
struct TileSizes {
  at::Tensor like;
  std::int64_t videos, texts, size;

  TileSizes(const char* name, const at::Tensor& tensor) : like(tensor) {
    TORCH_CHECK_VALUE(tensor.dim() == 3 && tensor.numel() > 0, name,
                      " must have three axes, none of them empty, got ", tensor.sizes());
    videos = tensor.size(0);
    texts = tensor.size(1);
    size = tensor.size(2);
  }
  at::Tensor checked(const char* name, const at::Tensor& tensor, at::IntArrayRef shape) const {
    check_tensor(name, tensor, shape, like.scalar_type(), like);
    return tensor.contiguous();
  }
  // A tensor that is written to.
  at::Tensor output(const char* name, const at::Tensor& tensor, at::IntArrayRef shape) const {
    TORCH_CHECK_VALUE(tensor.is_contiguous(), name, " must be contiguous");
    return checked(name, tensor, shape);
  }
  at::Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, like.options()); }
  at::Tensor zeros(at::IntArrayRef shape) const { return at::zeros(shape, like.options()); }
};

struct GapArguments {
  TileSizes sizes;
  at::Tensor coefficients, video, text, shift;
  Activation activation;
  DropoutArguments dropout;

  GapArguments(const TileSizes& tile, const at::Tensor& given_coefficients,
               const at::Tensor& video_hidden, const at::Tensor& text_hidden,
               const at::Tensor& given_shift, std::string_view name, const DropoutArguments& masks)
      : sizes(tile), activation(activation_named(name)), dropout(masks) {
    coefficients = tile.checked("coefficients", given_coefficients, {tile.videos, tile.texts});
    video = tile.checked("video_hidden", video_hidden, {tile.videos, tile.size});
    text = tile.checked("text_hidden", text_hidden, {tile.texts, tile.size});
    shift = tile.checked("shift", given_shift, {tile.size});
  }
  template <typename T>
  GapTile<T> of() const {
    return {sizes.videos,
            sizes.texts,
            sizes.size,
            data_at<const T>(coefficients),
            data_at<const T>(video),
            data_at<const T>(text),
            data_at<const T>(shift),
            activation,
            dropout.of<T>()};
  }
};

template <typename Device>
void gap_hidden(const at::Tensor& coefficients, const at::Tensor& video_hidden,
                const at::Tensor& text_hidden, const at::Tensor& shift, std::string_view activation,
                double dropout, std::int64_t seed, std::int64_t first_text,
                std::int64_t first_video, const at::Tensor& out) {
  const Device device(out);
  const TileSizes sizes("out", out);
  const GapArguments given(sizes, coefficients, video_hidden, text_hidden, shift, activation,
                           {dropout, seed, first_text, first_video});
  const at::Tensor to = sizes.output("out", out, out.sizes());
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "gap_hidden", [&] {
    compute_gap_hidden(device, given.of<scalar_t>(), data_at<scalar_t>(to));
  });
}

template <typename Device>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gap_hidden_backward(
    const at::Tensor& coefficients, const at::Tensor& video_hidden, const at::Tensor& text_hidden,
    const at::Tensor& shift, std::string_view activation, double dropout, std::int64_t seed,
    std::int64_t first_text, std::int64_t first_video, const at::Tensor& grad) {
  const Device device(grad);
  const TileSizes sizes("grad", grad);
  const GapArguments given(sizes, coefficients, video_hidden, text_hidden, shift, activation,
                           {dropout, seed, first_text, first_video});
  const at::Tensor from = grad.contiguous();
  const at::Tensor grad_coefficients = at::empty_like(given.coefficients);
  const at::Tensor video = at::zeros_like(given.video), text = at::zeros_like(given.text);
  const at::Tensor sum = at::zeros_like(given.shift);
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "gap_hidden_backward", [&] {
    const GapGradient<scalar_t> to = {data_at<scalar_t>(grad_coefficients),
                                      data_at<scalar_t>(video), data_at<scalar_t>(text),
                                      data_at<scalar_t>(sum)};
    compute_gap_hidden_backward(device, given.of<scalar_t>(), data_at<const scalar_t>(from), to);
  });
  return {grad_coefficients, video, text, sum};
}

template <typename Device>
at::Tensor attention_hidden(const at::Tensor& mixed, const at::Tensor& shift, double eps,
                            double dropout, std::int64_t seed, std::int64_t first_text,
                            std::int64_t first_video, const at::Tensor& out) {
  const Device device(out);
  const TileSizes sizes("out", out);
  const auto& [like, videos, texts, size] = sizes;
  const at::Tensor from = sizes.checked("mixed", mixed, {videos, texts, 2 * size});
  const at::Tensor offset = sizes.checked("shift", shift, {2 * size});
  const at::Tensor to = sizes.output("out", out, out.sizes());
  const at::Tensor inverse = sizes.empty({videos, texts});
  const DropoutArguments masks = {dropout, seed, first_text, first_video};
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "attention_hidden", [&] {
    const AttentionTile<scalar_t> tile = {sizes.videos, sizes.texts, sizes.size, scalar_t(eps),
                                          masks.of<scalar_t>()};
    compute_attention_hidden(device, tile, data_at<const scalar_t>(from),
                             data_at<const scalar_t>(offset), data_at<scalar_t>(to),
                             data_at<scalar_t>(inverse));
  });
  return inverse;
}

template <typename Device>
at::Tensor attention_hidden_backward(const at::Tensor& grad, const at::Tensor& hidden,
                                     const at::Tensor& inverse, double dropout, std::int64_t seed,
                                     std::int64_t first_text, std::int64_t first_video,
                                     const at::Tensor& out) {
  const Device device(grad);
  const TileSizes sizes("grad", grad);
  const auto& [like, videos, texts, size] = sizes;
  const at::Tensor from = grad.contiguous();
  const at::Tensor vectors = sizes.checked("hidden", hidden, grad.sizes());
  const at::Tensor scales = sizes.checked("inverse", inverse, {videos, texts});
  const at::Tensor to = sizes.output("out", out, {videos, texts, 2 * size});
  const at::Tensor sum = sizes.zeros({2 * size});
  const DropoutArguments masks = {dropout, seed, first_text, first_video};
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "attention_hidden_backward", [&] {
    const AttentionTile<scalar_t> tile = {sizes.videos, sizes.texts, sizes.size, scalar_t(0),
                                          masks.of<scalar_t>()};
    compute_attention_hidden_backward(
        device, tile, data_at<const scalar_t>(from), data_at<const scalar_t>(vectors),
        data_at<const scalar_t>(scales), data_at<scalar_t>(to), data_at<scalar_t>(sum));
  });
  return sum;
}

struct IncrementArguments {
  TileSizes sizes;
  at::Tensor increments, text;

  IncrementArguments(const at::Tensor& given, const at::Tensor& text_features)
      : sizes("increments", given), increments(given.contiguous()) {
    text = sizes.checked("text", text_features, {sizes.texts, sizes.size});
  }
  template <typename T>
  Increments<T> of() const {
    return {sizes.videos, sizes.texts, sizes.size, data_at<const T>(increments),
            data_at<const T>(text)};
  }
};

template <typename Device>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> contract(const at::Tensor& increments,
                                                                    const at::Tensor& text,
                                                                    bool with_moments) {
  const Device device(increments);
  const IncrementArguments given(increments, text);
  const TileSizes& sizes = given.sizes;
  const at::Tensor product = sizes.empty({sizes.videos, sizes.texts});
  const at::Tensor norm = at::empty_like(product);
  const std::int64_t features = with_moments ? sizes.size : 0;
  const at::Tensor sum = sizes.zeros({sizes.videos, features}), squares = at::zeros_like(sum);
  AT_DISPATCH_FLOATING_TYPES(increments.scalar_type(), "contract", [&] {
    const Contraction<scalar_t> to = {data_at<scalar_t>(product), data_at<scalar_t>(norm),
                                      with_moments ? data_at<scalar_t>(sum) : nullptr,
                                      with_moments ? data_at<scalar_t>(squares) : nullptr};
    compute_contract(device, given.of<scalar_t>(), to);
  });
  if (!with_moments) return {product, norm, sum, squares};
  const at::Tensor distance = sum / sizes.texts;
  const at::Tensor deviation = (squares - distance * sum).clamp_min_(0);
  return {product, norm, given.increments.select(1, 0) + distance, deviation};
}

template <typename Device>
std::tuple<at::Tensor, at::Tensor> increment_gradient(
    const at::Tensor& increments, const at::Tensor& text, const at::Tensor& grad_text_product,
    const at::Tensor& grad_norm_product, at::TensorList grad_moments, const at::Tensor& out) {
  const Device device(increments);
  const IncrementArguments given(increments, text);
  const TileSizes& sizes = given.sizes;
  const at::IntArrayRef shape = increments.sizes();
  const at::Tensor product =
      sizes.checked("grad_text_product", grad_text_product, shape.slice(0, 2));
  const at::Tensor norm = sizes.checked("grad_norm_product", grad_norm_product, shape.slice(0, 2));
  at::Tensor moments[3];
  TORCH_CHECK_VALUE(grad_moments.empty() || grad_moments.size() == std::size(moments),
                    "grad_moments must be shift, slope and center, or nothing, got ",
                    grad_moments.size(), " tensors");
  for (std::size_t k = 0; k < grad_moments.size(); ++k)
    moments[k] = sizes.checked("grad_moments", grad_moments[k], {sizes.videos, sizes.size});
  const at::Tensor to = sizes.output("out", out, shape);
  const at::Tensor sum = sizes.zeros({sizes.size}), grad_text = at::zeros_like(given.text);
  AT_DISPATCH_FLOATING_TYPES(increments.scalar_type(), "increment_gradient", [&] {
    const IncrementGradient<scalar_t> from = {
        data_at<const scalar_t>(product), data_at<const scalar_t>(norm),
        data_at<const scalar_t>(moments[0]), data_at<const scalar_t>(moments[1]),
        data_at<const scalar_t>(moments[2])};
    compute_increment_gradient(device, given.of<scalar_t>(), from, data_at<scalar_t>(to),
                               data_at<scalar_t>(sum), data_at<scalar_t>(grad_text));
  });
  return {sum, grad_text};
}

}  // namespace garevla
