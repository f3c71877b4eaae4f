// The elementwise parts of a tile of pairs, on any device (register.h): arguments checked, outputs
// made.
//
// A Device's namespace has compute_gap_hidden and so on. They are given structs of tile_types.h and
// arrays, of which sums are zeroed.
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
  raise<std::invalid_argument>("there is no activation ", name);
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
  Tensor like;
  std::int64_t videos, texts, size;

  TileSizes(const char* name, const Tensor& tensor) : like(tensor) {
    require(tensor.axes() == 3 && tensor.count() > 0, name,
            " must have three axes, none of them empty, got ", tensor.sizes());
    videos = tensor.size(0);
    texts = tensor.size(1);
    size = tensor.size(2);
  }
  Tensor checked(const char* name, const Tensor& tensor, const Shape& shape) const {
    check_tensor(name, tensor, shape, like.type(), like);
    return tensor.contiguous();
  }
  // A tensor that is written to.
  Tensor output(const char* name, const Tensor& tensor, const Shape& shape) const {
    require(tensor.is_contiguous(), name, " must be contiguous");
    return checked(name, tensor, shape);
  }
  Tensor empty(const Shape& shape) const {
    return Tensor::empty(shape, like.type(), like.device());
  }
  Tensor zeros(const Shape& shape) const {
    const Tensor tensor = empty(shape);
    tensor.zero();
    return tensor;
  }
};

struct GapArguments {
  TileSizes sizes;
  Tensor coefficients, video, text, shift;
  Activation activation;
  DropoutArguments dropout;

  GapArguments(const TileSizes& tile, const Tensor& given_coefficients, const Tensor& video_hidden,
               const Tensor& text_hidden, const Tensor& given_shift, std::string_view name,
               const DropoutArguments& masks)
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
void gap_hidden(const Tensor& coefficients, const Tensor& video_hidden, const Tensor& text_hidden,
                const Tensor& shift, const std::string& activation, double dropout,
                std::int64_t seed, std::int64_t first_text, std::int64_t first_video,
                const Tensor& out) {
  const Device device(out);
  const TileSizes sizes("out", out);
  const GapArguments given(sizes, coefficients, video_hidden, text_hidden, shift, activation,
                           {dropout, seed, first_text, first_video});
  const Tensor to = sizes.output("out", out, out.sizes());
  with_type_of("out", out, [&](auto zero) {
    using T = decltype(zero);
    compute_gap_hidden(device, given.of<T>(), data_at<T>(to));
  });
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> gap_hidden_backward(
    const Tensor& coefficients, const Tensor& video_hidden, const Tensor& text_hidden,
    const Tensor& shift, const std::string& activation, double dropout, std::int64_t seed,
    std::int64_t first_text, std::int64_t first_video, const Tensor& grad) {
  const Device device(grad);
  const TileSizes sizes("grad", grad);
  const GapArguments given(sizes, coefficients, video_hidden, text_hidden, shift, activation,
                           {dropout, seed, first_text, first_video});
  const Tensor from = grad.contiguous();
  const Tensor grad_coefficients = given.coefficients.like();
  const Tensor video = sizes.zeros(given.video.sizes()), text = sizes.zeros(given.text.sizes());
  const Tensor sum = sizes.zeros(given.shift.sizes());
  with_type_of("grad", grad, [&](auto zero) {
    using T = decltype(zero);
    const GapGradient<T> to = {data_at<T>(grad_coefficients), data_at<T>(video), data_at<T>(text),
                               data_at<T>(sum)};
    compute_gap_hidden_backward(device, given.of<T>(), data_at<const T>(from), to);
  });
  return {grad_coefficients, video, text, sum};
}

template <typename Device>
Tensor attention_hidden(const Tensor& mixed, const Tensor& shift, double eps, double dropout,
                        std::int64_t seed, std::int64_t first_text, std::int64_t first_video,
                        const Tensor& out) {
  const Device device(out);
  const TileSizes sizes("out", out);
  const auto& [like, videos, texts, size] = sizes;
  const Tensor from = sizes.checked("mixed", mixed, {videos, texts, 2 * size});
  const Tensor offset = sizes.checked("shift", shift, {2 * size});
  const Tensor to = sizes.output("out", out, out.sizes());
  const Tensor inverse = sizes.empty({videos, texts});
  const DropoutArguments masks = {dropout, seed, first_text, first_video};
  with_type_of("out", out, [&](auto zero) {
    using T = decltype(zero);
    const AttentionTile<T> tile = {sizes.videos, sizes.texts, sizes.size, T(eps), masks.of<T>()};
    compute_attention_hidden(device, tile, data_at<const T>(from), data_at<const T>(offset),
                             data_at<T>(to), data_at<T>(inverse));
  });
  return inverse;
}

template <typename Device>
Tensor attention_hidden_backward(const Tensor& grad, const Tensor& hidden, const Tensor& inverse,
                                 double dropout, std::int64_t seed, std::int64_t first_text,
                                 std::int64_t first_video, const Tensor& out) {
  const Device device(grad);
  const TileSizes sizes("grad", grad);
  const auto& [like, videos, texts, size] = sizes;
  const Tensor from = grad.contiguous();
  const Tensor vectors = sizes.checked("hidden", hidden, grad.sizes());
  const Tensor scales = sizes.checked("inverse", inverse, {videos, texts});
  const Tensor to = sizes.output("out", out, {videos, texts, 2 * size});
  const Tensor sum = sizes.zeros({2 * size});
  const DropoutArguments masks = {dropout, seed, first_text, first_video};
  with_type_of("grad", grad, [&](auto zero) {
    using T = decltype(zero);
    const AttentionTile<T> tile = {sizes.videos, sizes.texts, sizes.size, T(0), masks.of<T>()};
    compute_attention_hidden_backward(device, tile, data_at<const T>(from),
                                      data_at<const T>(vectors), data_at<const T>(scales),
                                      data_at<T>(to), data_at<T>(sum));
  });
  return sum;
}

struct IncrementArguments {
  TileSizes sizes;
  Tensor increments, text;

  IncrementArguments(const Tensor& given, const Tensor& text_features)
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
std::tuple<Tensor, Tensor, Tensor, Tensor> contract(const Tensor& increments, const Tensor& text,
                                                    bool with_moments) {
  const Device device(increments);
  const IncrementArguments given(increments, text);
  const TileSizes& sizes = given.sizes;
  const Tensor product = sizes.empty({sizes.videos, sizes.texts});
  const Tensor norm = product.like();
  const std::int64_t features = with_moments ? sizes.size : 0;
  const Tensor sum = sizes.zeros({sizes.videos, features}), squares = sizes.zeros(sum.sizes());
  with_type_of("increments", increments, [&](auto zero) {
    using T = decltype(zero);
    const Contraction<T> to = {data_at<T>(product), data_at<T>(norm),
                               with_moments ? data_at<T>(sum) : nullptr,
                               with_moments ? data_at<T>(squares) : nullptr};
    compute_contract(device, given.of<T>(), to);
  });
  return {product, norm, sum, squares};
}

template <typename Device>
std::tuple<Tensor, Tensor> increment_gradient(const Tensor& increments, const Tensor& text,
                                              const Tensor& grad_text_product,
                                              const Tensor& grad_norm_product,
                                              const std::vector<Tensor>& grad_moments,
                                              const Tensor& out) {
  const Device device(increments);
  const IncrementArguments given(increments, text);
  const TileSizes& sizes = given.sizes;
  const Shape &shape = increments.sizes(), pairs = {sizes.videos, sizes.texts};
  const Tensor product = sizes.checked("grad_text_product", grad_text_product, pairs);
  const Tensor norm = sizes.checked("grad_norm_product", grad_norm_product, pairs);
  Tensor moments[3];
  require(grad_moments.empty() || grad_moments.size() == std::size(moments),
          "grad_moments must be shift, slope and center, or nothing, got ", grad_moments.size(),
          " tensors");
  for (std::size_t k = 0; k < grad_moments.size(); ++k)
    moments[k] = sizes.checked("grad_moments", grad_moments[k], {sizes.videos, sizes.size});
  const Tensor to = sizes.output("out", out, shape);
  const Tensor sum = sizes.zeros({sizes.size}), grad_text = sizes.zeros(given.text.sizes());
  with_type_of("increments", increments, [&](auto zero) {
    using T = decltype(zero);
    const IncrementGradient<T> from = {data_at<const T>(product), data_at<const T>(norm),
                                       data_at<const T>(moments[0]), data_at<const T>(moments[1]),
                                       data_at<const T>(moments[2])};
    compute_increment_gradient(device, given.of<T>(), from, data_at<T>(to), data_at<T>(sum),
                               data_at<T>(grad_text));
  });
  return {sum, grad_text};
}

}  // namespace garevla
