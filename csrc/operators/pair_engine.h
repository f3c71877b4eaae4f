// What the devices' pair engines share: the numbers that are computed once for all pairs, and the
// loop over chunks of videos.
#pragma once

#include "pair_inputs.h"
#include "products.h"

namespace garevla {

// Videos [first, first + videos).
struct VideoRange {
  std::int64_t first, videos;

  std::int64_t end() const { return first + videos; }
  Tensor of(const Tensor& all) const { return all.narrow(0, first, videos); }
};

// The three terms of the gap's variance cancel where the gap is small beside the features: this one
// product is taken in double precision.
class PairEngineBase {
 public:
  const PairInputs& inputs;

  explicit PairEngineBase(const PairInputs& pair_inputs) : inputs(pair_inputs) {}

  // Videos that are taken at once.
  std::int64_t chunk() const { return chunk_; }

 protected:
  template <typename Body>
  void for_each_range(const Body& body) const {
    for (std::int64_t first = 0; first < inputs.videos; first += chunk_)
      body(VideoRange{first, std::min(chunk_, inputs.videos - first)});
  }

  // (videos * R, D) of rows (B, R, D).
  Tensor rows(const VideoRange& range, const Tensor& all) const {
    return range.of(all).view({range.videos * inputs.num_rows, inputs.dim});
  }

  std::int64_t chunk_ = 0;
  Tensor centered_text_;  // (A, D) double
  Tensor mean_frame_;     // (B, D) double, centered
  Tensor text_squares_;   // (A) double, of the centered texts
  Tensor video_squares_;  // (B) double
  Tensor squared_norm_;   // (A) of the texts
};

}  // namespace garevla
