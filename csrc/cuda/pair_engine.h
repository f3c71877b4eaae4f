// What the GPU operators share: chunks of videos, the matrix products, the gap's variance, the
// gradients' products.
//
// Everything is queued on the current stream, and sums are taken in an order that depends on the
// sizes alone.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <vector>

#include "cuda/device.h"
#include "pair_inputs.h"

namespace garevla::cuda {

// What the per-pair buffers of one chunk may take: about what stays in the L2 cache of a large GPU.
// More only where one video alone needs more.
inline std::int64_t chunk_bytes() {
  // Tests make it small, so that small inputs have many chunks.
  const char* bytes = std::getenv("GAREVLA_CUDA_CHUNK_BYTES");
  return bytes ? std::atoll(bytes) : std::int64_t(64) << 20;
}

inline at::Tensor contiguous_or_none(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->contiguous() : at::Tensor();
}

template <typename T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <typename T>
class PairEngine {
 public:
  const PairInputs& inputs;

  // extra_rows: how many numbers a pair has in the caller's own buffers.
  PairEngine(const PairInputs& given, std::int64_t extra_rows) : inputs(given) {
    TORCH_CHECK_VALUE(std::max(inputs.attention, inputs.frames) <= largest_capacity,
                      "the CUDA kernels take at most ", largest_capacity, " heads * frames, got ",
                      inputs.heads, " * ", inputs.frames);
    // The three terms of the gap's variance cancel where the gap is small beside the features: this
    // one product is taken in double precision.
    const at::Tensor wide = inputs.text.to(at::kDouble);
    centred_text_ = wide - wide.mean(1, true);
    mean_frame_ = inputs.mean_frame.to(at::kDouble);
    text_squares_ = centred_text_.square().sum(1);
    video_squares_ = mean_frame_.square().sum(1, true);
    squared_norm_ = inputs.text.square().sum(1);

    // The gap's variance: (chunk, A) in double twice, once in T.
    const std::int64_t per_pair =
        (inputs.num_rows + extra_rows + 1) * sizeof(T) + 2 * sizeof(double);
    chunk_ = std::clamp<std::int64_t>(chunk_bytes() / (inputs.texts * per_pair), 1,
                                      std::min(inputs.videos, largest_chunk));
    products_ = at::empty({chunk_ * inputs.num_rows, inputs.texts}, inputs.text.options());
  }

  // Videos that are taken at once.
  std::int64_t chunk() const { return chunk_; }

  // Calls body(first, videos, chunk, products (videos * R, A)) for all chunks. The products are one
  // buffer, which the next chunk overwrites.
  template <typename Body>
  void for_each_chunk(const Body& body) const {
    for (std::int64_t first = 0; first < inputs.videos; first += chunk_) {
      const std::int64_t videos = std::min(chunk_, inputs.videos - first);
      at::Tensor products = products_.narrow(0, 0, videos * inputs.num_rows);
      at::mm_out(products, rows(first, videos), inputs.text.t());
      const at::Tensor variance = gap_variance(first, videos);
      const PairChunk<T> chunk{videos,
                               inputs.texts,
                               inputs.template video<T>(first),
                               inputs.template constants<T>(),
                               products.template data_ptr<T>(),
                               variance.template const_data_ptr<T>(),
                               squared_norm_.template const_data_ptr<T>()};
      body(first, videos, chunk, products);
    }
  }

  // Gathers the gradients of text and factors from the adjoints of chunk after chunk.
  class Gradient {
   public:
    Gradient(const PairEngine& engine, const PairGradients& to)
        : engine_(engine),
          to_(to),
          rows_(adjoint_rows(int(engine.inputs.heads), int(engine.inputs.frames))),
          wide_(at::zeros_like(engine.centred_text_)),
          variance_sum_(at::zeros_like(engine.text_squares_)),
          squared_norm_sum_(at::zeros_like(engine.squared_norm_)) {
      const auto options = engine.inputs.text.options();
      const std::int64_t chunk = engine.chunk(), texts = engine.inputs.texts;
      buffer_ = at::empty({chunk, rows_.total, texts}, options);
      variance_ = at::empty({chunk, texts}, options);
      squared_norm_ = at::empty({chunk, texts}, options);
      to_.text.zero_();
    }

    // Numbers that a pair has in the buffers, among them two in double.
    static std::int64_t rows_per_pair(const PairInputs& inputs) {
      return adjoint_rows(int(inputs.heads), int(inputs.frames)).total + 2 +
             2 * sizeof(double) / sizeof(T);
    }

    // Where a kernel writes.
    PairAdjoint<T> adjoint() const {
      return {variance_.template data_ptr<T>(), squared_norm_.template data_ptr<T>(),
              buffer_.template data_ptr<T>(), rows_};
    }

    // Takes what a kernel wrote for videos [first, first + videos), with the products' gradient
    // (videos * R, A).
    void add(std::int64_t first, std::int64_t videos, const at::Tensor& grad_products) {
      const PairInputs& inputs = engine_.inputs;
      const std::int64_t heads = inputs.heads, frames = inputs.frames, attention = inputs.attention;
      const std::int64_t basis = inputs.basis;
      auto own = [&](const at::Tensor& tensor) { return tensor.narrow(0, first, videos); };
      auto buffer = [&](int row, std::int64_t count) {
        return buffer_.narrow(0, 0, videos).narrow(1, row, count);
      };
      auto product = [&](const at::Tensor& gradient, int left, std::int64_t left_count, int right,
                         std::int64_t right_count) {
        at::Tensor out = own(gradient);
        at::bmm_out(out, buffer(left, left_count), buffer(right, right_count).mT());
      };

      at::Tensor grad_rows = own(to_.rows).flatten(0, 1);
      at::mm_out(grad_rows, grad_products, inputs.text);
      product(to_.value_gram, rows_.weighted_attention, attention, rows_.attention, attention);
      product(to_.hidden_gram, rows_.weighted_hidden, attention + 1, rows_.hidden, attention + 1);
      product(to_.basis_gram, rows_.weighted_coefficients, basis, rows_.coefficients, basis);
      product(to_.frame_gram, rows_.weighted_pool, frames, rows_.pool, frames);
      product(to_.basis_frame, rows_.scored_coefficients, basis, rows_.pool, frames);
      const at::Tensor of_keys =
          grad_products.view({videos, inputs.num_rows, -1}).narrow(1, 0, attention);
      own(to_.key_bias)
          .copy_(buffer(rows_.key_bias, attention).sum(2).view({videos, heads, frames}));
      own(to_.key_offset).copy_(of_keys.sum(2).neg_().view({videos, heads, frames}));

      const at::Tensor variance = variance_.narrow(0, 0, videos).to(at::kDouble);
      const at::Tensor mean_frame = own(engine_.mean_frame_);
      own(to_.mean_frame)
          .copy_((mean_frame * variance.sum(1, true) - variance.mm(engine_.centred_text_)) *
                 (2.0 / inputs.dim));

      at::Tensor text = to_.text;
      text.addmm_(grad_products.t(), engine_.rows(first, videos));
      wide_.addmm_(variance.t(), mean_frame);
      variance_sum_ += variance.sum(0);
      squared_norm_sum_ += squared_norm_.narrow(0, 0, videos).sum(0);
    }

    void finish() {
      const PairInputs& inputs = engine_.inputs;
      const at::Tensor variance =
          (engine_.centred_text_ * variance_sum_.unsqueeze(1) - wide_) * (2.0 / inputs.dim);
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

 private:
  at::Tensor rows(std::int64_t first, std::int64_t videos) const {
    return inputs.rows.narrow(0, first, videos).flatten(0, 1);
  }

  at::Tensor gap_variance(std::int64_t first, std::int64_t videos) const {
    at::Tensor variance = video_squares_.narrow(0, first, videos) + text_squares_;
    variance.addmm_(mean_frame_.narrow(0, first, videos), centred_text_.t(), 1, -2);
    return variance.clamp_min_(0).div_(double(inputs.dim)).to(inputs.text.scalar_type());
  }

  std::int64_t chunk_;
  at::Tensor products_;       // (chunk * R, A)
  at::Tensor centred_text_;   // (A, D) double
  at::Tensor mean_frame_;     // (B, D) double, centred
  at::Tensor text_squares_;   // (A) double
  at::Tensor video_squares_;  // (B, 1) double
  at::Tensor squared_norm_;   // (A)
};

}  // namespace garevla::cuda
