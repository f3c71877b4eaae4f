// pair_similarity, pair_terms and their gradient, on any device (operators.h).
#pragma once

#include <tuple>

#include "pair_inputs.h"

namespace garevla {

// Coefficients and norm may be undefined.
template <typename Device>
void compute_scores(const Device& device, const PairInputs& inputs, const Tensor& similarity,
                    const Tensor& coefficients, const Tensor& norm) {
  with_type_of("text", inputs.text, [&](auto zero) {
    using T = decltype(zero);
    const typename Device::template PairEngine<T> engine(device, inputs, 0);
    engine.for_each_chunk([&](const auto& chunk) {
      engine.forward(chunk, {data_at<T>(similarity, chunk.first), data_at<T>(norm, chunk.first),
                             data_at<T>(coefficients, chunk.first)});
    });
  });
}

template <typename Device>
Tensor pair_similarity(const Tensor& text, const std::vector<Tensor>& factors,
                       double pool_temperature, const std::vector<double>& layer_norm_eps) {
  const Device device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const Tensor similarity = inputs.empty("BA");
  compute_scores(device, inputs, similarity, {}, {});
  return similarity;
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> pair_terms(const Tensor& text,
                                              const std::vector<Tensor>& factors,
                                              double pool_temperature,
                                              const std::vector<double>& layer_norm_eps) {
  const Device device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const Tensor similarity = inputs.empty("BA"), coefficients = inputs.empty("BKA");
  const Tensor norm = inputs.empty("BA");
  compute_scores(device, inputs, similarity, coefficients, norm);
  return {similarity, coefficients, norm};
}

template <typename Device>
std::vector<Tensor> pair_terms_backward(const Tensor& text, const std::vector<Tensor>& factors,
                                        double pool_temperature,
                                        const std::vector<double>& layer_norm_eps,
                                        const Tensor& grad_similarity,
                                        const std::optional<Tensor>& grad_coefficients,
                                        const std::optional<Tensor>& grad_norm) {
  const Device device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const PairGradients gradients(inputs);
  const Tensor of_similarity =
      inputs.checked("grad_similarity", grad_similarity, inputs.shape("BA"));
  const Tensor of_coefficients =
      inputs.checked("grad_coefficients", grad_coefficients, inputs.shape("BKA"));
  const Tensor of_norm = inputs.checked("grad_norm", grad_norm, inputs.shape("BA"));
  with_type_of("text", inputs.text, [&](auto zero) {
    using T = decltype(zero);
    using Engine = typename Device::template PairEngine<T>;
    const Engine engine(device, inputs, Engine::Gradient::numbers_per_pair(inputs));
    typename Engine::Gradient gradient(engine, gradients);
    engine.for_each_chunk([&](const auto& chunk) {
      engine.backward(
          chunk,
          {data_at<const T>(of_similarity, chunk.first), data_at<const T>(of_norm, chunk.first),
           data_at<const T>(of_coefficients, chunk.first)},
          gradient);
      gradient.add(chunk);
    });
    gradient.finish();
  });
  return gradients.list();
}

}  // namespace garevla
