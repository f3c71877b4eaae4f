// The tensors of the statistics operators beside the pairs' own: what they take, checked, and what
// they return.
#pragma once

#include <limits>

#include "pair_inputs.h"

namespace garevla {

struct StatisticsInputs {
  at::Tensor logit_scale;     // 0-d
  at::Tensor targets;         // (A) int64
  at::Tensor samples;         // (A, n) int64, undefined without
  std::int64_t per_text = 0;  // n

  StatisticsInputs(const PairInputs& pairs, const at::Tensor& scale,
                   const at::Tensor& target_videos,
                   const std::optional<at::Tensor>& sampled_videos) {
    TORCH_CHECK_VALUE(scale.numel() == 1, "logit_scale must be one number, got shape ",
                      scale.sizes());
    logit_scale = scale.to(pairs.text.options()).reshape({});
    pairs.check("targets", target_videos, {pairs.texts}, at::kLong);
    targets = target_videos.contiguous();
    if (!sampled_videos) return;
    TORCH_CHECK_VALUE(sampled_videos->dim() == 2, "samples must have shape (A, n), got ",
                      sampled_videos->sizes());
    per_text = sampled_videos->size(1);
    pairs.check("samples", *sampled_videos, {pairs.texts, per_text}, at::kLong);
    samples = sampled_videos->contiguous();
  }
};

struct StatisticsOutputs {
  at::Tensor row_logsumexp;           // (A), from finish on
  at::Tensor column_logsumexp;        // (B)
  at::Tensor target_similarity;       // (A)
  at::Tensor norm_mean;               // (A)
  at::Tensor norm_variance;           // (A); until finish, the sum of squared deviations
  at::Tensor coefficient_mean;        // (B, K)
  at::Tensor coefficient_covariance;  // (B, K, K)
  at::Tensor sampled;                 // (A, n, K), empty without samples
  at::Tensor top;                     // (A) largest logit of the videos so far
  at::Tensor sum;                     // (A) of exp(logit - top)

  StatisticsOutputs(const PairInputs& pairs, const StatisticsInputs& statistics_inputs)
      : column_logsumexp(pairs.empty("B")),
        target_similarity(pairs.empty("A")),
        norm_mean(pairs.empty("A").zero_()),
        norm_variance(pairs.empty("A").zero_()),
        coefficient_mean(pairs.empty("BK")),
        coefficient_covariance(pairs.empty("BKK")),
        sampled(at::empty({statistics_inputs.samples.defined() ? pairs.texts : 0,
                           statistics_inputs.per_text, pairs.basis},
                          pairs.text.options())),
        top(pairs.empty("A").fill_(-std::numeric_limits<double>::infinity())),
        sum(pairs.empty("A").zero_()) {}

  template <typename T>
  RowStatistics<T> rows(std::int64_t first_text = 0) const {
    return {data_at<T>(top, first_text), data_at<T>(sum, first_text),
            data_at<T>(norm_mean, first_text), data_at<T>(norm_variance, first_text)};
  }

  void finish(const PairInputs& pairs) {
    row_logsumexp = top + sum.log();
    norm_variance /= double(std::max<std::int64_t>(pairs.videos - 1, 1));
  }
};

// For the backward pass: what the forward pass found, and the gradients of what it returned.
struct StatisticsAdjoint {
  at::Tensor row_logsumexp;           // (A)
  at::Tensor column_logsumexp;        // (B)
  at::Tensor norm_mean;               // (A)
  at::Tensor coefficient_mean;        // (B, K)
  at::Tensor grad_row_logsumexp;      // (A)
  at::Tensor grad_column_logsumexp;   // (B)
  at::Tensor grad_target_similarity;  // (A)
  at::Tensor grad_sampled;            // (A, n, K), undefined without samples
  // Slopes of the closed forms in statistics_pair_gradient.
  at::Tensor norm_slope;        // (A)
  at::Tensor mean_slope;        // (B, K)
  at::Tensor covariance_slope;  // (B, K, K)

  StatisticsAdjoint(const PairInputs& pairs, const StatisticsInputs& statistics_inputs,
                    const at::Tensor& row, const at::Tensor& column, const at::Tensor& mean_of_norm,
                    const at::Tensor& mean_of_coefficients, at::TensorList gradients,
                    const std::optional<at::Tensor>& gradient_of_sampled) {
    const at::Tensor* gradient = gradients.begin();
    TORCH_CHECK_VALUE(gradients.size() == 6, "gradients must be 6 tensors, got ", gradients.size());
    auto checked = [&](const char* name, const at::Tensor& tensor, const char* letters) {
      return pairs.checked(name, tensor, pairs.shape(letters));
    };
    row_logsumexp = checked("row_logsumexp", row, "A");
    column_logsumexp = checked("column_logsumexp", column, "B");
    norm_mean = checked("norm_mean", mean_of_norm, "A");
    coefficient_mean = checked("coefficient_mean", mean_of_coefficients, "BK");
    grad_row_logsumexp = checked("the gradient of row_logsumexp", *gradient++, "A");
    grad_column_logsumexp = checked("the gradient of column_logsumexp", *gradient++, "B");
    grad_target_similarity = checked("the gradient of target_similarity", *gradient++, "A");
    const at::Tensor variance = checked("the gradient of norm_variance", *gradient++, "A");
    const at::Tensor mean = checked("the gradient of coefficient_mean", *gradient++, "BK");
    const at::Tensor covariance =
        checked("the gradient of coefficient_covariance", *gradient++, "BKK");
    TORCH_CHECK_VALUE(gradient_of_sampled.has_value() == statistics_inputs.samples.defined(),
                      "samples and grad_sampled go together");
    grad_sampled = pairs.checked("grad_sampled", gradient_of_sampled,
                                 {pairs.texts, statistics_inputs.per_text, pairs.basis});
    // Exactly 0 of a single video, whose norm is the mean but for rounding.
    norm_slope = variance * (pairs.videos > 1 ? 2.0 / double(pairs.videos - 1) : 0.0);
    mean_slope = mean / double(pairs.texts);
    covariance_slope =
        ((covariance + covariance.mT()) / double(std::max<std::int64_t>(pairs.texts - 1, 1)))
            .contiguous();
  }

  // What kernels need of the videos from the first on.
  template <typename T>
  StatisticsGradients<T> of_videos(std::int64_t first, const at::Tensor& logit_scale) const {
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
