// The streaming loss's statistics of chunks of videos, and their gradient, on a CPU.
#pragma once

#include "cpu/pair_engine.h"
#include "operators/pair_statistics_tensors.h"

namespace garevla::cpu {

// Which entries of a tensor of video numbers name a video, by video.
class EntriesOfVideo {
 public:
  // Of a tensor (A) or (A, n), or of none; positions are those of the flattened tensor.
  EntriesOfVideo(const at::Tensor& video_numbers, std::int64_t videos) : starts_(videos + 1, 0) {
    const std::int64_t count = video_numbers.defined() ? video_numbers.numel() : 0;
    const std::int64_t* video = data_at<const std::int64_t>(video_numbers);
    for (std::int64_t k = 0; k < count; ++k) {
      TORCH_CHECK_INDEX(video[k] >= 0 && video[k] < videos, "video index ", video[k],
                        " is not in [0, ", videos, ")");
      ++starts_[video[k] + 1];
    }
    for (std::int64_t j = 0; j < videos; ++j) starts_[j + 1] += starts_[j];
    entries_.resize(count);
    std::vector<std::int64_t> next(starts_.begin(), starts_.end() - 1);
    for (std::int64_t k = 0; k < count; ++k) entries_[next[video[k]]++] = k;
  }
  at::ArrayRef<std::int64_t> of(std::int64_t video) const {
    return at::ArrayRef<std::int64_t>(entries_).slice(starts_[video],
                                                      starts_[video + 1] - starts_[video]);
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
    const at::Tensor similarity = at::empty({chunk.videos, texts}, inputs.text.options());
    const at::Tensor norm = at::empty_like(similarity);
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
                                data_at<T>(to_.coefficient_covariance, j), memory.data());
      }
    });
    parallel_blocks(texts, block_texts, [&](std::int64_t start, std::int64_t length) {
      engine_.kernels.update_rows(chunk.first, chunk.videos, length, texts,
                                  data_at<const T>(similarity) + start,
                                  data_at<const T>(norm) + start, scale, to_.rows<T>(start));
    });
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
        samples_(statistics_inputs.samples, engine.inputs.videos) {}

  // Beyond those of the gradients.
  static std::int64_t numbers_per_pair(const PairInputs&, const StatisticsInputs&) { return 0; }

  // grad_scale (B) double takes what each video of the chunk adds to logit_scale's gradient.
  void run(const VideoRange& chunk, const StatisticsGradients<T>& of_chunk,
           const typename PairEngine<T>::Gradient& gradient, const at::Tensor& grad_scale) const {
    const PairInputs& inputs = engine_.inputs;
    gradient.for_each_group(chunk, [&](const auto& group) {
      const Scratch<T> memory = engine_.scratch();
      // Those of one video; zeros between videos.
      const at::Tensor grad_target = inputs.empty("A").zero_();
      const at::Tensor grad_coefficients =
          adjoint_.grad_sampled.defined() ? inputs.empty("KA").zero_() : at::Tensor();
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

 private:
  // Adds the gradients (A, n, K) of a video's samples to its coefficients' (K, A); sets those back
  // to zero where there are none.
  void add_samples(std::int64_t video, const T* grad_sampled,
                   const at::Tensor& grad_coefficients) const {
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
