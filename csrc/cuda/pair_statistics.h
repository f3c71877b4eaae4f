// The streaming loss's statistics of chunks of videos, and their gradient, on a GPU.
#pragma once

#include "cuda/pair_engine.h"
#include "operators/pair_statistics_tensors.h"

namespace garevla::cuda {

template <typename T>
class PairStatistics {
 public:
  PairStatistics(const PairEngine<T>& engine, const StatisticsInputs& statistics_inputs,
                 const StatisticsOutputs& to)
      : engine_(engine), statistics_inputs_(statistics_inputs), to_(to) {
    // Without waiting for the device; the kernels themselves touch nothing for a number out of
    // range.
    for (const at::Tensor& numbers : {statistics_inputs.targets, statistics_inputs.samples}) {
      if (numbers.defined())
        at::_assert_async(((numbers >= 0) & (numbers < engine.inputs.videos)).all(),
                          "video index out of range");
    }
    const std::int64_t chunk = engine.chunk(), texts = engine.inputs.texts;
    const auto options = engine.inputs.text.options();
    similarity_ = at::empty({chunk, texts}, options);
    norm_ = at::empty_like(similarity_);
    coefficients_ = at::empty({chunk, engine.inputs.basis, texts}, options);
    scratch_ = at::empty({row_parts, row_numbers, texts}, options);
  }

  // Similarity, norm and coefficients, of which the moments take another copy; logits.
  static std::int64_t numbers_per_pair(const PairInputs& inputs) { return 2 * inputs.basis + 4; }

  void add(const PairChunk<T>& chunk) const {
    const std::int64_t texts = chunk.texts, videos = chunk.videos, basis = engine_.inputs.basis;
    const PairScores<T> scores{data_at<T>(similarity_), data_at<T>(norm_),
                               data_at<T>(coefficients_)};
    engine_.forward(chunk, scores);
    engine_.launch(launch_update_rows<T>, chunk.first, videos, texts, scores.similarity,
                   scores.norm, data_at<const T>(statistics_inputs_.logit_scale),
                   data_at<T>(scratch_), to_.rows<T>());
    const PairSamples targets{data_at<const std::int64_t>(statistics_inputs_.targets), texts, 1,
                              chunk.first, videos};
    engine_.launch(launch_gather<T>, targets, 1, scores.similarity,
                   data_at<T>(to_.target_similarity));
    if (statistics_inputs_.per_text > 0) {
      const PairSamples samples{data_at<const std::int64_t>(statistics_inputs_.samples), texts,
                                statistics_inputs_.per_text, chunk.first, videos};
      engine_.launch(launch_gather<T>, samples, basis, scores.coefficients,
                     data_at<T>(to_.sampled));
    }
    const VideoRange range{chunk.first, videos};
    at::Tensor column_logsumexp = range.of(to_.column_logsumexp);
    at::logsumexp_out(column_logsumexp,
                      similarity_.narrow(0, 0, videos) * statistics_inputs_.logit_scale, {1});

    // Relative to the first text: where all texts agree, the covariance comes out as 0 and not as a
    // rounding error's square.
    const at::Tensor coefficients = coefficients_.narrow(0, 0, videos);
    const at::Tensor first_text = coefficients.narrow(2, 0, 1);
    const at::Tensor centered = coefficients - first_text, relative_mean = centered.mean(2, true);
    at::Tensor mean = range.of(to_.coefficient_mean);
    at::add_out(mean, first_text.squeeze(2), relative_mean.squeeze(2));
    centered.sub_(relative_mean);
    at::Tensor covariance = range.of(to_.coefficient_covariance);
    at::baddbmm_out(covariance, covariance, centered, centered.mT(), 0,
                    1.0 / double(std::max<std::int64_t>(texts - 1, 1)));
  }

 private:
  const PairEngine<T>& engine_;
  const StatisticsInputs& statistics_inputs_;
  const StatisticsOutputs& to_;
  at::Tensor similarity_;    // (chunk, A)
  at::Tensor norm_;          // (chunk, A)
  at::Tensor coefficients_;  // (chunk, K, A)
  at::Tensor scratch_;       // (row_parts, row_numbers, A)
};

template <typename T>
class PairStatisticsBackward {
 public:
  PairStatisticsBackward(const PairEngine<T>& engine, const StatisticsInputs& statistics_inputs,
                         const StatisticsAdjoint& adjoint)
      : engine_(engine), statistics_inputs_(statistics_inputs), adjoint_(adjoint) {
    const std::int64_t chunk = engine.chunk(), texts = engine.inputs.texts;
    const auto options = engine.inputs.text.options();
    grad_logit_scale_ = at::empty({chunk, texts}, options);
    if (statistics_inputs.per_text > 0)
      grad_coefficients_ = at::empty({chunk, engine.inputs.basis, texts}, options);
  }

  // Beyond those of the gradients.
  static std::int64_t numbers_per_pair(const PairInputs& inputs,
                                       const StatisticsInputs& statistics_inputs) {
    return 1 + (statistics_inputs.per_text > 0 ? inputs.basis : 0);
  }

  // grad_scale (B) double takes what each video of the chunk adds to logit_scale's gradient.
  void run(const PairChunk<T>& chunk, const StatisticsGradients<T>& of_chunk,
           const typename PairEngine<T>::Gradient& gradient, const at::Tensor& grad_scale) const {
    if (statistics_inputs_.per_text > 0) {
      grad_coefficients_.zero_();
      const PairSamples samples{data_at<const std::int64_t>(statistics_inputs_.samples),
                                chunk.texts, statistics_inputs_.per_text, chunk.first,
                                chunk.videos};
      engine_.launch(launch_scatter<T>, samples, engine_.inputs.basis,
                     data_at<const T>(adjoint_.grad_sampled), data_at<T>(grad_coefficients_));
    }
    const StatisticsExtras<T> extras{data_at<const std::int64_t>(statistics_inputs_.targets),
                                     data_at<const T>(grad_coefficients_),
                                     data_at<T>(grad_logit_scale_)};
    engine_.launch(launch_statistics_backward<T>, chunk, of_chunk, extras, gradient.adjoint());
    at::Tensor sums = grad_scale.narrow(0, chunk.first, chunk.videos);
    at::sum_out(sums, grad_logit_scale_.narrow(0, 0, chunk.videos), 1, false, at::kDouble);
  }

 private:
  const PairEngine<T>& engine_;
  const StatisticsInputs& statistics_inputs_;
  const StatisticsAdjoint& adjoint_;
  at::Tensor grad_logit_scale_;   // (chunk, A) of every pair
  at::Tensor grad_coefficients_;  // (chunk, K, A) from the samples, undefined without
};

}  // namespace garevla::cuda
