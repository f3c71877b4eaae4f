// The arguments that every pair operator shares: checked once, made contiguous, sizes at hand.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <optional>
#include <vector>

#include "pair_types.h"

namespace garevla {

struct PairInputs {
  at::Tensor text;         // (A, D)
  at::Tensor rows;         // (B, R, D): keys, frames, basis
  at::Tensor frame_mask;   // (B, F) bool
  at::Tensor key_offset;   // (B, H, F)
  at::Tensor key_bias;     // (B, H, F)
  at::Tensor mean_frame;   // (B, D) centred over D
  at::Tensor value_gram;   // (B, H*F, H*F)
  at::Tensor hidden_gram;  // (B, H*F+1, H*F+1)
  at::Tensor basis_gram;   // (B, K, K)
  at::Tensor frame_gram;   // (B, F, F)
  at::Tensor basis_frame;  // (B, K, F)
  double pool_temperature;
  std::array<double, 3> layer_norm_eps;

  std::int64_t texts, videos, dim, heads, frames, attention, basis, num_rows;

  PairInputs(const at::Tensor& text_features, at::TensorList factors, double temperature,
             at::ArrayRef<double> eps) {
    TORCH_CHECK_VALUE(factors.size() == 10, "factors must be 10 tensors, got ", factors.size());
    TORCH_CHECK_VALUE(eps.size() == 3, "layer_norm_eps must be 3 numbers, got ", eps.size());
    pool_temperature = temperature;
    for (int k = 0; k < 3; ++k) layer_norm_eps[k] = eps[k];
    text = text_features.contiguous();
    at::Tensor* own[] = {&rows,       &frame_mask,  &key_offset, &key_bias,   &mean_frame,
                         &value_gram, &hidden_gram, &basis_gram, &frame_gram, &basis_frame};
    for (std::size_t k = 0; k < 10; ++k) *own[k] = factors[k].contiguous();

    TORCH_CHECK_VALUE(text.dim() == 2, "text must have shape (A, D), got ", text.sizes());
    TORCH_CHECK_VALUE(key_bias.dim() == 3, "key_bias must have shape (B, H, F), got ",
                      key_bias.sizes());
    texts = text.size(0);
    dim = text.size(1);
    videos = key_bias.size(0);
    heads = key_bias.size(1);
    frames = key_bias.size(2);
    attention = heads * frames;
    basis = attention + 2;
    num_rows = 2 * attention + frames + 2;
    TORCH_CHECK_VALUE(texts > 0 && videos > 0 && attention > 0 && dim > 0,
                      "the pair operators need a text and a video at least");
    check("rows", rows, {videos, num_rows, dim}, text.scalar_type());
    check("frame_mask", frame_mask, {videos, frames}, at::kBool);
    check("key_offset", key_offset, {videos, heads, frames}, text.scalar_type());
    check("key_bias", key_bias, {videos, heads, frames}, text.scalar_type());
    check("mean_frame", mean_frame, {videos, dim}, text.scalar_type());
    check("value_gram", value_gram, {videos, attention, attention}, text.scalar_type());
    check("hidden_gram", hidden_gram, {videos, attention + 1, attention + 1}, text.scalar_type());
    check("basis_gram", basis_gram, {videos, basis, basis}, text.scalar_type());
    check("frame_gram", frame_gram, {videos, frames, frames}, text.scalar_type());
    check("basis_frame", basis_frame, {videos, basis, frames}, text.scalar_type());
  }

  // Raises unless a tensor lies beside the texts and has this shape and type.
  void check(const char* name, const at::Tensor& tensor, const std::vector<std::int64_t>& shape,
             at::ScalarType dtype) const {
    TORCH_CHECK_VALUE(tensor.sizes() == at::IntArrayRef(shape), name, " must have shape ",
                      at::IntArrayRef(shape), ", got ", tensor.sizes());
    TORCH_CHECK_VALUE(tensor.device() == text.device(), name, " is on ", tensor.device(),
                      ", text on ", text.device());
    TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ",
                     tensor.scalar_type());
  }

  // A checked, contiguous tensor of the texts' type.
  at::Tensor checked(const char* name, const at::Tensor& tensor,
                     const std::vector<std::int64_t>& shape) const {
    check(name, tensor, shape, text.scalar_type());
    return tensor.contiguous();
  }
  // Undefined where there is none.
  at::Tensor checked(const char* name, const std::optional<at::Tensor>& tensor,
                     const std::vector<std::int64_t>& shape) const {
    return tensor ? checked(name, *tensor, shape) : at::Tensor();
  }

  template <typename T>
  PairConstants<T> constants() const {
    return {{T(layer_norm_eps[0]), T(layer_norm_eps[1]), T(layer_norm_eps[2])},
            T(1 / pool_temperature)};
  }

  template <typename T>
  VideoView<T> video(std::int64_t j) const {
    auto at = [j](const at::Tensor& tensor) {
      return tensor.const_data_ptr<T>() + j * tensor.stride(0);
    };
    return {int(heads),      int(frames),    frame_mask.const_data_ptr<bool>() + j * frames,
            at(key_offset),  at(key_bias),   at(value_gram),
            at(hidden_gram), at(basis_gram), at(frame_gram),
            at(basis_frame)};
  }
};

// Gradients of text and of the factors, in the order in which the operators return them.
struct PairGradients {
  at::Tensor text, rows, key_offset, key_bias, mean_frame, value_gram, hidden_gram, basis_gram,
      frame_gram, basis_frame;

  explicit PairGradients(const PairInputs& inputs)
      : text(at::empty_like(inputs.text)),
        rows(at::empty_like(inputs.rows)),
        key_offset(at::empty_like(inputs.key_offset)),
        key_bias(at::empty_like(inputs.key_bias)),
        mean_frame(at::empty_like(inputs.mean_frame)),
        value_gram(at::empty_like(inputs.value_gram)),
        hidden_gram(at::empty_like(inputs.hidden_gram)),
        basis_gram(at::empty_like(inputs.basis_gram)),
        frame_gram(at::empty_like(inputs.frame_gram)),
        basis_frame(at::empty_like(inputs.basis_frame)) {}

  template <typename T>
  VideoGradient<T> video(std::int64_t j) const {
    auto at = [j](const at::Tensor& tensor) { return tensor.data_ptr<T>() + j * tensor.stride(0); };
    return {at(key_offset), at(key_bias),   at(value_gram), at(hidden_gram),
            at(basis_gram), at(frame_gram), at(basis_frame)};
  }

  std::vector<at::Tensor> list() const {
    return {text,       rows,        key_offset, key_bias,   mean_frame,
            value_gram, hidden_gram, basis_gram, frame_gram, basis_frame};
  }
};

}  // namespace garevla
