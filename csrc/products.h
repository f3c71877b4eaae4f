// Every matrix product of these sources. Operands are matrices, or as many matrices in a batch;
// views are welcome, transposed ones too. Nothing is allocated: products are written to `out`.
#pragma once

#include "tensor.h"

// Code for GPUs says so before it includes this header.
#if defined(GAREVLA_ON_CUDA)
#define GAREVLA_OF_DEVICE(function) aoti_torch_cuda_##function
#else
#define GAREVLA_OF_DEVICE(function) aoti_torch_cpu_##function
#endif

namespace garevla {

namespace products {

// out = kept * out + scale * a b.
inline void run(const Tensor& out, const Tensor& a, const Tensor& b, double kept, double scale) {
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
