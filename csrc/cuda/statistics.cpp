// pair_statistics: the streaming loss's statistics and their gradient on a GPU, in O(A + B K²)
// memory and the buffers of a chunk.

#include <limits>
#include <tuple>

#include "cuda/pair_engine.h"
#include "statistics_inputs.h"

namespace garevla::cuda {
namespace {

// Without waiting for the device; the kernels themselves touch nothing for an index out of range.
void check_range(const at::Tensor& indices, const PairInputs& inputs) {
  if (indices.defined())
    at::_assert_async(((indices >= 0) & (indices < inputs.videos)).all(),
                      "video index out of range");
}

template <typename T>
std::vector<at::Tensor> forward(const PairInputs& inputs, const OnDeviceOf& device,
                                const StatisticsInputs& given) {
  const std::int64_t texts = inputs.texts, videos = inputs.videos, basis = inputs.basis;
  const std::int64_t per_text = given.per_text;
  const auto options = inputs.text.options();
  // Similarity, norm and coefficients, of which the moments take another copy; logits.
  const PairEngine<T> engine(inputs, 2 * basis + 4);
  const at::Tensor similarity = at::empty({engine.chunk(), texts}, options),
                   norm = at::empty_like(similarity);
  const at::Tensor coefficients = at::empty({engine.chunk(), basis, texts}, options);
  const at::Tensor scratch = at::empty({row_parts, 4, texts}, options);

  at::Tensor column_logsumexp = at::empty({videos}, options);
  at::Tensor target_similarity = at::empty({texts}, options);
  at::Tensor norm_mean = at::zeros({texts}, options), norm_variance = at::zeros({texts}, options);
  at::Tensor mean = at::empty({videos, basis}, options);
  at::Tensor covariance = at::empty({videos, basis, basis}, options);
  at::Tensor sampled = at::empty({given.samples.defined() ? texts : 0, per_text, basis}, options);
  const at::Tensor top = at::full({texts}, -std::numeric_limits<T>::infinity(), options);
  const at::Tensor sum = at::zeros({texts}, options);
  const RowStatistics<T> rows{top.data_ptr<T>(), sum.data_ptr<T>(), norm_mean.data_ptr<T>(),
                              norm_variance.data_ptr<T>()};

  engine.for_each_chunk([&](std::int64_t first, std::int64_t n, const PairChunk<T>& chunk,
                            const at::Tensor&) {
    T* scores = similarity.data_ptr<T>();
    device.check(
        launch_forward(chunk, PairScores<T>{scores, norm.data_ptr<T>(), coefficients.data_ptr<T>()},
                       device.stream()));
    device.check(launch_update_rows<T>(first, n, texts, scores, norm.const_data_ptr<T>(),
                                       given.logit_scale.const_data_ptr<T>(), scratch.data_ptr<T>(),
                                       rows, device.stream()));
    const PairSamples of_targets{given.targets.const_data_ptr<std::int64_t>(), texts, 1, first, n};
    device.check(
        launch_gather<T>(of_targets, 1, scores, target_similarity.data_ptr<T>(), device.stream()));
    if (per_text > 0) {
      const PairSamples of_samples{given.samples.const_data_ptr<std::int64_t>(), texts, per_text,
                                   first, n};
      device.check(launch_gather<T>(of_samples, basis, coefficients.const_data_ptr<T>(),
                                    sampled.data_ptr<T>(), device.stream()));
    }
    at::Tensor column = column_logsumexp.narrow(0, first, n);
    at::logsumexp_out(column, similarity.narrow(0, 0, n) * given.logit_scale, {1});

    // Relative to the first text: where all texts agree, the covariance comes out as 0 and not as a
    // rounding error's square.
    const at::Tensor own = coefficients.narrow(0, 0, n), start = own.narrow(2, 0, 1);
    const at::Tensor centred = own - start, relative_mean = centred.mean(2, true);
    at::Tensor own_mean = mean.narrow(0, first, n);
    at::add_out(own_mean, start.squeeze(2), relative_mean.squeeze(2));
    centred.sub_(relative_mean);
    at::Tensor own_covariance = covariance.narrow(0, first, n);
    at::bmm_out(own_covariance, centred, centred.mT());
  });
  norm_variance /= double(std::max<std::int64_t>(videos - 1, 1));
  covariance /= double(std::max<std::int64_t>(texts - 1, 1));
  return {top + sum.log(), column_logsumexp, target_similarity, norm_mean, norm_variance, mean,
          covariance,      sampled};
}

template <typename T>
at::Tensor backward(const PairInputs& inputs, const OnDeviceOf& device,
                    const StatisticsInputs& given, const StatisticsOutside& outside,
                    const PairGradients& gradients) {
  using Gradient = typename PairEngine<T>::Gradient;
  const std::int64_t texts = inputs.texts, videos = inputs.videos, basis = inputs.basis;
  const std::int64_t per_text = given.per_text;
  const auto options = inputs.text.options();
  const PairEngine<T> engine(inputs,
                             Gradient::rows_per_pair(inputs) + 1 + (per_text > 0 ? basis : 0));
  Gradient gradient(engine, gradients);
  const at::Tensor norm_slope = outside.norm_slope(inputs), mean_slope = outside.mean_slope(inputs);
  const at::Tensor covariance_slope = outside.covariance_slope(inputs);
  const at::Tensor grad_scale = at::empty({engine.chunk(), texts}, options);
  // In double: these sums are small beside their terms.
  at::Tensor grad_scale_of_video = at::empty({videos}, options.dtype(at::kDouble));
  const at::Tensor grad_coefficients =
      per_text > 0 ? at::empty({engine.chunk(), basis, texts}, options) : at::Tensor();

  engine.for_each_chunk([&](std::int64_t first, std::int64_t n, const PairChunk<T>& chunk,
                            const at::Tensor& products) {
    if (per_text > 0) {
      grad_coefficients.zero_();
      const PairSamples of_samples{given.samples.const_data_ptr<std::int64_t>(), texts, per_text,
                                   first, n};
      device.check(launch_scatter<T>(of_samples, basis, outside.grad_sampled.const_data_ptr<T>(),
                                     grad_coefficients.data_ptr<T>(), device.stream()));
    }
    auto of_text = [](const at::Tensor& tensor) { return tensor.const_data_ptr<T>(); };
    auto of_video = [&](const at::Tensor& tensor) {
      return tensor.const_data_ptr<T>() + first * tensor.stride(0);
    };
    const StatisticsGradients<T> own{first,
                                     of_text(given.logit_scale),
                                     given.targets.const_data_ptr<std::int64_t>(),
                                     of_text(outside.row_logsumexp),
                                     of_text(outside.grad_row_logsumexp),
                                     of_text(outside.grad_target_similarity),
                                     of_text(outside.norm_mean),
                                     of_text(norm_slope),
                                     of_video(outside.column_logsumexp),
                                     of_video(outside.grad_column_logsumexp),
                                     of_video(outside.coefficient_mean),
                                     of_video(mean_slope),
                                     of_video(covariance_slope),
                                     data_or_null<T>(grad_coefficients),
                                     grad_scale.data_ptr<T>()};
    device.check(launch_statistics_backward(chunk, own, gradient.adjoint(), device.stream()));
    gradient.add(first, n, products);
    at::Tensor sums = grad_scale_of_video.narrow(0, first, n);
    at::sum_out(sums, grad_scale.narrow(0, 0, n), 1, false, at::kDouble);
  });
  gradient.finish();
  return grad_scale_of_video.sum().to(inputs.text.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
           at::Tensor>
pair_statistics(const at::Tensor& text, at::TensorList factors, double pool_temperature,
                at::ArrayRef<double> layer_norm_eps, const at::Tensor& logit_scale,
                const at::Tensor& targets, const std::optional<at::Tensor>& samples) {
  const OnDeviceOf device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const StatisticsInputs given(inputs, logit_scale, targets, samples);
  check_range(given.targets, inputs);
  check_range(given.samples, inputs);
  std::vector<at::Tensor> found;
  AT_DISPATCH_FLOATING_TYPES(inputs.text.scalar_type(), "pair_statistics",
                             [&] { found = forward<scalar_t>(inputs, device, given); });
  return {found[0], found[1], found[2], found[3], found[4], found[5], found[6], found[7]};
}

std::vector<at::Tensor> pair_statistics_backward(
    const at::Tensor& text, at::TensorList factors, double pool_temperature,
    at::ArrayRef<double> layer_norm_eps, const at::Tensor& logit_scale, const at::Tensor& targets,
    const std::optional<at::Tensor>& samples, const at::Tensor& row_logsumexp,
    const at::Tensor& column_logsumexp, const at::Tensor& norm_mean,
    const at::Tensor& coefficient_mean, at::TensorList gradients_given,
    const std::optional<at::Tensor>& grad_sampled) {
  const OnDeviceOf device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const StatisticsInputs given(inputs, logit_scale, targets, samples);
  const StatisticsOutside outside(inputs, given, row_logsumexp, column_logsumexp, norm_mean,
                                  coefficient_mean, gradients_given, grad_sampled);
  const PairGradients gradients(inputs);
  at::Tensor grad_scale;
  AT_DISPATCH_FLOATING_TYPES(inputs.text.scalar_type(), "pair_statistics_backward", [&] {
    grad_scale = backward<scalar_t>(inputs, device, given, outside, gradients);
  });
  std::vector<at::Tensor> found = gradients.list();
  found.push_back(grad_scale);
  return found;
}

}  // namespace
}  // namespace garevla::cuda

TORCH_LIBRARY_IMPL(garevla, GAREVLA_DEVICE_KEY, m) {
  m.impl("pair_statistics", garevla::cuda::pair_statistics);
  m.impl("pair_statistics_backward", garevla::cuda::pair_statistics_backward);
}
