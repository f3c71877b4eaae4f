// The kernels around pair_statistics' own: statistics of texts, sampled pairs.

#include "cuda/launch.h"

namespace garevla::cuda {
namespace {

using scalar::exp_nonpositive;
using scalar::maximum;

// Every row_parts-th video of the chunk, for one text. Row: the part, column: the text.
template <typename T>
struct PartOfRowsTask {
  std::int64_t videos, texts;
  const T* similarity;
  const T* norm;
  const T* logit_scale;
  T* scratch;

  GAREVLA_INLINE void operator()(std::int64_t part, std::int64_t text) const {
    const T scale = *logit_scale;
    T top = scale * similarity[part * texts + text];
    for (std::int64_t j = part + row_parts; j < videos; j += row_parts)
      top = maximum(top, scale * similarity[j * texts + text]);
    T sum = 0, mean = 0, squares = 0;
    int count = 0;
    for (std::int64_t j = part; j < videos; j += row_parts) {
      sum += exp_nonpositive(scale * similarity[j * texts + text] - top);
      const T value = norm[j * texts + text], delta = value - mean;
      mean += delta * (T(1) / T(++count));
      squares += delta * (value - mean);
    }
    T* of_part = scratch + part * row_numbers * texts + text;
    of_part[0] = top;
    of_part[texts] = sum;
    of_part[2 * texts] = mean;
    of_part[3 * texts] = squares;
  }
};

// Merges the parts into the running statistics. Row: 0, column: the text.
template <typename T>
struct MergeRowsTask {
  std::int64_t videos_before, videos, texts;
  const T* scratch;
  RowStatistics<T> to;

  GAREVLA_INLINE void operator()(std::int64_t, std::int64_t text) const {
    T top = to.top[text], sum = to.sum[text], mean = to.mean[text], squares = to.squares[text];
    std::int64_t count = videos_before;
    for (std::int64_t part = 0; part < row_parts && part < videos; ++part) {
      const T* of_part = scratch + part * row_numbers * texts + text;
      const T new_top = maximum(top, of_part[0]);
      sum = sum * exp_nonpositive(top - new_top) +
            of_part[texts] * exp_nonpositive(of_part[0] - new_top);
      top = new_top;
      const std::int64_t more = (videos - part + row_parts - 1) / row_parts, total = count + more;
      const T weight = T(more) / T(total), delta = of_part[2 * texts] - mean;
      mean += delta * weight;
      squares += of_part[3 * texts] + delta * delta * (T(count) * weight);
      count = total;
    }
    to.top[text] = top;
    to.sum[text] = sum;
    to.mean[text] = mean;
    to.squares[text] = squares;
  }
};

// Row: the sample of its text, column: the text.
template <typename T>
struct GatherTask {
  PairSamples samples;
  std::int64_t rows;
  const T* from;
  T* to;

  GAREVLA_INLINE void operator()(std::int64_t sample, std::int64_t text) const {
    const std::int64_t entry = text * samples.per_text + sample;
    const std::int64_t video = samples.video_numbers[entry] - samples.first;
    if (video < 0 || video >= samples.videos) return;
    const T* of_pair = from + video * rows * samples.texts + text;
    for (std::int64_t k = 0; k < rows; ++k) to[entry * rows + k] = of_pair[k * samples.texts];
  }
};

// Row: of the coefficients, column: the text. All samples of a text are one thread's, and may name
// a video twice.
template <typename T>
struct ScatterTask {
  PairSamples samples;
  std::int64_t rows;
  const T* from;
  T* to;

  GAREVLA_INLINE void operator()(std::int64_t row, std::int64_t text) const {
    for (std::int64_t sample = 0; sample < samples.per_text; ++sample) {
      const std::int64_t entry = text * samples.per_text + sample;
      const std::int64_t video = samples.video_numbers[entry] - samples.first;
      if (video < 0 || video >= samples.videos) continue;
      to[(video * rows + row) * samples.texts + text] += from[entry * rows + row];
    }
  }
};

}  // namespace

template <typename T>
cudaError_t launch_update_rows(std::int64_t videos_before, std::int64_t videos, std::int64_t texts,
                               const T* similarity, const T* norm, const T* logit_scale, T* scratch,
                               const RowStatistics<T>& to, cudaStream_t stream) {
  const PartOfRowsTask<T> part{videos, texts, similarity, norm, logit_scale, scratch};
  const cudaError_t error = launch(part, videos < row_parts ? videos : row_parts, texts, stream);
  if (error != cudaSuccess) return error;
  return launch(MergeRowsTask<T>{videos_before, videos, texts, scratch, to}, 1, texts, stream);
}

template <typename T>
cudaError_t launch_gather(const PairSamples& samples, std::int64_t rows, const T* from, T* to,
                          cudaStream_t stream) {
  return launch(GatherTask<T>{samples, rows, from, to}, samples.per_text, samples.texts, stream);
}

template <typename T>
cudaError_t launch_scatter(const PairSamples& samples, std::int64_t rows, const T* from, T* to,
                           cudaStream_t stream) {
  return launch(ScatterTask<T>{samples, rows, from, to}, rows, samples.texts, stream);
}

#define GAREVLA_INSTANTIATE(T)                                                                \
  template cudaError_t launch_update_rows(std::int64_t, std::int64_t, std::int64_t, const T*, \
                                          const T*, const T*, T*, const RowStatistics<T>&,    \
                                          cudaStream_t);                                      \
  template cudaError_t launch_gather(const PairSamples&, std::int64_t, const T*, T*,          \
                                     cudaStream_t);                                           \
  template cudaError_t launch_scatter(const PairSamples&, std::int64_t, const T*, T*, cudaStream_t);
GAREVLA_INSTANTIATE(float)
GAREVLA_INSTANTIATE(double)
#undef GAREVLA_INSTANTIATE

}  // namespace garevla::cuda
