// A matrix product of float32 whose operands are rounded to bfloat16 and whose sums are not.
#pragma once

#include <cstdint>

namespace garevla::cpu {

// Of float32, in memory: one of the strides is 1.
struct Matrix {
  float* data;
  std::int64_t rows, columns, row_stride, column_stride;
};

// out (M, N) = kept * out + scale * a (M, K) b (K, N), out's columns adjacent. Where kept is 0, out
// is not read. In torch's threads, on whose number no bit depends.
using RoundedProduct = void(const Matrix& out, const Matrix& a, const Matrix& b, float kept,
                            float scale);

// This processor's, or null where it has no instruction for it.
RoundedProduct* rounded_product();

}  // namespace garevla::cpu
