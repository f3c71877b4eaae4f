// What the devices' pair engines share: the numbers that are computed once for all pairs, and the
// loop over chunks of videos.
#pragma once

#include "pair_inputs.h"

namespace garevla {

// Videos [first, first + videos).
struct VideoRange {
  std::int64_t first, videos;

  std::int64_t end() const { return first + videos; }
  at::Tensor of(const at::Tensor& all) const { return all.narrow(0, first, videos); }
};

class PairEngineBase {
 public:
  const PairInputs& inputs;

  explicit PairEngineBase(const PairInputs& pair_inputs) : inputs(pair_inputs) {
    // The three terms of the gap's variance cancel where the gap is small beside the features: this
    // one product is taken in double precision.
    const at::Tensor wide = inputs.text.to(at::kDouble);
    centered_text_ = wide - wide.mean(1, true);
    mean_frame_ = inputs.mean_frame.to(at::kDouble);
    text_squares_ = centered_text_.square().sum(1);
    video_squares_ = mean_frame_.square().sum(1, true);
    squared_norm_ = inputs.text.square().sum(1);
  }

  // Videos that are taken at once.
  std::int64_t chunk() const { return chunk_; }

 protected:
  template <typename Body>
  void for_each_range(const Body& body) const {
    for (std::int64_t first = 0; first < inputs.videos; first += chunk_)
      body(VideoRange{first, std::min(chunk_, inputs.videos - first)});
  }

  // (videos * R, D)
  at::Tensor rows(const VideoRange& range) const { return range.of(inputs.rows).flatten(0, 1); }

  // What the gradients of products (videos * R, A) and of gap variances (videos, A), in double,
  // mean for the videos' rows and mean frames.
  void video_gradient(const VideoRange& range, const at::Tensor& grad_products,
                      const at::Tensor& grad_variance, const PairGradients& to) const {
    at::Tensor grad_rows = range.of(to.rows).flatten(0, 1);
    at::mm_out(grad_rows, grad_products, inputs.text);
    const at::Tensor from_squares = range.of(mean_frame_) * grad_variance.sum(1, true);
    range.of(to.mean_frame)
        .copy_((from_squares - grad_variance.mm(centered_text_)) * (2.0 / inputs.dim));
  }

  std::int64_t chunk_ = 0;
  at::Tensor centered_text_;  // (A, D) double
  at::Tensor mean_frame_;     // (B, D) double, centered
  at::Tensor text_squares_;   // (A) double
  at::Tensor video_squares_;  // (B, 1) double
  at::Tensor squared_norm_;   // (A) of the texts
};

}  // namespace garevla
