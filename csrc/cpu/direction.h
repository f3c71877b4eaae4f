// The regularizer of `direction`, and its gradient, on a CPU.
#pragma once

#include <cmath>
#include <vector>

#include "cpu/pair_kernels.h"
#include "cpu/parallel.h"
#include "operators/direction.h"
#include "products.h"

namespace garevla::cpu {

struct Device;  // operators.cpp

// Rows of a Gram matrix that are computed together, from the diagonal block on.
constexpr std::int64_t gram_rows = 128;

// Elements of the unit increments that are formed at once.
constexpr std::int64_t direction_elements = 1 << 22;

// Copies what lies right of a symmetric matrix's block [start, stop) on the diagonal to below it.
template <typename T>
void mirror(T* matrix, std::int64_t size, std::int64_t start, std::int64_t stop) {
  constexpr std::int64_t tile = 16;  // whose rows the cache holds
  for (std::int64_t first = stop; first < size; first += tile)
    for (std::int64_t column = start; column < stop; ++column)
      for (std::int64_t row = first; row < std::min(first + tile, size); ++row)
        matrix[row * size + column] = matrix[column * size + row];
}

// kernel (B, B) = exp(-alpha (1 - U Uᵀ)) of one text's unit increments U (B, D); returns its sum.
// The matrix is symmetric: blocks on and right of the diagonal are computed, the others copied,
// if the whole matrix is wanted.
template <typename T>
double similarity_kernel(const Tensor& directions, T alpha, bool whole, const Tensor& kernel) {
  const PairKernels<T>& kernels = pair_kernels<T>();
  const std::int64_t videos = directions.size(0);
  T* data = data_at<T>(kernel);
  double total = 0;
  for (std::int64_t start = 0; start < videos; start += gram_rows) {
    const std::int64_t stop = std::min(start + gram_rows, videos);
    product(kernel.narrow(0, start, stop - start).narrow(1, start, videos - start),
            directions.narrow(0, start, stop - start),
            directions.narrow(0, start, videos - start).transposed());
    for (std::int64_t row = start; row < stop; ++row) {
      total += kernels.cosine_kernel(stop - start, alpha, data + row * videos + start);
      total += 2.0 * kernels.cosine_kernel(videos - stop, alpha, data + row * videos + stop);
    }
    if (whole && stop < videos) mirror(data, videos, start, stop);
  }
  return total;
}

// unit (B, K, A) coefficients, basis (B, K, D); gradients that are not empty are filled.
template <typename T>
Tensor compute_direction(const Device&, const Tensor& unit, const Tensor& basis, T alpha,
                         const Tensor& grad_unit, const Tensor& grad_basis) {
  const std::int64_t videos = unit.size(0), texts = unit.size(2), dim = basis.size(2);
  const double pairs = double(videos) * double(videos);
  const bool with_gradient = grad_basis.count() > 0;
  const std::int64_t chunk =
      std::clamp<std::int64_t>(direction_elements / (videos * dim), 1, texts);
  auto empty = [&](const Shape& shape) { return Tensor::empty(shape, unit.type(), unit.device()); };
  const Tensor directions = empty({chunk, videos, dim});
  std::vector<double> logarithms(texts);
  for (std::int64_t start = 0; start < texts; start += chunk) {
    const std::int64_t length = std::min(chunk, texts - start);
    auto of_video = [&](std::int64_t j) { return directions.narrow(0, 0, length).select(1, j); };
    auto of_texts = [&](const Tensor& all, std::int64_t j) {  // (K, length)
      return all.select(0, j).narrow(1, start, length);
    };
    parallel_pieces(videos, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t j = from; j < to; ++j) {
        product(of_video(j), of_texts(unit, j).transposed(), basis.select(0, j));  // (length, D)
      }
    });
    parallel_pieces(length, [&](std::int64_t from, std::int64_t to) {
      // Fresh memory is slow: one buffer for all texts of this thread.
      const Tensor kernel = empty({videos, videos});
      const Tensor gradient = with_gradient ? empty({videos, dim}) : Tensor();
      for (std::int64_t i = from; i < to; ++i) {
        const Tensor of_text = directions.select(0, i);
        const double mean =
            similarity_kernel<T>(of_text, alpha, with_gradient, kernel) / pairs + direction_epsilon;
        logarithms[start + i] = std::log(mean);
        if (!with_gradient) continue;
        // Each direction meets the symmetric kernel as row and as column. Gradients take the
        // directions' place.
        const double slope = 2.0 * double(alpha) / (pairs * double(texts) * mean);
        product(gradient, kernel, of_text, slope);
        std::copy_n(data_at<const T>(gradient), videos * dim, data_at<T>(of_text));
      }
    });
    if (!with_gradient) continue;
    parallel_pieces(videos, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t j = from; j < to; ++j) {
        const Tensor gradient = of_video(j);
        product(of_texts(grad_unit, j), basis.select(0, j), gradient.transposed());
        add_product(grad_basis.select(0, j), of_texts(unit, j), gradient);
      }
    });
  }
  double total = 0;
  for (const double value : logarithms) total += value;
  const Tensor value = empty({});
  *data_at<T>(value) = T(total / double(texts));
  return value;
}

}  // namespace garevla::cpu
