// direction: the cubic regulariser and its gradient on a CPU.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "cpu/pair_kernels.h"
#include "cpu/parallel.h"
#include "direction_inputs.h"

namespace garevla::cpu {
namespace {

// Rows of a Gram matrix that are computed together, from the diagonal block on.
constexpr std::int64_t gram_block = 128;

// Elements of the unit increments that are formed at once.
constexpr std::int64_t chunk_elements = 1 << 22;

// kernel (B, B) = exp(-alpha (1 - U Uᵀ)) of one text's unit increments U (B, D); returns its sum.
// The matrix is symmetric: blocks on and right of the diagonal are computed, the others copied.
template <typename T>
double similarity_kernel(const at::Tensor& directions, T alpha, const at::Tensor& kernel) {
  const PairKernels<T>& kernels = pair_kernels<T>();
  const std::int64_t videos = directions.size(0);
  T* data = kernel.data_ptr<T>();
  double total = 0;
  for (std::int64_t start = 0; start < videos; start += gram_block) {
    const std::int64_t stop = std::min(start + gram_block, videos);
    at::Tensor block = kernel.narrow(0, start, stop - start).narrow(1, start, videos - start);
    at::mm_out(block, directions.narrow(0, start, stop - start),
               directions.narrow(0, start, videos - start).t());
    for (std::int64_t row = start; row < stop; ++row) {
      total += kernels.cosine_kernel(stop - start, alpha, data + row * videos + start);
      total += 2.0 * kernels.cosine_kernel(videos - stop, alpha, data + row * videos + stop);
    }
    if (stop < videos)
      kernel.narrow(0, stop, videos - stop)
          .narrow(1, start, stop - start)
          .copy_(kernel.narrow(0, start, stop - start).narrow(1, stop, videos - stop).t());
  }
  return total;
}

template <typename T>
double run(const at::Tensor& unit, const at::Tensor& basis, T alpha, at::Tensor grad_unit,
           at::Tensor grad_basis) {
  const std::int64_t videos = unit.size(0), texts = unit.size(2), dim = basis.size(2);
  const double pairs = double(videos) * double(videos);
  const bool with_gradient = grad_basis.defined();
  const std::int64_t chunk = std::clamp<std::int64_t>(chunk_elements / (videos * dim), 1, texts);
  const at::Tensor directions = at::empty({chunk, videos, dim}, unit.options());
  std::vector<double> logarithms(texts);
  for (std::int64_t start = 0; start < texts; start += chunk) {
    const std::int64_t length = std::min(chunk, texts - start);
    auto of_video = [&](std::int64_t j) { return directions.narrow(0, 0, length).select(1, j); };
    parallel_pieces(videos, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t j = from; j < to; ++j) {
        at::Tensor own = of_video(j);  // (length, D)
        at::mm_out(own, unit[j].narrow(1, start, length).t(), basis[j]);
      }
    });
    parallel_pieces(length, [&](std::int64_t from, std::int64_t to) {
      // Fresh memory is slow: one buffer for all texts of this thread.
      const at::Tensor kernel = at::empty({videos, videos}, unit.options());
      at::Tensor gradient = with_gradient ? at::empty({videos, dim}, unit.options()) : at::Tensor();
      for (std::int64_t i = from; i < to; ++i) {
        const double mean = similarity_kernel<T>(directions[i], alpha, kernel) / pairs + 1e-8;
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
        const at::Tensor own = of_video(j);
        at::Tensor grad_coefficients = grad_unit[j].narrow(1, start, length);
        at::mm_out(grad_coefficients, basis[j], own.t());
        at::Tensor sum = grad_basis[j];
        at::addmm_out(sum, sum, unit[j].narrow(1, start, length), own);
      }
    });
  }
  double total = 0;
  for (const double value : logarithms) total += value;
  return total / double(texts);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> direction(const at::Tensor& unit_coefficients,
                                                         const at::Tensor& basis, double alpha,
                                                         bool with_gradient) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  check_direction(unit_coefficients, basis);
  const at::Tensor unit = unit_coefficients.contiguous(), vectors = basis.contiguous();
  auto gradient = [&](const at::Tensor& of) {
    return with_gradient ? at::zeros_like(of) : at::empty({0}, of.options());
  };
  const at::Tensor grad_unit = gradient(unit), grad_basis = gradient(vectors);
  double value = 0;
  AT_DISPATCH_FLOATING_TYPES(unit.scalar_type(), "direction", [&] {
    value = run<scalar_t>(unit, vectors, scalar_t(alpha), grad_unit,
                          with_gradient ? grad_basis : at::Tensor());
  });
  return {at::full({}, value, unit.options()), grad_unit, grad_basis};
}

}  // namespace
}  // namespace garevla::cpu

TORCH_LIBRARY_IMPL(garevla, CPU, m) { m.impl("direction", garevla::cpu::direction); }
