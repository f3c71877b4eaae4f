// The elementwise parts of a tile of pairs: a warp for each pair's vector where there are sums
// along it, else a thread for each number.

#include "cuda/launch.h"
#include "cuda/tile_kernels.h"
// After launch.h, for the number types.
#include "activations.h"

namespace garevla::cuda {
namespace {

using scalar::ActivationOf;

// Calls body(unit, factor) for the units that a lane has of a pair: philox_words at a time, whose
// masks come together.
template <typename T, typename Body>
GAREVLA_INLINE void for_each_unit(const Dropout<T>& dropout, std::int64_t video, std::int64_t text,
                                  std::int64_t size, const Warp& warp, const Body& body) {
  for (std::int64_t start = warp.lane * philox_words; start < size;
       start += warp.size * philox_words) {
    std::uint32_t words[philox_words] = {std::uint32_t(start / philox_words),
                                         std::uint32_t(dropout.first_video + video),
                                         std::uint32_t(dropout.first_text + text), 0};
    if (dropout.active) {
      for (const auto& key : dropout.keys.round)
        philox_round(words[0], words[1], words[2], words[3], key);
    }
    for (int k = 0; k < philox_words && start + k < size; ++k) {
      const bool keep = !dropout.active || words[k] >= dropout.threshold;
      body(start + k, !dropout.active ? T(1) : keep ? dropout.scale : T(0));
    }
  }
}

template <typename T, Activation name>
struct GapTask {
  GapTile<T> tile;
  T* hidden;

  GAREVLA_INLINE void operator()(std::int64_t pair, const Warp& warp) const {
    const std::int64_t j = pair / tile.texts, i = pair % tile.texts;
    const T coefficient = tile.coefficients[pair];
    for_each_unit(tile.dropout, j, i, tile.size, warp, [&](std::int64_t h, T factor) {
      const T gap = tile.video[j * tile.size + h] - tile.text[i * tile.size + h];
      const T before = coefficient * gap + tile.shift[h];
      hidden[pair * tile.size + h] = ActivationOf<T, name>::value(before) * factor;
    });
  }
};

template <typename T, Activation name>
struct GapBackwardTask {
  GapTile<T> tile;
  const T* grad;
  T* through;
  T* grad_coefficients;

  GAREVLA_INLINE void operator()(std::int64_t pair, const Warp& warp) const {
    const std::int64_t j = pair / tile.texts, i = pair % tile.texts;
    const T coefficient = tile.coefficients[pair];
    T along = 0;
    for_each_unit(tile.dropout, j, i, tile.size, warp, [&](std::int64_t h, T factor) {
      const T gap = tile.video[j * tile.size + h] - tile.text[i * tile.size + h];
      const T before = coefficient * gap + tile.shift[h];
      const std::int64_t at = pair * tile.size + h;
      const T value = grad[at] * factor * ActivationOf<T, name>::slope(before);
      through[at] = value;
      along += value * gap;
    });
    along = warp.sum(along);
    if (warp.lane == 0) grad_coefficients[pair] = along;
  }
};

template <typename T>
struct AttentionTask {
  AttentionTile<T> tile;
  const T* mixed;
  const T* shift;
  T* hidden;
  T* inverse;

  GAREVLA_INLINE void operator()(std::int64_t pair, const Warp& warp) const {
    const std::int64_t size = tile.size, j = pair / tile.texts, i = pair % tile.texts;
    const T* plain = mixed + 2 * pair * size;
    const T* masked = plain + size;
    T* row = hidden + pair * size;
    T total = 0;
    // A lane meets the same units in each pass.
    for_each_unit(tile.dropout, j, i, size, warp, [&](std::int64_t h, T factor) {
      row[h] = plain[h] + shift[h] + factor * (masked[h] + shift[size + h]);
      total += row[h];
    });
    const T mean = warp.sum(total) / T(size);
    auto for_each = [&](const auto& body) {
      for (std::int64_t start = warp.lane * philox_words; start < size;
           start += warp.size * philox_words)
        for (int k = 0; k < philox_words && start + k < size; ++k) body(row[start + k]);
    };
    T squares = 0;
    for_each([&](T value) { squares += (value - mean) * (value - mean); });
    const T scale = T(1) / scalar::square_root(warp.sum(squares) / T(size) + tile.eps);
    for_each([&](T& value) { value = scale * (value - mean); });
    if (warp.lane == 0) inverse[pair] = scale;
  }
};

template <typename T>
struct AttentionBackwardTask {
  AttentionTile<T> tile;
  const T* grad;
  const T* hidden;
  const T* inverse;
  T* grad_mixed;

  GAREVLA_INLINE void operator()(std::int64_t pair, const Warp& warp) const {
    const std::int64_t size = tile.size, row = pair * size;
    T sum = 0, product = 0;
    for (std::int64_t h = warp.lane; h < size; h += warp.size) {
      sum += grad[row + h];
      product += grad[row + h] * hidden[row + h];
    }
    const T mean = warp.sum(sum) / T(size), along = warp.sum(product) / T(size);
    const T scale = inverse[pair];
    for_each_unit(tile.dropout, pair / tile.texts, pair % tile.texts, size, warp,
                  [&](std::int64_t h, T factor) {
                    const T plain = scale * (grad[row + h] - mean - along * hidden[row + h]);
                    grad_mixed[2 * row + h] = plain;
                    grad_mixed[2 * row + size + h] = plain * factor;
                  });
  }
};

template <typename T>
struct ContractTask {
  Increments<T> tile;
  Contraction<T> to;

  GAREVLA_INLINE void operator()(std::int64_t pair, const Warp& warp) const {
    const T* row = tile.increments + pair * tile.size;
    const T* text = tile.text + pair % tile.texts * tile.size;
    T product = 0, norm = 0;
    for (std::int64_t d = warp.lane; d < tile.size; d += warp.size) {
      product += row[d] * text[d];
      norm += row[d] * row[d];
    }
    product = warp.sum(product);
    norm = warp.sum(norm);
    if (warp.lane != 0) return;
    to.text_product[pair] = product;
    to.norm[pair] = norm;
  }
};

// Row: 0, column: video and feature.
template <typename T>
struct MomentsTask {
  Increments<T> tile;
  Contraction<T> to;

  GAREVLA_INLINE void operator()(std::int64_t, std::int64_t at) const {
    const std::int64_t j = at / tile.size, d = at % tile.size;
    const T* column = tile.increments + j * tile.texts * tile.size + d;
    const T origin = column[0];
    T sum = 0, squares = 0;
    for (std::int64_t i = 0; i < tile.texts; ++i) {
      const T relative = column[i * tile.size] - origin;
      sum += relative;
      squares += relative * relative;
    }
    const T distance = sum / T(tile.texts);
    to.sum[at] = origin + distance;
    to.squares[at] = scalar::maximum(squares - distance * sum, T(0));
  }
};

// Row: 0, column: pair and feature.
template <typename T>
struct IncrementGradientTask {
  Increments<T> tile;
  IncrementGradient<T> from;
  T* grad;

  GAREVLA_INLINE void operator()(std::int64_t, std::int64_t at) const {
    const std::int64_t pair = at / tile.size, d = at % tile.size;
    const T value = tile.increments[at];
    T total = from.text_product[pair] * tile.text[pair % tile.texts * tile.size + d] +
              2 * from.norm[pair] * value;
    if (from.shift) {
      const std::int64_t of_video = pair / tile.texts * tile.size + d;
      total += from.shift[of_video] + from.slope[of_video] * (value - from.center[of_video]);
    }
    grad[at] += total;
  }
};

// Row: 0, column: group and column.
template <typename T>
struct PairSumTask {
  PairSum<T> sum;

  GAREVLA_INLINE void operator()(std::int64_t, std::int64_t at) const {
    const std::int64_t first = at / sum.columns * sum.group_stride, column = at % sum.columns;
    T total = 0, excess = 0;  // of total, what rounding has added to it (Kahan)
    for (std::int64_t member = 0; member < sum.count; ++member) {
      const std::int64_t pair = first + member * sum.member_stride;
      const T value = sum.values[pair * sum.columns + column];
      const T term = (sum.weights ? sum.weights[pair] * value : value) - excess;
      const T next = total + term;
      excess = (next - total) - term;
      total = next;
    }
    sum.to[at] = sum.scale * total;
  }
};

}  // namespace

template <typename T>
cudaError_t launch_gap_hidden(const GapTile<T>& tile, T* hidden, cudaStream_t stream) {
  return with_activation(tile.activation, [&](auto constant) {
    const GapTask<T, decltype(constant)::activation> task{tile, hidden};
    return launch_warps(task, tile.videos * tile.texts, stream);
  });
}

template <typename T>
cudaError_t launch_gap_hidden_backward(const GapTile<T>& tile, const T* grad, T* through,
                                       T* grad_coefficients, cudaStream_t stream) {
  return with_activation(tile.activation, [&](auto constant) {
    const GapBackwardTask<T, decltype(constant)::activation> task{tile, grad, through,
                                                                  grad_coefficients};
    return launch_warps(task, tile.videos * tile.texts, stream);
  });
}

template <typename T>
cudaError_t launch_attention_hidden(const AttentionTile<T>& tile, const T* mixed, const T* shift,
                                    T* hidden, T* inverse, cudaStream_t stream) {
  const AttentionTask<T> task{tile, mixed, shift, hidden, inverse};
  return launch_warps(task, tile.videos * tile.texts, stream);
}

template <typename T>
cudaError_t launch_attention_hidden_backward(const AttentionTile<T>& tile, const T* grad,
                                             const T* hidden, const T* inverse, T* grad_mixed,
                                             cudaStream_t stream) {
  const AttentionBackwardTask<T> task{tile, grad, hidden, inverse, grad_mixed};
  return launch_warps(task, tile.videos * tile.texts, stream);
}

template <typename T>
cudaError_t launch_contract(const Increments<T>& tile, const Contraction<T>& to,
                            cudaStream_t stream) {
  const cudaError_t error =
      launch_warps(ContractTask<T>{tile, to}, tile.videos * tile.texts, stream);
  if (error != cudaSuccess || !to.sum) return error;
  return launch(MomentsTask<T>{tile, to}, 1, tile.videos * tile.size, stream);
}

template <typename T>
cudaError_t launch_increment_gradient(const Increments<T>& tile, const IncrementGradient<T>& from,
                                      T* grad, cudaStream_t stream) {
  const std::int64_t count = tile.videos * tile.texts * tile.size;
  return launch(IncrementGradientTask<T>{tile, from, grad}, 1, count, stream);
}

template <typename T>
cudaError_t launch_pair_sum(const PairSum<T>& sum, cudaStream_t stream) {
  return launch(PairSumTask<T>{sum}, 1, sum.groups * sum.columns, stream);
}

#define GAREVLA_INSTANTIATE(T)                                                                     \
  template cudaError_t launch_gap_hidden(const GapTile<T>&, T*, cudaStream_t);                     \
  template cudaError_t launch_gap_hidden_backward(const GapTile<T>&, const T*, T*, T*,             \
                                                  cudaStream_t);                                   \
  template cudaError_t launch_attention_hidden(const AttentionTile<T>&, const T*, const T*, T*,    \
                                               T*, cudaStream_t);                                  \
  template cudaError_t launch_attention_hidden_backward(const AttentionTile<T>&, const T*,         \
                                                        const T*, const T*, T*, cudaStream_t);     \
  template cudaError_t launch_contract(const Increments<T>&, const Contraction<T>&, cudaStream_t); \
  template cudaError_t launch_increment_gradient(const Increments<T>&,                             \
                                                 const IncrementGradient<T>&, T*, cudaStream_t);   \
  template cudaError_t launch_pair_sum(const PairSum<T>&, cudaStream_t);
GAREVLA_INSTANTIATE(float)
GAREVLA_INSTANTIATE(double)
#undef GAREVLA_INSTANTIATE

}  // namespace garevla::cuda
