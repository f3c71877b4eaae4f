// pair_similarity, pair_terms and their gradient on a CPU.

#include <torch/library.h>

#include <tuple>

#include "cpu/pair_engine.h"

namespace garevla::cpu {
namespace {

template <typename T>
void forward(const PairInputs& inputs, const at::Tensor& similarity, const at::Tensor& coefficients,
             const at::Tensor& norm) {
  const PairEngine<T> engine(inputs);
  const std::int64_t texts = inputs.texts;
  engine.for_each_group(
      0, inputs.videos, {},
      [&](std::int64_t first, std::int64_t last, const at::Tensor& products,
          const at::Tensor& variance) {
        const Scratch<T> scratch(engine.scratch_size());
        for (std::int64_t j = first; j < last; ++j) {
          engine.kernels.forward(
              inputs.video<T>(j), engine.constants, texts,
              products.const_data_ptr<T>() + (j - first) * inputs.num_rows * texts,
              variance.const_data_ptr<T>() + (j - first) * texts, engine.squared_norm(),
              similarity.data_ptr<T>() + j * texts,
              norm.defined() ? norm.data_ptr<T>() + j * texts : nullptr,
              coefficients.defined() ? coefficients.data_ptr<T>() + j * inputs.basis * texts
                                     : nullptr,
              scratch.data());
        }
      });
}

template <typename T>
void backward(const PairInputs& inputs, const at::Tensor& grad_similarity,
              const at::Tensor& grad_coefficients, const at::Tensor& grad_norm,
              const PairGradients& gradients) {
  const PairEngine<T> engine(inputs);
  typename PairEngine<T>::TextGradient text(engine, gradients.text);
  const std::int64_t texts = inputs.texts, per_video = inputs.num_rows * texts;
  const auto options = inputs.text.options();
  const std::int64_t chunk = engine.chunk();
  const at::Tensor all_products = at::empty({chunk * inputs.num_rows, texts}, options);
  const at::Tensor all_variance = at::empty({chunk, texts}, options);
  const at::Tensor all_squared_norm = at::empty({chunk, texts}, options);
  for (std::int64_t begin = 0; begin < inputs.videos; begin += chunk) {
    const std::int64_t end = std::min(begin + chunk, inputs.videos);
    const std::int64_t count = end - begin;
    const at::Tensor grad_products = all_products.narrow(0, 0, count * inputs.num_rows);
    const at::Tensor grad_variance = all_variance.narrow(0, 0, count);
    const at::Tensor grad_squared_norm = all_squared_norm.narrow(0, 0, count);
    engine.for_each_group(
        begin, end, grad_products,
        [&](std::int64_t first, std::int64_t last, const at::Tensor& products,
            const at::Tensor& variance) {
          const Scratch<T> scratch(engine.scratch_size());
          for (std::int64_t j = first; j < last; ++j) {
            engine.kernels.backward(
                inputs.video<T>(j), engine.constants, texts,
                products.data_ptr<T>() + (j - first) * per_video,
                variance.const_data_ptr<T>() + (j - first) * texts, engine.squared_norm(),
                grad_similarity.const_data_ptr<T>() + j * texts,
                grad_norm.defined() ? grad_norm.const_data_ptr<T>() + j * texts : nullptr,
                grad_coefficients.defined()
                    ? grad_coefficients.const_data_ptr<T>() + j * inputs.basis * texts
                    : nullptr,
                grad_variance.data_ptr<T>() + (j - begin) * texts,
                grad_squared_norm.data_ptr<T>() + (j - begin) * texts, gradients.video<T>(j),
                scratch.data());
          }
          engine.video_gradient(first, last, products,
                                grad_variance.narrow(0, first - begin, last - first), gradients);
        });
    text.add(begin, end, grad_products, grad_variance, grad_squared_norm);
  }
  text.finish();
}

at::Tensor pair_similarity(const at::Tensor& text, at::TensorList factors, double pool_temperature,
                           at::ArrayRef<double> layer_norm_eps) {
  const WithoutAutocast guard;
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  at::Tensor similarity = at::empty({inputs.videos, inputs.texts}, inputs.text.options());
  AT_DISPATCH_FLOATING_TYPES(inputs.text.scalar_type(), "pair_similarity",
                             [&] { forward<scalar_t>(inputs, similarity, {}, {}); });
  return similarity;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pair_terms(const at::Tensor& text,
                                                          at::TensorList factors,
                                                          double pool_temperature,
                                                          at::ArrayRef<double> layer_norm_eps) {
  const WithoutAutocast guard;
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const auto options = inputs.text.options();
  at::Tensor similarity = at::empty({inputs.videos, inputs.texts}, options);
  at::Tensor coefficients = at::empty({inputs.videos, inputs.basis, inputs.texts}, options);
  at::Tensor norm = at::empty({inputs.videos, inputs.texts}, options);
  AT_DISPATCH_FLOATING_TYPES(inputs.text.scalar_type(), "pair_terms",
                             [&] { forward<scalar_t>(inputs, similarity, coefficients, norm); });
  return {similarity, coefficients, norm};
}

std::vector<at::Tensor> pair_terms_backward(const at::Tensor& text, at::TensorList factors,
                                            double pool_temperature,
                                            at::ArrayRef<double> layer_norm_eps,
                                            const at::Tensor& grad_similarity,
                                            const std::optional<at::Tensor>& grad_coefficients,
                                            const std::optional<at::Tensor>& grad_norm) {
  const WithoutAutocast guard;
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const PairGradients gradients(inputs);
  const std::vector<std::int64_t> of_pairs = {inputs.videos, inputs.texts};
  AT_DISPATCH_FLOATING_TYPES(inputs.text.scalar_type(), "pair_terms_backward", [&] {
    backward<scalar_t>(inputs, inputs.checked("grad_similarity", grad_similarity, of_pairs),
                       inputs.checked("grad_coefficients", grad_coefficients,
                                      {inputs.videos, inputs.basis, inputs.texts}),
                       inputs.checked("grad_norm", grad_norm, of_pairs), gradients);
  });
  return gradients.list();
}

}  // namespace
}  // namespace garevla::cpu

TORCH_LIBRARY_IMPL(garevla, CPU, m) {
  m.impl("pair_similarity", garevla::cpu::pair_similarity);
  m.impl("pair_terms", garevla::cpu::pair_terms);
  m.impl("pair_terms_backward", garevla::cpu::pair_terms_backward);
}
