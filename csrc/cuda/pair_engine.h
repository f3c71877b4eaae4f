// The pair operations on a GPU: chunks of videos, the matrix products, the gap's variance, the
// gradients' products.
//
// Everything is queued on the current stream, and sums are taken in an order that depends on the
// sizes alone.
#pragma once

#include <cstdlib>

#include "cuda/device.h"
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
    TORCH_CHECK_VALUE(std::max(inputs.attention, inputs.frames) <= largest_capacity,
                      "the CUDA kernels take at most ", largest_capacity, " heads * frames, got ",
                      inputs.heads, " * ", inputs.frames);
    // The gap's variance: (chunk, A) in double twice, once in T.
    const std::int64_t bytes_per_pair =
        (inputs.num_rows + numbers_per_pair + 1) * sizeof(T) + 2 * sizeof(double);
    chunk_ = std::clamp<std::int64_t>(chunk_bytes() / (inputs.texts * bytes_per_pair), 1,
                                      std::min(inputs.videos, largest_chunk));
    products_ = at::empty({chunk_ * inputs.num_rows, inputs.texts}, inputs.text.options());
  }

  // Calls body(chunk) for all chunks. Their products are one buffer, which the next chunk
  // overwrites.
  template <typename Body>
  void for_each_chunk(const Body& body) const {
    for_each_range([&](const VideoRange& range) {
      at::Tensor products = products_.narrow(0, 0, range.videos * inputs.num_rows);
      at::mm_out(products, rows(range), inputs.text.t());
      const at::Tensor variance = gap_variance(range);
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
          wide_(at::zeros_like(engine.centered_text_)),
          variance_sum_(at::zeros_like(engine.text_squares_)),
          squared_norm_sum_(at::zeros_like(engine.squared_norm_)) {
      const auto options = engine.inputs.text.options();
      const std::int64_t chunk = engine.chunk(), texts = engine.inputs.texts;
      buffer_ = at::empty({chunk, rows_.total, texts}, options);
      variance_ = at::empty({chunk, texts}, options);
      squared_norm_ = at::empty({chunk, texts}, options);
      to.text.zero_();
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
      const at::Tensor grad_products = engine_.products_.narrow(0, 0, videos * inputs.num_rows);
      auto buffer = [&](int row, std::int64_t count) {
        return buffer_.narrow(0, 0, videos).narrow(1, row, count);
      };
      auto product = [&](const at::Tensor& gradient, int weighted, std::int64_t weighted_count,
                         int row, std::int64_t count) {
        at::Tensor out = range.of(gradient);
        at::bmm_out(out, buffer(weighted, weighted_count), buffer(row, count).mT());
      };
      product(to_.value_gram, rows_.weighted_attention, attention, rows_.attention, attention);
      product(to_.hidden_gram, rows_.weighted_hidden, attention + 1, rows_.hidden, attention + 1);
      product(to_.basis_gram, rows_.weighted_coefficients, basis, rows_.coefficients, basis);
      product(to_.frame_gram, rows_.weighted_pool, frames, rows_.pool, frames);
      product(to_.basis_frame, rows_.scored_coefficients, basis, rows_.pool, frames);
      const at::Tensor of_keys =
          grad_products.view({videos, inputs.num_rows, -1}).narrow(1, 0, attention);
      range.of(to_.key_bias)
          .copy_(buffer(rows_.key_bias, attention).sum(2).view({videos, heads, frames}));
      range.of(to_.key_offset).copy_(of_keys.sum(2).neg_().view({videos, heads, frames}));

      const at::Tensor variance = variance_.narrow(0, 0, videos).to(at::kDouble);
      engine_.video_gradient(range, grad_products, variance, to_);
      at::Tensor text = to_.text;
      text.addmm_(grad_products.t(), engine_.rows(range));
      wide_.addmm_(variance.t(), range.of(engine_.mean_frame_));
      variance_sum_ += variance.sum(0);
      squared_norm_sum_ += squared_norm_.narrow(0, 0, videos).sum(0);
    }

    void finish() {
      const PairInputs& inputs = engine_.inputs;
      const at::Tensor variance =
          (engine_.centered_text_ * variance_sum_.unsqueeze(1) - wide_) * (2.0 / inputs.dim);
      at::Tensor text = to_.text;
      text += variance.to(text.scalar_type());
      text.addcmul_(inputs.text, squared_norm_sum_.unsqueeze(1), 2);
    }

   private:
    const PairEngine& engine_;
    const PairGradients& to_;
    const AdjointRows rows_;
    at::Tensor wide_;  // (A, D) double: sum over videos of the variance's gradient times mean_frame
    at::Tensor variance_sum_;      // (A) double: sum over videos of the variance's gradient
    at::Tensor squared_norm_sum_;  // (A)
    at::Tensor buffer_;            // (chunk, rows.total, A)
    at::Tensor variance_;          // (chunk, A)
    at::Tensor squared_norm_;      // (chunk, A)
  };

  void backward(const PairChunk<T>& chunk, const PairScores<const T>& grad_scores,
                const Gradient& gradient) const {
    launch(launch_backward<T>, chunk, grad_scores, gradient.adjoint());
  }

 private:
  at::Tensor gap_variance(const VideoRange& range) const {
    at::Tensor variance = range.of(video_squares_) + text_squares_;
    variance.addmm_(range.of(mean_frame_), centered_text_.t(), 1, -2);
    return variance.clamp_min_(0).div_(double(inputs.dim)).to(inputs.text.scalar_type());
  }

  const OnDeviceOf& device_;
  at::Tensor products_;  // (chunk * R, A)
};

}  // namespace garevla::cuda
