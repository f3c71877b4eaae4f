// The regularizer of `direction`, and its gradient, on a CPU.
#pragma once

#include <cmath>
#include <vector>

#include "cpu/pair_kernels.h"
#include "cpu/parallel.h"
#include "operators/direction.h"

namespace garevla::cpu {

struct Device;  // operators.cpp

// Rows of a Gram matrix that are computed together, from the diagonal block on.
constexpr std::int64_t gram_rows = 128;

// Elements of the unit increments that are formed at once.
constexpr std::int64_t direction_elements = 1 << 22;

// kernel (B, B) = exp(-alpha (1 - U Uᵀ)) of one text's unit increments U (B, D); returns its sum.
// The matrix is symmetric: blocks on and right of the diagonal are computed, the others copied,
// if the whole matrix is wanted.
template <typename T>
double similarity_kernel(const at::Tensor& directions, T alpha, bool whole,
                         const at::Tensor& kernel) {
  const PairKernels<T>& kernels = pair_kernels<T>();
  const std::int64_t videos = directions.size(0);
  T* data = kernel.data_ptr<T>();
  double total = 0;
  for (std::int64_t start = 0; start < videos; start += gram_rows) {
    const std::int64_t stop = std::min(start + gram_rows, videos);
    at::Tensor block = kernel.narrow(0, start, stop - start).narrow(1, start, videos - start);
    at::mm_out(block, directions.narrow(0, start, stop - start),
               directions.narrow(0, start, videos - start).t());
    for (std::int64_t row = start; row < stop; ++row) {
      total += kernels.cosine_kernel(stop - start, alpha, data + row * videos + start);
      total += 2.0 * kernels.cosine_kernel(videos - stop, alpha, data + row * videos + stop);
    }
    if (whole && stop < videos)
      kernel.narrow(0, stop, videos - stop)
          .narrow(1, start, stop - start)
          .copy_(kernel.narrow(0, start, stop - start).narrow(1, stop, videos - stop).t());
  }
  return total;
}

// unit (B, K, A) coefficients, basis (B, K, D); gradients that are not empty are filled.
template <typename T>
at::Tensor compute_direction(const Device&, const at::Tensor& unit, const at::Tensor& basis,
                             T alpha, const at::Tensor& grad_unit, const at::Tensor& grad_basis) {
  const std::int64_t videos = unit.size(0), texts = unit.size(2), dim = basis.size(2);
  const double pairs = double(videos) * double(videos);
  const bool with_gradient = grad_basis.numel() > 0;
  const std::int64_t chunk =
      std::clamp<std::int64_t>(direction_elements / (videos * dim), 1, texts);
  const at::Tensor directions = at::empty({chunk, videos, dim}, unit.options());
  std::vector<double> logarithms(texts);
  for (std::int64_t start = 0; start < texts; start += chunk) {
    const std::int64_t length = std::min(chunk, texts - start);
    auto of_video = [&](std::int64_t j) { return directions.narrow(0, 0, length).select(1, j); };
    parallel_pieces(videos, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t j = from; j < to; ++j) {
        at::Tensor increments = of_video(j);  // (length, D)
        at::mm_out(increments, unit[j].narrow(1, start, length).t(), basis[j]);
      }
    });
    parallel_pieces(length, [&](std::int64_t from, std::int64_t to) {
      // Fresh memory is slow: one buffer for all texts of this thread.
      const at::Tensor kernel = at::empty({videos, videos}, unit.options());
      at::Tensor gradient = with_gradient ? at::empty({videos, dim}, unit.options()) : at::Tensor();
      for (std::int64_t i = from; i < to; ++i) {
        const double mean =
            similarity_kernel<T>(directions[i], alpha, with_gradient, kernel) / pairs +
            direction_epsilon;
        logarithms[start + i] = std::log(mean);
        if (!with_gradient) continue;
        // Each direction meets the symmetric kernel as row and as column. Gradients take the
        // directions' place.
        const double slope = 2.0 * double(alpha) / (pairs * double(texts) * mean);
        at::addmm_out(gradient, gradient, kernel, directions[i], 0, slope);
        directions[i].copy_(gradient);
      }
    });
    if (!with_gradient) continue;
    parallel_pieces(videos, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t j = from; j < to; ++j) {
        const at::Tensor gradient = of_video(j);
        at::Tensor grad_coefficients = grad_unit[j].narrow(1, start, length);
        at::mm_out(grad_coefficients, basis[j], gradient.t());
        at::Tensor sum = grad_basis[j];
        at::addmm_out(sum, sum, unit[j].narrow(1, start, length), gradient);
      }
    });
  }
  double total = 0;
  for (const double value : logarithms) total += value;
  return at::full({}, total / double(texts), unit.options());
}

}  // namespace garevla::cpu
