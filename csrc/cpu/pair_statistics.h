// The streaming loss's statistics of chunks of videos, and their gradient, on a CPU.
#pragma once

#include <span>
#include <vector>

#include "cpu/pair_engine.h"
#include "operators/pair_statistics_tensors.h"

namespace garevla::cpu {

// Which entries of a tensor of video numbers name a video, by video.
class EntriesOfVideo {
 public:
  // Of a tensor (A) or (A, n), or of none; positions are those of the flattened tensor.
  EntriesOfVideo(const Tensor& video_numbers, std::int64_t videos) : starts_(videos + 1, 0) {
    const std::int64_t count = video_numbers.defined() ? video_numbers.count() : 0;
    const std::int64_t* video = data_at<const std::int64_t>(video_numbers);
    for (std::int64_t k = 0; k < count; ++k) {
      if (video[k] < 0 || video[k] >= videos)
        raise("video index ", video[k], " is not in [0, ", videos, ")");
      ++starts_[video[k] + 1];
    }
    for (std::int64_t j = 0; j < videos; ++j) starts_[j + 1] += starts_[j];
    entries_.resize(count);
    std::vector<std::int64_t> next(starts_.begin(), starts_.end() - 1);
    for (std::int64_t k = 0; k < count; ++k) entries_[next[video[k]]++] = k;
  }
  std::span<const std::int64_t> of(std::int64_t video) const {
    return {entries_.data() + starts_[video], entries_.data() + starts_[video + 1]};
  }

 private:
  std::vector<std::int64_t> starts_;
  std::vector<std::int64_t> entries_;
};

template <typename T>
class PairStatistics {
 public:
  PairStatistics(const PairEngine<T>& engine, const StatisticsInputs& statistics_inputs,
                 const StatisticsOutputs& to)
      : engine_(engine),
        statistics_inputs_(statistics_inputs),
        to_(to),
        targets_(statistics_inputs.targets, engine.inputs.videos),
        samples_(statistics_inputs.samples, engine.inputs.videos) {}

  // Similarity and norm.
  static std::int64_t numbers_per_pair(const PairInputs&) { return 2; }

  void add(const VideoRange& chunk) const {
    const PairInputs& inputs = engine_.inputs;
    const std::int64_t texts = inputs.texts, basis = inputs.basis;
    const T scale = *data_at<const T>(statistics_inputs_.logit_scale);
    const Tensor similarity = inputs.empty({chunk.videos, texts}), norm = similarity.like();
    engine_.for_each_group(chunk, {}, [&](const auto& group) {
      const Scratch<T> memory = engine_.scratch(), coefficients(basis * texts);
      for (std::int64_t j = group.first; j < group.end(); ++j) {
        const PairScores<T> scores{data_at<T>(similarity, j - chunk.first),
                                   data_at<T>(norm, j - chunk.first), coefficients.data()};
        engine_.kernels.forward(engine_.pairs(group, j), scores, memory.data());
        data_at<T>(to_.column_logsumexp)[j] =
            engine_.kernels.column_logsumexp(texts, scores.similarity, scale);
        for (const std::int64_t i : targets_.of(j))
          data_at<T>(to_.target_similarity)[i] = scores.similarity[i];
        for (const std::int64_t entry : samples_.of(j)) {
          for (std::int64_t k = 0; k < basis; ++k)
            data_at<T>(to_.sampled)[entry * basis + k] =
                scores.coefficients[k * texts + entry / statistics_inputs_.per_text];
        }
        engine_.kernels.moments(int(basis), texts, scores.coefficients,
                                data_at<T>(to_.coefficient_mean, j),
                                data_at<T>(to_.mean_remainder, j),
                                data_at<T>(to_.coefficient_covariance, j), memory.data());
      }
    });
    parallel_blocks(texts, block_texts, [&](std::int64_t start, std::int64_t length) {
      engine_.kernels.update_rows(chunk.first, chunk.videos, length, texts,
                                  data_at<const T>(similarity) + start,
                                  data_at<const T>(norm) + start, scale, to_.rows<T>(start));
    });
  }

  // After the last chunk.
  void finish() const {
    const RowStatistics<T> rows = to_.rows<T>();
    T* logsumexp = data_at<T>(to_.row_logsumexp);
    const T others = T(std::max<std::int64_t>(engine_.inputs.videos - 1, 1));
    for (std::int64_t i = 0; i < engine_.inputs.texts; ++i) {
      logsumexp[i] = rows.top[i] + std::log(rows.sum[i]);
      rows.squares[i] /= others;
    }
  }

 private:
  const PairEngine<T>& engine_;
  const StatisticsInputs& statistics_inputs_;
  const StatisticsOutputs& to_;
  const EntriesOfVideo targets_, samples_;
};

template <typename T>
class PairStatisticsBackward {
 public:
  PairStatisticsBackward(const PairEngine<T>& engine, const StatisticsInputs& statistics_inputs,
                         const StatisticsAdjoint& adjoint)
      : engine_(engine),
        adjoint_(adjoint),
        per_text_(statistics_inputs.per_text),
        targets_(statistics_inputs.targets, engine.inputs.videos),
        samples_(statistics_inputs.samples, engine.inputs.videos) {
    const std::int64_t texts = engine.inputs.texts, videos = engine.inputs.videos;
    const std::int64_t basis = engine.inputs.basis;
    const T* variance = data_at<const T>(adjoint.grad_norm_variance);
    T* norm_slope = data_at<T>(adjoint.norm_slope);
    for (std::int64_t i = 0; i < texts; ++i) norm_slope[i] = variance[i] * T(adjoint.norm_factor);
    const T* mean = data_at<const T>(adjoint.grad_coefficient_mean);
    T* mean_slope = data_at<T>(adjoint.mean_slope);
    for (std::int64_t k = 0; k < videos * basis; ++k)
      mean_slope[k] = mean[k] / T(adjoint.mean_divisor);
    parallel_pieces(videos, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t j = from; j < to; ++j) {
        const T* covariance = data_at<const T>(adjoint.grad_covariance, j);
        T* slope = data_at<T>(adjoint.covariance_slope, j);
        for (std::int64_t k = 0; k < basis; ++k)
          for (std::int64_t l = 0; l < basis; ++l)
            slope[k * basis + l] = (covariance[k * basis + l] + covariance[l * basis + k]) /
                                   T(adjoint.covariance_divisor);
      }
    });
  }

  // Beyond those of the gradients.
  static std::int64_t numbers_per_pair(const PairInputs&, const StatisticsInputs&) { return 0; }

  // grad_scale (B) double takes what each video of the chunk adds to logit_scale's gradient.
  void run(const VideoRange& chunk, const StatisticsGradients<T>& of_chunk,
           const typename PairEngine<T>::Gradient& gradient, const Tensor& grad_scale) const {
    const PairInputs& inputs = engine_.inputs;
    gradient.for_each_group(chunk, [&](const auto& group) {
      const Scratch<T> memory = engine_.scratch();
      // Those of one video; zeros between videos.
      const Tensor grad_target = inputs.empty("A");
      grad_target.zero();
      Tensor grad_coefficients;
      if (adjoint_.grad_sampled.defined()) {
        grad_coefficients = inputs.empty("KA");
        grad_coefficients.zero();
      }
      for (std::int64_t j = group.first; j < group.end(); ++j) {
        StatisticsGradient<T> of_video = of_chunk.of_video(j - chunk.first, inputs.basis);
        of_video.grad_target = data_at<const T>(grad_target);
        for (const std::int64_t i : targets_.of(j))
          data_at<T>(grad_target)[i] = of_chunk.grad_target[i];
        add_samples(j, data_at<const T>(adjoint_.grad_sampled), grad_coefficients);
        data_at<double>(grad_scale)[j] = engine_.kernels.statistics_backward(
            engine_.pairs(group, j), of_video, data_at<const T>(grad_coefficients),
            gradient.of_video(chunk, j), memory.data());
        for (const std::int64_t i : targets_.of(j)) data_at<T>(grad_target)[i] = 0;
        add_samples(j, nullptr, grad_coefficients);
      }
    });
  }

  // The sum over the videos, 0-d.
  Tensor scale_gradient(const Tensor& grad_scale) const {
    const double* of_video = data_at<const double>(grad_scale);
    const Tensor total = engine_.inputs.empty(Shape{});
    *data_at<T>(total) = T(sum_of(grad_scale.count(), [&](auto j) { return of_video[j]; }));
    return total;
  }

 private:
  // Adds the gradients (A, n, K) of a video's samples to its coefficients' (K, A); sets those back
  // to zero where there are none.
  void add_samples(std::int64_t video, const T* grad_sampled,
                   const Tensor& grad_coefficients) const {
    const std::int64_t texts = engine_.inputs.texts, basis = engine_.inputs.basis;
    for (const std::int64_t entry : samples_.of(video)) {
      for (std::int64_t k = 0; k < basis; ++k) {
        T& to = data_at<T>(grad_coefficients)[k * texts + entry / per_text_];
        to = grad_sampled ? to + grad_sampled[entry * basis + k] : T(0);
      }
    }
  }

  const PairEngine<T>& engine_;
  const StatisticsAdjoint& adjoint_;
  const std::int64_t per_text_;  // samples
  const EntriesOfVideo targets_, samples_;
};

}  // namespace garevla::cpu
