// The pair operations on a GPU: chunks of videos, the matrix products, the gap's variance, the
// gradients' products.
//
// Everything is queued on the current stream, and sums are taken in an order that depends on the
// sizes alone.
#pragma once

#include <cstdlib>

#include "cuda/expressions.h"
#include "operators/pair_engine.h"

namespace garevla::cuda {

// What the per-pair buffers of one chunk may take: about what stays in the L2 cache of a large GPU.
// More only where one video alone needs more.
inline std::int64_t chunk_bytes() {
  // Tests make it small, so that small inputs have many chunks.
  const char* bytes = std::getenv("GAREVLA_CUDA_CHUNK_BYTES");
  return bytes ? std::atoll(bytes) : std::int64_t(64) << 20;
}

template <typename T>
class PairEngine : public PairEngineBase {
 public:
  // numbers_per_pair: how many a pair has in the caller's own buffers, in units of T.
  PairEngine(const OnDeviceOf& device, const PairInputs& pair_inputs, std::int64_t numbers_per_pair)
      : PairEngineBase(pair_inputs), device_(device) {
    require(std::max(inputs.attention, inputs.frames) <= largest_capacity,
            "the CUDA kernels take at most ", largest_capacity, " heads * frames, got ",
            inputs.heads, " * ", inputs.frames);
    // The gap's variance: (chunk, A) in double twice, once in T.
    const std::int64_t bytes_per_pair =
        (inputs.num_rows + numbers_per_pair + 1) * sizeof(T) + 2 * sizeof(double);
    chunk_ = std::clamp<std::int64_t>(chunk_bytes() / (inputs.texts * bytes_per_pair), 1,
                                      std::min(inputs.videos, largest_chunk));
    products_ = inputs.empty({chunk_ * inputs.num_rows, inputs.texts});
    const Tensor wide = inputs.text.to(type_of<double>());
    centered_text_ = wide - sum(wide, {1}, true) * (1.0 / double(inputs.dim));
    mean_frame_ = inputs.mean_frame.to(type_of<double>());
    text_squares_ = sum(square(centered_text_), {1});
    video_squares_ = sum(square(mean_frame_), {1});
    squared_norm_ = sum(square(inputs.text), {1});
  }

  // Calls body(chunk) for all chunks. Their products are one buffer, which the next chunk
  // overwrites.
  template <typename Body>
  void for_each_chunk(const Body& body) const {
    for_each_range([&](const VideoRange& range) {
      const Tensor products = products_.narrow(0, 0, range.videos * inputs.num_rows);
      product(products, rows(range, inputs.rows), inputs.text.transposed());
      const Tensor variance = gap_variance(range);
      body(PairChunk<T>{range.first, range.videos, inputs.texts,
                        inputs.template video<T>(range.first), inputs.template constants<T>(),
                        data_at<T>(products), data_at<const T>(variance),
                        data_at<const T>(squared_norm_)});
    });
  }

  void forward(const PairChunk<T>& chunk, const PairScores<T>& to) const {
    launch(launch_forward<T>, chunk, to);
  }

  // Calls a function of pair_kernels.h with these arguments and the stream.
  template <typename Function, typename... Arguments>
  void launch(const Function& function, const Arguments&... arguments) const {
    device_.check(function(arguments..., device_.stream()));
  }

  // Gathers the gradients of text and factors from the adjoints of chunk after chunk.
  class Gradient {
   public:
    Gradient(const PairEngine& engine, const PairGradients& to)
        : engine_(engine),
          to_(to),
          rows_(adjoint_rows(int(engine.inputs.heads), int(engine.inputs.frames))),
          wide_(engine.centered_text_.like()),
          variance_sum_(engine.text_squares_.like()),
          squared_norm_sum_(engine.squared_norm_.like()) {
      const std::int64_t chunk = engine.chunk(), texts = engine.inputs.texts;
      buffer_ = engine.inputs.empty({chunk, rows_.total, texts});
      variance_ = engine.inputs.empty({chunk, texts});
      squared_norm_ = engine.inputs.empty({chunk, texts});
      to.text.zero();
      wide_.zero();
      variance_sum_.zero();
      squared_norm_sum_.zero();
    }

    // Numbers that a pair has in the buffers, among them two in double.
    static std::int64_t numbers_per_pair(const PairInputs& inputs) {
      return adjoint_rows(int(inputs.heads), int(inputs.frames)).total + 2 +
             2 * sizeof(double) / sizeof(T);
    }

    // Where a kernel writes.
    PairAdjoint<T> adjoint() const {
      return {data_at<T>(variance_), data_at<T>(squared_norm_), data_at<T>(buffer_), rows_};
    }

    // Takes what a kernel wrote for a chunk.
    void add(const PairChunk<T>& chunk) {
      const PairInputs& inputs = engine_.inputs;
      const std::int64_t videos = chunk.videos, heads = inputs.heads, frames = inputs.frames;
      const std::int64_t attention = inputs.attention, basis = inputs.basis;
      const VideoRange range{chunk.first, videos};
      const Tensor grad_products = engine_.products_.narrow(0, 0, videos * inputs.num_rows);
      auto buffer = [&](int row, std::int64_t count) {
        return buffer_.narrow(0, 0, videos).narrow(1, row, count);
      };
      auto of_rows = [&](const Tensor& gradient, int weighted, std::int64_t weighted_count, int row,
                         std::int64_t count) {
        product(range.of(gradient), buffer(weighted, weighted_count),
                buffer(row, count).transposed());
      };
      of_rows(to_.value_gram, rows_.weighted_attention, attention, rows_.attention, attention);
      of_rows(to_.hidden_gram, rows_.weighted_hidden, attention + 1, rows_.hidden, attention + 1);
      of_rows(to_.basis_gram, rows_.weighted_coefficients, basis, rows_.coefficients, basis);
      of_rows(to_.frame_gram, rows_.weighted_pool, frames, rows_.pool, frames);
      of_rows(to_.basis_frame, rows_.scored_coefficients, basis, rows_.pool, frames);
      const Tensor of_keys =
          grad_products.view({videos, inputs.num_rows, inputs.texts}).narrow(1, 0, attention);
      const Shape keys = {videos, heads, frames};
      range.of(to_.key_bias).copy_from(sum(buffer(rows_.key_bias, attention), {2}).view(keys));
      range.of(to_.key_offset).copy_from((sum(of_keys, {2}) * -1).view(keys));

      const Tensor variance = variance_.narrow(0, 0, videos).to(type_of<double>());
      engine_.video_gradient(range, grad_products, variance, to_);
      add_product(to_.text, grad_products.transposed(), engine_.rows(range, inputs.rows));
      add_product(wide_, variance.transposed(), range.of(engine_.mean_frame_));
      variance_sum_ = variance_sum_ + sum(variance, {0});
      squared_norm_sum_ = squared_norm_sum_ + sum(squared_norm_.narrow(0, 0, videos), {0});
    }

    void finish() {
      const PairInputs& inputs = engine_.inputs;
      const Tensor variance = (engine_.centered_text_ * variance_sum_.with_axis(1) - wide_) *
                              (2.0 / double(inputs.dim));
      const Tensor norm = inputs.text * (squared_norm_sum_.with_axis(1) * 2);
      to_.text.copy_from(to_.text + variance.to(to_.text.type()) + norm);
    }

   private:
    const PairEngine& engine_;
    const PairGradients& to_;
    const AdjointRows rows_;
    Tensor wide_;  // (A, D) double: sum over videos of the variance's gradient times mean_frame
    Tensor variance_sum_;      // (A) double: sum over videos of the variance's gradient
    Tensor squared_norm_sum_;  // (A)
    Tensor buffer_;            // (chunk, rows.total, A)
    Tensor variance_;          // (chunk, A)
    Tensor squared_norm_;      // (chunk, A)
  };

  void backward(const PairChunk<T>& chunk, const PairScores<const T>& grad_scores,
                const Gradient& gradient) const {
    launch(launch_backward<T>, chunk, grad_scores, gradient.adjoint());
  }

 private:
  Tensor gap_variance(const VideoRange& range) const {
    const Tensor cross = inputs.empty_wide({range.videos, inputs.texts});
    product(cross, range.of(mean_frame_), centered_text_.transposed());
    const Tensor squares = range.of(video_squares_).with_axis(1) + text_squares_;
    const Tensor variance = nonnegative(sum_of(squares, cross, -2)) * (1.0 / double(inputs.dim));
    return variance.to(inputs.text.type());
  }

  // What the gradients of products (videos * R, A) and of gap variances (videos, A), in double,
  // mean for the videos' rows and mean frames.
  void video_gradient(const VideoRange& range, const Tensor& grad_products,
                      const Tensor& grad_variance, const PairGradients& to) const {
    product(rows(range, to.rows), grad_products, inputs.text);
    const Tensor through = inputs.empty_wide({range.videos, inputs.dim});
    product(through, grad_variance, centered_text_);
    const Tensor from_squares = range.of(mean_frame_) * sum(grad_variance, {1}, true);
    range.of(to.mean_frame).copy_from((from_squares - through) * (2.0 / double(inputs.dim)));
  }

  const OnDeviceOf& device_;
  Tensor products_;  // (chunk * R, A)
};

}  // namespace garevla::cuda
