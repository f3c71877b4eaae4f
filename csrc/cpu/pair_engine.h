// What the CPU operators share: chunks of videos, the matrix products, the gap's variance, the
// texts' gradient.
//
// Work is cut into pieces whose size does not depend on the number of threads, and each piece is
// computed by one thread, so that results repeat bit for bit.
#pragma once

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "cpu/pair_kernels.h"
#include "cpu/parallel.h"
#include "pair_inputs.h"

namespace garevla::cpu {

// For the time of one operator: products are in the inputs' precision, whatever surrounds a
// backward pass.
struct WithoutAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

// Uninitialised memory of one thread, aligned for the widest vectors.
template <typename T>
class Scratch {
 public:
  explicit Scratch(std::int64_t size)
      : memory_(static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) / 64 + 1) * 64)),
                std::free) {
    TORCH_CHECK(memory_, "out of memory for ", size, " numbers of scratch");
  }
  T* data() const { return memory_.get(); }

 private:
  std::unique_ptr<T, decltype(&std::free)> memory_;
};

template <typename T>
class PairEngine {
 public:
  const PairInputs& inputs;
  const PairKernels<T>& kernels = pair_kernels<T>();
  const PairConstants<T> constants;

  explicit PairEngine(const PairInputs& given)
      : inputs(given), constants(given.constants<T>()), transposed_text_(given.text.t()) {
    // The three terms of the gap's variance cancel where the gap is small beside the features: this
    // one product is taken in double precision.
    const at::Tensor wide = inputs.text.to(at::kDouble);
    centred_text_ = wide - wide.mean(1, true);
    mean_frame_ = inputs.mean_frame.to(at::kDouble);
    text_squares_ = centred_text_.square().sum(1);
    video_squares_ = mean_frame_.square().sum(1);
    squared_norm_ = inputs.text.square().sum(1);
  }

  // Videos whose products are held at once, and videos whose products are one thread's one matrix
  // product.
  std::int64_t chunk() const { return videos_within(1 << 20); }
  std::int64_t group() const { return videos_within(1 << 17); }
  static constexpr std::int64_t text_block = 64;

  const T* squared_norm() const { return squared_norm_.template const_data_ptr<T>(); }
  std::int64_t scratch_size() const {
    return kernels.scratch_size(int(inputs.heads), int(inputs.frames));
  }

  // Calls body(first, last, products, gap_variance (last - first, A)) for groups of the videos
  // [begin, end), in parallel. products ((last - first) * R, A) is a part of all_products ((end -
  // begin) * R, A) where that is defined, else the group's own.
  template <typename Body>
  void for_each_group(std::int64_t begin, std::int64_t end, const at::Tensor& all_products,
                      const Body& body) const {
    const std::int64_t step = group();
    parallel_pieces((end - begin + step - 1) / step, [&](std::int64_t from, std::int64_t to) {
      // Fresh memory is slow: one buffer for all groups of this thread.
      at::Tensor own;
      if (!all_products.defined())
        own = at::empty({step * inputs.num_rows, inputs.texts}, inputs.text.options());
      for (std::int64_t piece = from; piece < to; ++piece) {
        const std::int64_t first = begin + piece * step, last = std::min(first + step, end);
        const std::int64_t length = (last - first) * inputs.num_rows;
        at::Tensor products =
            own.defined() ? own.narrow(0, 0, length)
                          : all_products.narrow(0, (first - begin) * inputs.num_rows, length);
        at::mm_out(products, rows(first, last), transposed_text_);
        body(first, last, products, gap_variance(first, last));
      }
    });
  }

  at::Tensor rows(std::int64_t first, std::int64_t last) const {
    return inputs.rows.narrow(0, first, last - first).flatten(0, 1);
  }

  // What the gradients of a group's products and gap variances (both (…, A)) mean for its rows and
  // mean frames.
  void video_gradient(std::int64_t first, std::int64_t last, const at::Tensor& grad_products,
                      const at::Tensor& grad_variance, const PairGradients& gradients) const {
    at::Tensor grad_rows = gradients.rows.narrow(0, first, last - first).flatten(0, 1);
    at::mm_out(grad_rows, grad_products, inputs.text);
    const at::Tensor wide = grad_variance.to(at::kDouble);
    const at::Tensor own = mean_frame_.narrow(0, first, last - first) * wide.sum(1, true);
    gradients.mean_frame.narrow(0, first, last - first)
        .copy_((own - wide.mm(centred_text_)) * (2.0 / inputs.dim));
  }

  // The texts' gradient, gathered over chunks of videos; blocks of texts in parallel.
  class TextGradient {
   public:
    TextGradient(const PairEngine& engine, const at::Tensor& gradient)
        : engine_(engine),
          gradient_(gradient.zero_()),
          wide_(at::zeros_like(engine.centred_text_)),
          squared_norm_(at::zeros_like(engine.squared_norm_)) {}

    // grad_products (videos * R, A), grad_variance and grad_squared_norm (videos, A).
    void add(std::int64_t first, std::int64_t last, const at::Tensor& grad_products,
             const at::Tensor& grad_variance, const at::Tensor& grad_squared_norm) {
      const at::Tensor rows = engine_.rows(first, last);
      const at::Tensor mean_frame = engine_.mean_frame_.narrow(0, first, last - first);
      for_each_block([&](std::int64_t start, std::int64_t length) {
        at::Tensor block = gradient_.narrow(0, start, length);
        at::addmm_out(block, block, grad_products.narrow(1, start, length).t(), rows);
        const at::Tensor variance = grad_variance.narrow(1, start, length).to(at::kDouble);
        at::Tensor wide = wide_.narrow(0, start, length);
        wide += engine_.centred_text_.narrow(0, start, length) * variance.sum(0).unsqueeze(1);
        wide -= variance.t().mm(mean_frame);
        squared_norm_.narrow(0, start, length) += grad_squared_norm.narrow(1, start, length).sum(0);
      });
    }

    void finish() {
      for_each_block([&](std::int64_t start, std::int64_t length) {
        at::Tensor block = gradient_.narrow(0, start, length);
        block +=
            (wide_.narrow(0, start, length) * (2.0 / engine_.inputs.dim)).to(block.scalar_type());
        block += engine_.inputs.text.narrow(0, start, length) *
                 (squared_norm_.narrow(0, start, length).unsqueeze(1) * 2);
      });
    }

   private:
    template <typename Body>
    void for_each_block(const Body& body) const {
      const std::int64_t texts = engine_.inputs.texts;
      parallel_pieces((texts + text_block - 1) / text_block,
                      [&](std::int64_t from, std::int64_t to) {
                        for (std::int64_t piece = from; piece < to; ++piece) {
                          const std::int64_t start = piece * text_block;
                          body(start, std::min(text_block, texts - start));
                        }
                      });
    }

    const PairEngine& engine_;
    at::Tensor gradient_;      // (A, D)
    at::Tensor wide_;          // (A, D) double: the part through the gap's variance, times D / 2
    at::Tensor squared_norm_;  // (A)
  };

 private:
  std::int64_t videos_within(std::int64_t elements) const {
    return std::clamp<std::int64_t>(elements / (inputs.texts * inputs.num_rows), 1, inputs.videos);
  }

  at::Tensor gap_variance(std::int64_t first, std::int64_t last) const {
    const at::Tensor cross = mean_frame_.narrow(0, first, last - first).mm(centred_text_.t());
    const at::Tensor squares =
        video_squares_.narrow(0, first, last - first).unsqueeze(1) + text_squares_;
    return ((squares - 2 * cross).clamp_min_(0) / double(inputs.dim)).to(inputs.text.scalar_type());
  }

  at::Tensor transposed_text_;  // (D, A)
  at::Tensor centred_text_;     // (A, D) double
  at::Tensor mean_frame_;       // (B, D) double, centred
  at::Tensor text_squares_;     // (A) double
  at::Tensor video_squares_;    // (B) double
  at::Tensor squared_norm_;     // (A)
};

}  // namespace garevla::cpu
