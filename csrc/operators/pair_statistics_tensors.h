// The tensors of the statistics operators beside the pairs' own: what they take, checked, and what
// they return.
#pragma once

#include <limits>

#include "pair_inputs.h"

namespace garevla {

struct StatisticsInputs {
  Tensor logit_scale;         // 0-d
  Tensor targets;             // (A) int64
  Tensor samples;             // (A, n) int64, undefined without
  std::int64_t per_text = 0;  // n

  StatisticsInputs(const PairInputs& pairs, const Tensor& scale, const Tensor& target_videos,
                   const std::optional<Tensor>& sampled_videos) {
    require(scale.count() == 1, "logit_scale must be one number, got shape ", scale.sizes());
    logit_scale = scale.view({}).to(pairs.text.type(), pairs.text.device());
    pairs.check("targets", target_videos, {pairs.texts}, type_of<std::int64_t>());
    targets = target_videos.contiguous();
    if (!sampled_videos) return;
    require(sampled_videos->axes() == 2, "samples must have shape (A, n), got ",
            sampled_videos->sizes());
    per_text = sampled_videos->size(1);
    pairs.check("samples", *sampled_videos, {pairs.texts, per_text}, type_of<std::int64_t>());
    samples = sampled_videos->contiguous();
  }
};

struct StatisticsOutputs {
  Tensor row_logsumexp;           // (A)
  Tensor column_logsumexp;        // (B)
  Tensor target_similarity;       // (A)
  Tensor norm_mean;               // (A)
  Tensor norm_variance;           // (A); while videos are added, the sum of squared deviations
  Tensor coefficient_mean;        // (B, K)
  Tensor coefficient_covariance;  // (B, K, K)
  Tensor sampled;                 // (A, n, K), empty without samples
  Tensor mean_remainder;          // (B, K) what rounding took from coefficient_mean
  Tensor top;                     // (A) largest logit of the videos so far
  Tensor sum;                     // (A) of exp(logit - top)

  StatisticsOutputs(const PairInputs& pairs, const StatisticsInputs& statistics_inputs)
      : row_logsumexp(pairs.empty("A")),
        column_logsumexp(pairs.empty("B")),
        target_similarity(pairs.empty("A")),
        norm_mean(pairs.empty("A")),
        norm_variance(pairs.empty("A")),
        coefficient_mean(pairs.empty("BK")),
        coefficient_covariance(pairs.empty("BKK")),
        sampled(pairs.empty({statistics_inputs.samples.defined() ? pairs.texts : 0,
                             statistics_inputs.per_text, pairs.basis})),
        mean_remainder(pairs.empty("BK")),
        top(pairs.empty("A")),
        sum(pairs.empty("A")) {
    top.fill(-std::numeric_limits<double>::infinity());
    for (const Tensor* zeroed : {&norm_mean, &norm_variance, &sum}) zeroed->zero();
  }

  template <typename T>
  RowStatistics<T> rows(std::int64_t first_text = 0) const {
    return {data_at<T>(top, first_text), data_at<T>(sum, first_text),
            data_at<T>(norm_mean, first_text), data_at<T>(norm_variance, first_text)};
  }
};

// For the backward pass: what the forward pass found, and the gradients of what it returned.
struct StatisticsAdjoint {
  Tensor row_logsumexp;           // (A)
  Tensor column_logsumexp;        // (B)
  Tensor norm_mean;               // (A)
  Tensor coefficient_mean;        // (B, K)
  Tensor grad_row_logsumexp;      // (A)
  Tensor grad_column_logsumexp;   // (B)
  Tensor grad_target_similarity;  // (A)
  Tensor grad_sampled;            // (A, n, K), undefined without samples
  Tensor grad_norm_variance;      // (A)
  Tensor grad_coefficient_mean;   // (B, K)
  Tensor grad_covariance;         // (B, K, K)
  // Slopes of the closed forms in statistics_pair_gradient, for the devices to fill in: the last
  // three, the covariance's made symmetric, scaled.
  Tensor norm_slope;        // (A)
  Tensor mean_slope;        // (B, K)
  Tensor covariance_slope;  // (B, K, K)
  double norm_factor, mean_divisor, covariance_divisor;

  StatisticsAdjoint(const PairInputs& pairs, const StatisticsInputs& statistics_inputs,
                    const Tensor& row, const Tensor& column, const Tensor& mean_of_norm,
                    const Tensor& mean_of_coefficients, const std::vector<Tensor>& gradients,
                    const std::optional<Tensor>& gradient_of_sampled) {
    const Tensor* gradient = gradients.data();
    require(gradients.size() == 6, "gradients must be 6 tensors, got ", gradients.size());
    auto checked = [&](const char* name, const Tensor& tensor, const char* letters) {
      return pairs.checked(name, tensor, pairs.shape(letters));
    };
    row_logsumexp = checked("row_logsumexp", row, "A");
    column_logsumexp = checked("column_logsumexp", column, "B");
    norm_mean = checked("norm_mean", mean_of_norm, "A");
    coefficient_mean = checked("coefficient_mean", mean_of_coefficients, "BK");
    grad_row_logsumexp = checked("the gradient of row_logsumexp", *gradient++, "A");
    grad_column_logsumexp = checked("the gradient of column_logsumexp", *gradient++, "B");
    grad_target_similarity = checked("the gradient of target_similarity", *gradient++, "A");
    grad_norm_variance = checked("the gradient of norm_variance", *gradient++, "A");
    grad_coefficient_mean = checked("the gradient of coefficient_mean", *gradient++, "BK");
    grad_covariance = checked("the gradient of coefficient_covariance", *gradient++, "BKK");
    require(gradient_of_sampled.has_value() == statistics_inputs.samples.defined(),
            "samples and grad_sampled go together");
    grad_sampled = pairs.checked("grad_sampled", gradient_of_sampled,
                                 {pairs.texts, statistics_inputs.per_text, pairs.basis});
    norm_slope = grad_norm_variance.like();
    mean_slope = grad_coefficient_mean.like();
    covariance_slope = grad_covariance.like();
    // Exactly 0 of a single video, whose norm is the mean but for rounding.
    norm_factor = pairs.videos > 1 ? 2.0 / double(pairs.videos - 1) : 0.0;
    mean_divisor = double(pairs.texts);
    covariance_divisor = double(std::max<std::int64_t>(pairs.texts - 1, 1));
  }

  // What kernels need of the videos from the first on.
  template <typename T>
  StatisticsGradients<T> of_videos(std::int64_t first, const Tensor& logit_scale) const {
    return {data_at<const T>(logit_scale),
            data_at<const T>(row_logsumexp),
            data_at<const T>(grad_row_logsumexp),
            data_at<const T>(grad_target_similarity),
            data_at<const T>(norm_mean),
            data_at<const T>(norm_slope),
            data_at<const T>(column_logsumexp, first),
            data_at<const T>(grad_column_logsumexp, first),
            data_at<const T>(coefficient_mean, first),
            data_at<const T>(mean_slope, first),
            data_at<const T>(covariance_slope, first)};
  }
};

}  // namespace garevla
