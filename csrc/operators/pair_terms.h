// pair_similarity, pair_terms and their gradient, on any device (operators.h).
#pragma once

#include <ATen/ATen.h>

#include <tuple>

#include "pair_inputs.h"

namespace garevla {

// Coefficients and norm may be undefined.
template <typename Device>
void compute_scores(const Device& device, const PairInputs& inputs, const at::Tensor& similarity,
                    const at::Tensor& coefficients, const at::Tensor& norm) {
  AT_DISPATCH_FLOATING_TYPES(inputs.text.scalar_type(), "pair_terms", [&] {
    const typename Device::template PairEngine<scalar_t> engine(device, inputs, 0);
    engine.for_each_chunk([&](const auto& chunk) {
      engine.forward(
          chunk, {data_at<scalar_t>(similarity, chunk.first), data_at<scalar_t>(norm, chunk.first),
                  data_at<scalar_t>(coefficients, chunk.first)});
    });
  });
}

template <typename Device>
at::Tensor pair_similarity(const at::Tensor& text, at::TensorList factors, double pool_temperature,
                           at::ArrayRef<double> layer_norm_eps) {
  const Device device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const at::Tensor similarity = inputs.empty("BA");
  compute_scores(device, inputs, similarity, {}, {});
  return similarity;
}

template <typename Device>
std::tuple<at::Tensor, at::Tensor, at::Tensor> pair_terms(const at::Tensor& text,
                                                          at::TensorList factors,
                                                          double pool_temperature,
                                                          at::ArrayRef<double> layer_norm_eps) {
  const Device device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const at::Tensor similarity = inputs.empty("BA"), coefficients = inputs.empty("BKA");
  const at::Tensor norm = inputs.empty("BA");
  compute_scores(device, inputs, similarity, coefficients, norm);
  return {similarity, coefficients, norm};
}

template <typename Device>
std::vector<at::Tensor> pair_terms_backward(const at::Tensor& text, at::TensorList factors,
                                            double pool_temperature,
                                            at::ArrayRef<double> layer_norm_eps,
                                            const at::Tensor& grad_similarity,
                                            const std::optional<at::Tensor>& grad_coefficients,
                                            const std::optional<at::Tensor>& grad_norm) {
  const Device device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const PairGradients gradients(inputs);
  const at::Tensor of_similarity =
      inputs.checked("grad_similarity", grad_similarity, inputs.shape("BA"));
  const at::Tensor of_coefficients =
      inputs.checked("grad_coefficients", grad_coefficients, inputs.shape("BKA"));
  const at::Tensor of_norm = inputs.checked("grad_norm", grad_norm, inputs.shape("BA"));
  AT_DISPATCH_FLOATING_TYPES(inputs.text.scalar_type(), "pair_terms_backward", [&] {
    using Engine = typename Device::template PairEngine<scalar_t>;
    const Engine engine(device, inputs, Engine::Gradient::numbers_per_pair(inputs));
    typename Engine::Gradient gradient(engine, gradients);
    engine.for_each_chunk([&](const auto& chunk) {
      engine.backward(chunk,
                      {data_at<const scalar_t>(of_similarity, chunk.first),
                       data_at<const scalar_t>(of_norm, chunk.first),
                       data_at<const scalar_t>(of_coefficients, chunk.first)},
                      gradient);
      gradient.add(chunk);
    });
    gradient.finish();
  });
  return gradients.list();
}

}  // namespace garevla
