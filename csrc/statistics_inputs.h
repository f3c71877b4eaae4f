// The further arguments of the statistics operators, checked.
#pragma once

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

// What the forward pass found, and the gradients of what it returned.
struct StatisticsOutside {
  at::Tensor row_logsumexp;                // (A)
  at::Tensor column_logsumexp;             // (B)
  at::Tensor norm_mean;                    // (A)
  at::Tensor coefficient_mean;             // (B, K)
  at::Tensor grad_row_logsumexp;           // (A)
  at::Tensor grad_column_logsumexp;        // (B)
  at::Tensor grad_target_similarity;       // (A)
  at::Tensor grad_norm_variance;           // (A)
  at::Tensor grad_coefficient_mean;        // (B, K)
  at::Tensor grad_coefficient_covariance;  // (B, K, K)
  at::Tensor grad_sampled;                 // (A, n, K), undefined without samples

  StatisticsOutside(const PairInputs& pairs, const StatisticsInputs& inputs, const at::Tensor& row,
                    const at::Tensor& column, const at::Tensor& mean, const at::Tensor& moment,
                    at::TensorList gradients, const std::optional<at::Tensor>& sampled) {
    TORCH_CHECK_VALUE(gradients.size() == 6, "gradients must be 6 tensors, got ", gradients.size());
    const std::int64_t texts = pairs.texts, videos = pairs.videos, basis = pairs.basis;
    row_logsumexp = pairs.checked("row_logsumexp", row, {texts});
    column_logsumexp = pairs.checked("column_logsumexp", column, {videos});
    norm_mean = pairs.checked("norm_mean", mean, {texts});
    coefficient_mean = pairs.checked("coefficient_mean", moment, {videos, basis});
    grad_row_logsumexp = pairs.checked("the gradient of row_logsumexp", gradients[0], {texts});
    grad_column_logsumexp =
        pairs.checked("the gradient of column_logsumexp", gradients[1], {videos});
    grad_target_similarity =
        pairs.checked("the gradient of target_similarity", gradients[2], {texts});
    grad_norm_variance = pairs.checked("the gradient of norm_variance", gradients[3], {texts});
    grad_coefficient_mean =
        pairs.checked("the gradient of coefficient_mean", gradients[4], {videos, basis});
    grad_coefficient_covariance = pairs.checked("the gradient of coefficient_covariance",
                                                gradients[5], {videos, basis, basis});
    TORCH_CHECK_VALUE(sampled.has_value() == inputs.samples.defined(),
                      "samples and grad_sampled go together");
    grad_sampled = pairs.checked("grad_sampled", sampled, {texts, inputs.per_text, basis});
  }

  // Slopes of the closed forms in statistics_pair_gradient.
  at::Tensor norm_slope(const PairInputs& pairs) const {
    return grad_norm_variance * (2.0 / double(std::max<std::int64_t>(pairs.videos - 1, 1)));
  }
  at::Tensor mean_slope(const PairInputs& pairs) const {
    return grad_coefficient_mean / double(pairs.texts);
  }
  at::Tensor covariance_slope(const PairInputs& pairs) const {
    const at::Tensor both = grad_coefficient_covariance + grad_coefficient_covariance.mT();
    return (both / double(std::max<std::int64_t>(pairs.texts - 1, 1))).contiguous();
  }
};

}  // namespace garevla
