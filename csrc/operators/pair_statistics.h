// pair_statistics, the streaming loss's statistics, and their gradient, on any device
// (operators.h), in O(A + B K²) memory and the buffers of a chunk of videos.
#pragma once

#include <tuple>

#include "operators/pair_statistics_tensors.h"

namespace garevla {

template <typename Device>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
           at::Tensor>
pair_statistics(const at::Tensor& text, at::TensorList factors, double pool_temperature,
                at::ArrayRef<double> layer_norm_eps, const at::Tensor& logit_scale,
                const at::Tensor& targets, const std::optional<at::Tensor>& samples) {
  const Device device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const StatisticsInputs statistics_inputs(inputs, logit_scale, targets, samples);
  StatisticsOutputs to(inputs, statistics_inputs);
  AT_DISPATCH_FLOATING_TYPES(inputs.text.scalar_type(), "pair_statistics", [&] {
    using Statistics = typename Device::template PairStatistics<scalar_t>;
    const typename Device::template PairEngine<scalar_t> engine(
        device, inputs, Statistics::numbers_per_pair(inputs));
    const Statistics statistics(engine, statistics_inputs, to);
    engine.for_each_chunk([&](const auto& chunk) { statistics.add(chunk); });
  });
  to.finish(inputs);
  return {to.row_logsumexp, to.column_logsumexp, to.target_similarity,      to.norm_mean,
          to.norm_variance, to.coefficient_mean, to.coefficient_covariance, to.sampled};
}

template <typename Device>
std::vector<at::Tensor> pair_statistics_backward(
    const at::Tensor& text, at::TensorList factors, double pool_temperature,
    at::ArrayRef<double> layer_norm_eps, const at::Tensor& logit_scale, const at::Tensor& targets,
    const std::optional<at::Tensor>& samples, const at::Tensor& row_logsumexp,
    const at::Tensor& column_logsumexp, const at::Tensor& norm_mean,
    const at::Tensor& coefficient_mean, at::TensorList output_gradients,
    const std::optional<at::Tensor>& grad_sampled) {
  const Device device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const StatisticsInputs statistics_inputs(inputs, logit_scale, targets, samples);
  const StatisticsAdjoint adjoint(inputs, statistics_inputs, row_logsumexp, column_logsumexp,
                                  norm_mean, coefficient_mean, output_gradients, grad_sampled);
  const PairGradients gradients(inputs);
  // In double: the sums are small beside their terms.
  const at::Tensor grad_scale =
      at::empty({inputs.videos}, inputs.text.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES(inputs.text.scalar_type(), "pair_statistics_backward", [&] {
    using Engine = typename Device::template PairEngine<scalar_t>;
    using Backward = typename Device::template PairStatisticsBackward<scalar_t>;
    using Gradient = typename Engine::Gradient;
    const Engine engine(
        device, inputs,
        Gradient::numbers_per_pair(inputs) + Backward::numbers_per_pair(inputs, statistics_inputs));
    Gradient gradient(engine, gradients);
    const Backward backward(engine, statistics_inputs, adjoint);
    engine.for_each_chunk([&](const auto& chunk) {
      backward.run(chunk, adjoint.of_videos<scalar_t>(chunk.first, statistics_inputs.logit_scale),
                   gradient, grad_scale);
      gradient.add(chunk);
    });
    gradient.finish();
  });
  std::vector<at::Tensor> result = gradients.list();
  result.push_back(grad_scale.sum().to(inputs.text.scalar_type()));
  return result;
}

}  // namespace garevla
