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
    for (const Tensor& numbers : {statistics_inputs.targets, statistics_inputs.samples}) {
      if (numbers.defined())
        assert_within(numbers, engine.inputs.videos, "video index out of range");
    }
    const std::int64_t chunk = engine.chunk(), texts = engine.inputs.texts;
    similarity_ = engine.inputs.empty({chunk, texts});
    norm_ = similarity_.like();
    coefficients_ = engine.inputs.empty({chunk, engine.inputs.basis, texts});
    scratch_ = engine.inputs.empty({row_parts, row_numbers, texts});
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
    const Tensor logits = similarity_.narrow(0, 0, videos) * statistics_inputs_.logit_scale;
    range.of(to_.column_logsumexp).copy_from(logsumexp(logits, 1));

    // Relative to the first text: where all texts agree, the covariance comes out as 0 and not as a
    // rounding error's square.
    const Tensor coefficients = coefficients_.narrow(0, 0, videos);
    const Tensor first_text = coefficients.narrow(2, 0, 1), relative = coefficients - first_text;
    const Tensor relative_mean = sum(relative, {2}, true) * (1.0 / double(texts));
    const Tensor mean = first_text + relative_mean;
    range.of(to_.coefficient_mean).copy_from(mean.view({videos, basis}));
    const Tensor remainder = relative_mean - (mean - first_text);
    range.of(to_.mean_remainder).copy_from(remainder.view({videos, basis}));
    const Tensor centered = relative - relative_mean;
    product(range.of(to_.coefficient_covariance), centered, centered.transposed(),
            1.0 / double(std::max<std::int64_t>(texts - 1, 1)));
  }

  // After the last chunk.
  void finish() const {
    const std::int64_t others = std::max<std::int64_t>(engine_.inputs.videos - 1, 1);
    to_.row_logsumexp.copy_from(to_.top + log(to_.sum));
    to_.norm_variance.copy_from(to_.norm_variance * (1.0 / double(others)));
  }

 private:
  const PairEngine<T>& engine_;
  const StatisticsInputs& statistics_inputs_;
  const StatisticsOutputs& to_;
  Tensor similarity_;    // (chunk, A)
  Tensor norm_;          // (chunk, A)
  Tensor coefficients_;  // (chunk, K, A)
  Tensor scratch_;       // (row_parts, row_numbers, A)
};

template <typename T>
class PairStatisticsBackward {
 public:
  PairStatisticsBackward(const PairEngine<T>& engine, const StatisticsInputs& statistics_inputs,
                         const StatisticsAdjoint& adjoint)
      : engine_(engine), statistics_inputs_(statistics_inputs), adjoint_(adjoint) {
    const std::int64_t chunk = engine.chunk(), texts = engine.inputs.texts;
    grad_logit_scale_ = engine.inputs.empty({chunk, texts});
    if (statistics_inputs.per_text > 0)
      grad_coefficients_ = engine.inputs.empty({chunk, engine.inputs.basis, texts});
    const Tensor& covariance = adjoint.grad_covariance;
    adjoint.norm_slope.copy_from(adjoint.grad_norm_variance * adjoint.norm_factor);
    adjoint.mean_slope.copy_from(adjoint.grad_coefficient_mean * (1 / adjoint.mean_divisor));
    adjoint.covariance_slope.copy_from((covariance + covariance.transposed()) *
                                       (1 / adjoint.covariance_divisor));
  }

  // Beyond those of the gradients.
  static std::int64_t numbers_per_pair(const PairInputs& inputs,
                                       const StatisticsInputs& statistics_inputs) {
    return 1 + (statistics_inputs.per_text > 0 ? inputs.basis : 0);
  }

  // grad_scale (B) double takes what each video of the chunk adds to logit_scale's gradient.
  void run(const PairChunk<T>& chunk, const StatisticsGradients<T>& of_chunk,
           const typename PairEngine<T>::Gradient& gradient, const Tensor& grad_scale) const {
    if (statistics_inputs_.per_text > 0) {
      grad_coefficients_.zero();
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
    const Tensor of_pairs = grad_logit_scale_.narrow(0, 0, chunk.videos).to(type_of<double>());
    grad_scale.narrow(0, chunk.first, chunk.videos).copy_from(sum(of_pairs, {1}));
  }

  // The sum over the videos, 0-d.
  Tensor scale_gradient(const Tensor& grad_scale) const {
    return sum(grad_scale, {0}).to(engine_.inputs.text.type());
  }

 private:
  const PairEngine<T>& engine_;
  const StatisticsInputs& statistics_inputs_;
  const StatisticsAdjoint& adjoint_;
  Tensor grad_logit_scale_;   // (chunk, A) of every pair
  Tensor grad_coefficients_;  // (chunk, K, A) from the samples, undefined without
};

}  // namespace garevla::cuda
