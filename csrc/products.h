// Every matrix product of these sources. Operands are matrices, or as many matrices in a batch;
// views are welcome, transposed ones too. Products are written to `out`.
#pragma once

#include <atomic>
#include <limits>

#include "cpu/rounded_product.h"
#include "tensor.h"

// Code for GPUs says so before it includes this header.
#if defined(GAREVLA_ON_CUDA)
#define GAREVLA_OF_DEVICE(function) aoti_torch_cuda_##function
#else
#define GAREVLA_OF_DEVICE(function) aoti_torch_cpu_##function
#endif

namespace garevla {

namespace products {

#if !defined(GAREVLA_ON_CUDA)

// Takes products of float32 matrices while garevla/ops/products.py says so; else null.
inline std::atomic<cpu::RoundedProduct*> rounded = nullptr;

// Multiply-adds from which it does: of smaller products rounding costs more than it gains.
constexpr std::int64_t rounded_from = 1 << 16;

inline bool takes_rounded(const Tensor& out, const Tensor& a) {
  return out.axes() == 2 && out.stride(1) == 1 && out.type() == type_of<float>() &&
         out.count() * a.size(1) >= rounded_from;
}

inline void run_rounded(cpu::RoundedProduct* product, const Tensor& out, const Tensor& a,
                        const Tensor& b, double kept, double scale) {
  auto matrix = [](const Tensor& of) {
    return cpu::Matrix{of.data<float>(), of.size(0), of.size(1), of.stride(0), of.stride(1)};
  };
  auto adjacent = [](const Tensor& of) {
    return of.stride(0) == 1 || of.stride(1) == 1 ? of : of.contiguous();
  };
  const Tensor left = adjacent(a), right = adjacent(b);
  product(matrix(out), matrix(left), matrix(right), float(kept), float(scale));
}

// Multiply-adds from which oneDNN takes a product of float32 matrices: none does unless
// garevla/ops/products.py, which chooses the library, says so.
inline std::int64_t onednn_from = std::numeric_limits<std::int64_t>::max();

// Not with gaps in b's memory: for such oneDNN has its reference code alone, a thousand times
// slower.
inline bool takes_onednn(const Tensor& out, const Tensor& a, const Tensor& b) {
  return out.axes() == 2 && out.stride(1) == 1 && out.type() == type_of<float>() &&
         out.count() * a.size(1) >= onednn_from &&
         (b.is_contiguous() || b.transposed().is_contiguous());
}

// out = kept * out + scale * a b, by way of oneDNN's own memory. It follows torch's setting of
// precision, as torch's own product does.
inline void run_onednn(const Tensor& out, const Tensor& a, const Tensor& b, double kept,
                       double scale) {
  AtenTensorOpaque* made = nullptr;
  GAREVLA_TORCH(aoti_torch_cpu__linear_pointwise, a.handle().get(), b.transposed().handle().get(),
                nullptr, "none", nullptr, 0, nullptr, &made);
  const Tensor result(made);
  if (kept == 0 && scale == 1) return out.copy_from(result);
  for (std::int64_t row = 0; row < out.size(0); ++row) {
    const float* from = result.data<float>(row);
    float* to = out.data<float>(row);
    for (std::int64_t column = 0; column < out.size(1); ++column)
      to[column] = float(scale) * from[column] + (kept ? float(kept) * to[column] : 0);
  }
}

#endif

// out = kept * out + scale * a b.
inline void run(const Tensor& out, const Tensor& a, const Tensor& b, double kept, double scale) {
#if !defined(GAREVLA_ON_CUDA)
  if (cpu::RoundedProduct* const product = rounded; product && takes_rounded(out, a))
    return run_rounded(product, out, a, b, kept, scale);
  if (takes_onednn(out, a, b)) return run_onednn(out, a, b, kept, scale);
#endif
  const Handle to = out.handle(), left = a.handle(), right = b.handle();
  const bool batch = out.axes() == 3;
  TorchError error;
  if (kept == 0 && scale == 1) {
    const auto product = batch ? GAREVLA_OF_DEVICE(bmm_out) : GAREVLA_OF_DEVICE(mm_out);
    error = product(to.get(), left.get(), right.get());
  } else {
    const auto product = batch ? GAREVLA_OF_DEVICE(baddbmm_out) : GAREVLA_OF_DEVICE(addmm_out);
    error = product(to.get(), to.get(), left.get(), right.get(), kept, scale);
  }
  check(error, "a matrix product");
}

}  // namespace products

// out = scale * a b
inline void product(const Tensor& out, const Tensor& a, const Tensor& b, double scale = 1) {
  products::run(out, a, b, 0, scale);
}

// out += a b
inline void add_product(const Tensor& out, const Tensor& a, const Tensor& b) {
  products::run(out, a, b, 1, 1);
}

}  // namespace garevla
