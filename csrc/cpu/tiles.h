// The elementwise parts of a tile of pairs, on a CPU.
//
// A tile is cut into parts that do not depend on the number of threads, along the longer of its
// axes. Sums that several parts add to are taken part by part, in their order.
#pragma once

#include <vector>

#include "cpu/parallel.h"
#include "cpu/tile_kernels.h"
#include "operators/tiles.h"

namespace garevla::cpu {

struct Device;  // operators.cpp

class TileParts {
 public:
  TileParts(std::int64_t videos, std::int64_t texts)
      : videos_(videos), texts_(texts), by_video(videos > texts) {
    const std::int64_t longer = std::max(videos, texts);
    length_ = (longer + most - 1) / most;
    count = (longer + length_ - 1) / length_;
  }

  Part operator[](std::int64_t number) const {
    const std::int64_t first = number * length_, last = first + length_;
    return by_video ? Part{first, std::min(last, videos_), 0, texts_}
                    : Part{0, videos_, first, std::min(last, texts_)};
  }

  // Calls body(number, part) for all parts, in parallel.
  template <typename Body>
  void for_each(const Body& body) const {
    parallel_pieces(count, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t number = from; number < to; ++number) body(number, (*this)[number]);
    });
  }

 private:
  static constexpr std::int64_t most = 16;
  std::int64_t videos_, texts_, length_;

 public:
  const bool by_video;
  std::int64_t count;
};

// A sum that the parts of a tile add to.
template <typename T>
class PartSums {
 public:
  // shared: whether several parts add to the same numbers. No sum is wanted where `to` is null.
  PartSums(const TileParts& parts, bool shared, T* to, std::int64_t size)
      : to_(to), size_(size), count_(parts.count), memory_(shared && to ? count_ * size : 0) {}

  T* of(std::int64_t number) { return memory_.empty() ? to_ : memory_.data() + number * size_; }

  void finish() {
    if (memory_.empty()) return;
    for (std::int64_t number = 0; number < count_; ++number) {
      const T* part = of(number);
      for (std::int64_t k = 0; k < size_; ++k) to_[k] += part[k];
    }
  }

 private:
  T* to_;
  std::int64_t size_, count_;
  std::vector<T> memory_;
};

template <typename T>
void compute_gap_hidden(const Device&, const GapTile<T>& tile, T* hidden) {
  TileParts(tile.videos, tile.texts).for_each([&](std::int64_t, const Part& part) {
    tile_kernels<T>().gap_hidden(tile, part, hidden);
  });
}

template <typename T>
void compute_gap_hidden_backward(const Device&, const GapTile<T>& tile, const T* grad,
                                 const GapGradient<T>& to) {
  const TileParts parts(tile.videos, tile.texts);
  PartSums<T> video(parts, !parts.by_video, to.video, tile.videos * tile.size);
  PartSums<T> text(parts, parts.by_video, to.text, tile.texts * tile.size);
  PartSums<T> shift(parts, true, to.shift, tile.size);
  parts.for_each([&](std::int64_t number, const Part& part) {
    tile_kernels<T>().gap_hidden_backward(
        tile, part, grad, {to.coefficients, video.of(number), text.of(number), shift.of(number)});
  });
  for (PartSums<T>* sums : {&video, &text, &shift}) sums->finish();
}

template <typename T>
void compute_attention_hidden(const Device&, const AttentionTile<T>& tile, const T* mixed,
                              const T* shift, T* hidden, T* inverse) {
  TileParts(tile.videos, tile.texts).for_each([&](std::int64_t, const Part& part) {
    tile_kernels<T>().attention_hidden(tile, part, mixed, shift, hidden, inverse);
  });
}

template <typename T>
void compute_attention_hidden_backward(const Device&, const AttentionTile<T>& tile, const T* grad,
                                       const T* hidden, const T* inverse, T* grad_mixed, T* sum) {
  const TileParts parts(tile.videos, tile.texts);
  PartSums<T> sums(parts, true, sum, 2 * tile.size);
  parts.for_each([&](std::int64_t number, const Part& part) {
    tile_kernels<T>().attention_hidden_backward(tile, part, grad, hidden, inverse, grad_mixed,
                                                sums.of(number));
  });
  sums.finish();
}

template <typename T>
void compute_contract(const Device&, const Increments<T>& tile, const Contraction<T>& to) {
  const TileParts parts(tile.videos, tile.texts);
  PartSums<T> sum(parts, !parts.by_video, to.sum, tile.videos * tile.size);
  PartSums<T> squares(parts, !parts.by_video, to.squares, tile.videos * tile.size);
  parts.for_each([&](std::int64_t number, const Part& part) {
    tile_kernels<T>().contract(tile, part,
                               {to.text_product, to.norm, sum.of(number), squares.of(number)});
  });
  for (PartSums<T>* sums : {&sum, &squares}) sums->finish();
  if (!to.sum) return;
  // From differences to the tile's first text.
  for (std::int64_t j = 0; j < tile.videos; ++j) {
    const T* first = tile.increments + j * tile.texts * tile.size;
    for (std::int64_t d = 0; d < tile.size; ++d) {
      T &mean = to.sum[j * tile.size + d], &deviation = to.squares[j * tile.size + d];
      const T distance = mean / T(tile.texts);
      deviation = std::max(deviation - distance * mean, T(0));
      mean = first[d] + distance;
    }
  }
}

template <typename T>
void compute_increment_gradient(const Device&, const Increments<T>& tile,
                                const IncrementGradient<T>& from, T* grad, T* sum, T* grad_text) {
  const TileParts parts(tile.videos, tile.texts);
  PartSums<T> sums(parts, true, sum, tile.size);
  PartSums<T> text(parts, parts.by_video, grad_text, tile.texts * tile.size);
  parts.for_each([&](std::int64_t number, const Part& part) {
    tile_kernels<T>().increment_gradient(tile, part, from, grad, sums.of(number), text.of(number));
  });
  for (PartSums<T>* all : {&sums, &text}) all->finish();
}

}  // namespace garevla::cpu
