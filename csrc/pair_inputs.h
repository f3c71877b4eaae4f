// The arguments that every pair operation shares: checked once, made contiguous, sizes at hand.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <vector>

#include "checks.h"
#include "pair_types.h"

namespace garevla {

// A tensor for each of the videos' factors.
struct Factors {
  Tensor rows, frame_mask, key_offset, key_bias, mean_frame, value_gram, hidden_gram, basis_gram,
      frame_gram, basis_frame;

  // Video j's part.
  template <typename T>
  VideoArrays<T> arrays(std::int64_t j) const {
    return {data_at<T>(key_offset, j),  data_at<T>(key_bias, j),   data_at<T>(value_gram, j),
            data_at<T>(hidden_gram, j), data_at<T>(basis_gram, j), data_at<T>(frame_gram, j),
            data_at<T>(basis_frame, j)};
  }
};

struct Factor {
  const char* name;
  Tensor Factors::* tensor;
  const char* shape;  // letters: PairInputs::shape

  constexpr bool is_mask() const { return tensor == &Factors::frame_mask; }
};

// In the order in which the operators take them, that of VideoFactors in
// garevla/increments/low_rank/factors.py; gradients come in this order, too, without the mask's.
constexpr Factor factor_table[] = {
    {"rows", &Factors::rows, "BRD"},
    {"frame_mask", &Factors::frame_mask, "BF"},
    {"key_offset", &Factors::key_offset, "BHF"},
    {"key_bias", &Factors::key_bias, "BHF"},
    {"mean_frame", &Factors::mean_frame, "BD"},
    {"value_gram", &Factors::value_gram, "BNN"},
    {"hidden_gram", &Factors::hidden_gram, "BMM"},
    {"basis_gram", &Factors::basis_gram, "BKK"},
    {"frame_gram", &Factors::frame_gram, "BFF"},
    {"basis_frame", &Factors::basis_frame, "BKF"},
};

struct PairInputs : Factors {
  Tensor text;  // (A, D)
  double pool_temperature;
  std::array<double, 3> layer_norm_eps;
  std::int64_t texts, videos, dim, heads, frames, attention, basis, num_rows;

  PairInputs(const Tensor& text_features, const std::vector<Tensor>& factors, double temperature,
             const std::vector<double>& eps)
      : text(text_features.contiguous()), pool_temperature(temperature) {
    require(factors.size() == std::size(factor_table), "factors must be ", std::size(factor_table),
            " tensors, got ", factors.size());
    require(eps.size() == layer_norm_eps.size(), "layer_norm_eps must be ", layer_norm_eps.size(),
            " numbers, got ", eps.size());
    std::copy(eps.begin(), eps.end(), layer_norm_eps.begin());
    for (std::size_t k = 0; k < factors.size(); ++k)
      this->*factor_table[k].tensor = factors[k].contiguous();

    require(text.axes() == 2, "text must have shape (A, D), got ", text.sizes());
    require(key_bias.axes() == 3, "key_bias must have shape (B, H, F), got ", key_bias.sizes());
    texts = text.size(0);
    dim = text.size(1);
    videos = key_bias.size(0);
    heads = key_bias.size(1);
    frames = key_bias.size(2);
    attention = heads * frames;
    basis = attention + 2;
    num_rows = attention + frames + basis;
    require(texts > 0 && videos > 0 && attention > 0 && dim > 0,
            "the pair operators need a text and a video at least");
    for (const Factor& factor : factor_table)
      check(factor.name, this->*factor.tensor, shape(factor.shape),
            factor.is_mask() ? type_of<bool>() : text.type());
  }

  // The sizes that letters stand for, as in pair_types.h; N = H*F, M = H*F + 1.
  Shape shape(std::string_view letters) const {
    constexpr std::string_view known = "ABDHFNMKR";
    const std::int64_t sizes[] = {texts,     videos,        dim,   heads,   frames,
                                  attention, attention + 1, basis, num_rows};
    Shape result;
    for (const char letter : letters) result.append(sizes[known.find(letter)]);
    return result;
  }

  // An uninitialized tensor of the texts' type.
  Tensor empty(std::string_view letters) const { return empty(shape(letters)); }
  Tensor empty(const Shape& shape) const {
    return Tensor::empty(shape, text.type(), text.device());
  }
  // The same in double precision.
  Tensor empty_wide(const Shape& shape) const {
    return Tensor::empty(shape, type_of<double>(), text.device());
  }

  void check(const char* name, const Tensor& tensor, const Shape& shape, DataType type) const {
    check_tensor(name, tensor, shape, type, text);
  }

  // A checked, contiguous tensor of the texts' type.
  Tensor checked(const char* name, const Tensor& tensor, const Shape& shape) const {
    check(name, tensor, shape, text.type());
    return tensor.contiguous();
  }
  // Undefined where there is none.
  Tensor checked(const char* name, const std::optional<Tensor>& tensor, const Shape& shape) const {
    return tensor ? checked(name, *tensor, shape) : Tensor();
  }

  template <typename T>
  PairConstants<T> constants() const {
    return {{T(layer_norm_eps[0]), T(layer_norm_eps[1]), T(layer_norm_eps[2])},
            T(1 / pool_temperature)};
  }

  template <typename T>
  VideoView<T> video(std::int64_t j) const {
    return {arrays<const T>(j), int(heads), int(frames), data_at<const bool>(frame_mask, j)};
  }
};

// Of text and of the factors; uninitialized.
struct PairGradients : Factors {
  Tensor text;

  explicit PairGradients(const PairInputs& inputs) : text(inputs.text.like()) {
    for (const Factor& factor : factor_table)
      if (!factor.is_mask()) this->*factor.tensor = (inputs.*factor.tensor).like();
  }

  // In the order in which the operators return them.
  std::vector<Tensor> list() const {
    std::vector<Tensor> gradients = {text};
    for (const Factor& factor : factor_table)
      if (!factor.is_mask()) gradients.push_back(this->*factor.tensor);
    return gradients;
  }
};

}  // namespace garevla
