// pair_statistics, the streaming loss's statistics, and their gradient, on any device
// (operators.h), in O(A + B K²) memory and the buffers of a chunk of videos.
#pragma once

#include <tuple>

#include "operators/pair_statistics_tensors.h"

namespace garevla {

template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pair_statistics(
    const Tensor& text, const std::vector<Tensor>& factors, double pool_temperature,
    const std::vector<double>& layer_norm_eps, const Tensor& logit_scale, const Tensor& targets,
    const std::optional<Tensor>& samples) {
  const Device device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const StatisticsInputs statistics_inputs(inputs, logit_scale, targets, samples);
  StatisticsOutputs to(inputs, statistics_inputs);
  with_type_of("text", inputs.text, [&](auto zero) {
    using T = decltype(zero);
    using Statistics = typename Device::template PairStatistics<T>;
    const typename Device::template PairEngine<T> engine(device, inputs,
                                                         Statistics::numbers_per_pair(inputs));
    const Statistics statistics(engine, statistics_inputs, to);
    engine.for_each_chunk([&](const auto& chunk) { statistics.add(chunk); });
    statistics.finish();
  });
  return {to.row_logsumexp, to.column_logsumexp, to.target_similarity,      to.norm_mean,
          to.norm_variance, to.coefficient_mean, to.coefficient_covariance, to.sampled,
          to.mean_remainder};
}

template <typename Device>
std::vector<Tensor> pair_statistics_backward(
    const Tensor& text, const std::vector<Tensor>& factors, double pool_temperature,
    const std::vector<double>& layer_norm_eps, const Tensor& logit_scale, const Tensor& targets,
    const std::optional<Tensor>& samples, const Tensor& row_logsumexp,
    const Tensor& column_logsumexp, const Tensor& norm_mean, const Tensor& coefficient_mean,
    const std::vector<Tensor>& output_gradients, const std::optional<Tensor>& grad_sampled) {
  const Device device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const StatisticsInputs statistics_inputs(inputs, logit_scale, targets, samples);
  const StatisticsAdjoint adjoint(inputs, statistics_inputs, row_logsumexp, column_logsumexp,
                                  norm_mean, coefficient_mean, output_gradients, grad_sampled);
  const PairGradients gradients(inputs);
  std::vector<Tensor> result = gradients.list();
  // In double: the sums are small beside their terms.
  const Tensor grad_scale = inputs.empty_wide({inputs.videos});
  with_type_of("text", inputs.text, [&](auto zero) {
    using T = decltype(zero);
    using Engine = typename Device::template PairEngine<T>;
    using Backward = typename Device::template PairStatisticsBackward<T>;
    using Gradient = typename Engine::Gradient;
    const Engine engine(
        device, inputs,
        Gradient::numbers_per_pair(inputs) + Backward::numbers_per_pair(inputs, statistics_inputs));
    Gradient gradient(engine, gradients);
    const Backward backward(engine, statistics_inputs, adjoint);
    engine.for_each_chunk([&](const auto& chunk) {
      backward.run(chunk, adjoint.of_videos<T>(chunk.first, statistics_inputs.logit_scale),
                   gradient, grad_scale);
      gradient.add(chunk);
    });
    gradient.finish();
    result.push_back(backward.scale_gradient(grad_scale));
  });
  return result;
}

}  // namespace garevla
