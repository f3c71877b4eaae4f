// Part of a tile of pairs, on one thread of a CPU.
#pragma once

#include "tile_types.h"

namespace garevla::cpu {

// Pairs of some of a tile's videos and texts.
struct Part {
  std::int64_t first_video, last_video, first_text, last_text;  // the last are excluded
};

// Sums are added to what is there; for the rest, see the structs.
template <typename T>
struct TileKernels {
  // y (b, a, H).
  void (*gap_hidden)(const GapTile<T>& tile, const Part& part, T* hidden);

  // grad (b, a, H) of y.
  void (*gap_hidden_backward)(const GapTile<T>& tile, const Part& part, const T* grad,
                              const GapGradient<T>& to);

  // y (b, a, H) and the inverse deviations (b, a), from mixed values (b, a, 2*H) and shift (2*H).
  void (*attention_hidden)(const AttentionTile<T>& tile, const Part& part, const T* mixed,
                           const T* shift, T* hidden, T* inverse);

  // From grad and hidden (b, a, H), inverse (b, a): gradients of the mixed values (b, a, 2*H) and
  // the sum of these (2*H).
  void (*attention_hidden_backward)(const AttentionTile<T>& tile, const Part& part, const T* grad,
                                    const T* hidden, const T* inverse, T* grad_mixed, T* sum);

  // In place of the mean and the deviations: sums of the differences from the tile's first text,
  // and of their squares.
  void (*contract)(const Increments<T>& tile, const Part& part, const Contraction<T>& to);

  // Adds to grad (b, a, D); its sum (D), and the texts' gradient (a, D).
  void (*increment_gradient)(const Increments<T>& tile, const Part& part,
                             const IncrementGradient<T>& from, T* grad, T* sum, T* grad_text);

  // to = scale * from.
  void (*scale)(std::int64_t size, T scale, const T* from, T* to);

  // to = scale * (grad without its component along a unit vector).
  void (*tangent)(std::int64_t size, T scale, const T* unit, const T* grad, T* to);
};

// As pair_kernels (pair_kernels.h).
template <typename T>
const TileKernels<T>& tile_kernels();

}  // namespace garevla::cpu
