#if defined(__x86_64__)

#include <memory>
#include <new>

#include "cpu/parallel.h"
#include "cpu/rounded_product.h"

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,avx2,fma")
// GCC 12 sees its own header use an undefined value.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

namespace garevla::cpu {
namespace {

// Lines are rows of a, and columns of b: what is multiplied along the depth K. Two neighbors of a
// line in bfloat16, which one instruction takes together, are a pair.
using Pair = std::uint32_t;

constexpr int lanes = 16;  // of a vector
// Sums in registers: 28 vectors of 32.
constexpr int tile_rows = 14, tile_columns = 2 * lanes;
constexpr std::int64_t depth_pairs = 256;  // rounded at once
// From row to row: not a power of two, whose rows would share a few sets of the cache.
constexpr std::int64_t row_pairs = depth_pairs + lanes;
constexpr std::int64_t block_rows = 4 * tile_rows;
constexpr std::int64_t block_columns = 512;  // of one piece of work
constexpr std::int64_t most_columns = 2048;  // rounded at once

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct Lines {
  const float* data;
  std::int64_t count, depth, line_stride, depth_stride;

  const float* at(std::int64_t line, std::int64_t d) const {
    return data + line * line_stride + d * depth_stride;
  }
};

__mmask16 first(std::int64_t count) {
  return count >= lanes ? 0xffff : count <= 0 ? 0 : __mmask16((1u << count) - 1);
}

// 16 × 16, in place.
void transpose(__m512i* v) {
  __m512i t[lanes];
  for (int i = 0; i < lanes; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < lanes; i += 4)
    for (int k = 0; k < 2; ++k) {
      v[i + 2 * k] = _mm512_unpacklo_epi64(t[i + k], t[i + k + 2]);
      v[i + 2 * k + 1] = _mm512_unpackhi_epi64(t[i + k], t[i + k + 2]);
    }
  // v[4 q + c] has in its part p of four lanes column 4 p + c of rows 4 q ... 4 q + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(v[c], v[4 + c], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(v[c], v[4 + c], 0xee);
    const __m512i low23 = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0xee);
    t[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    t[4 + c] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    t[8 + c] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
  for (int i = 0; i < lanes; ++i) v[i] = t[i];
}

// Pairs of 16 lines from `line` on, 16 each, from depth `d` on; zeros beyond the ends. By lines:
// pairs[i] is of one line; else of one depth.
void read_pairs(const Lines& from, std::int64_t line, std::int64_t d, bool by_lines,
                __m512i* pairs) {
  const std::int64_t count = from.count - line, depth = from.depth - d;
  const bool along = from.depth_stride == 1;
  if (along) {
    const __mmask16 low = first(depth), high = first(depth - lanes);
    for (int i = 0; i < lanes; ++i)
      pairs[i] = i < count ? (__m512i)_mm512_cvtne2ps_pbh(
                                 _mm512_maskz_loadu_ps(high, from.at(line + i, d + lanes)),
                                 _mm512_maskz_loadu_ps(low, from.at(line + i, d)))
                           : _mm512_setzero_si512();
  } else {
    const __mmask16 mask = first(count);
    auto rounded = [&](std::int64_t k) {
      const __m512 values =
          k < depth ? _mm512_maskz_loadu_ps(mask, from.at(line, d + k)) : _mm512_setzero_ps();
      return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(values));
    };
    for (int i = 0; i < lanes; ++i)
      pairs[i] = _mm512_or_si512(rounded(2 * i), _mm512_slli_epi32(rounded(2 * i + 1), 16));
  }
  if (along != by_lines) transpose(pairs);
}

// to (count, row_pairs)
void round_rows(const Lines& from, Pair* to) {
  __m512i pairs[lanes];
  for (std::int64_t line = 0; line < from.count; line += lanes)
    for (std::int64_t d = 0; d < from.depth; d += 2 * lanes) {
      read_pairs(from, line, d, true, pairs);
      for (int i = 0; i < lanes; ++i)
        _mm512_storeu_si512(to + (line + i) * row_pairs + d / 2, pairs[i]);
    }
}

// to (pairs of depth, tile_columns)
void round_columns(const Lines& from, Pair* to) {
  __m512i pairs[lanes];
  for (int line = 0; line < tile_columns; line += lanes)
    for (std::int64_t d = 0; d < from.depth; d += 2 * lanes) {
      read_pairs(from, line, d, false, pairs);
      const std::int64_t count = std::min<std::int64_t>(lanes, ceil_div(from.depth - d, 2));
      for (std::int64_t i = 0; i < count; ++i)
        _mm512_store_si512(to + (d / 2 + i) * tile_columns + line, pairs[i]);
    }
}

// Sums of a tile: a (tile_rows, row_pairs), b (pairs, tile_columns), out (rows, columns).
void multiply_tile(std::int64_t pairs, const Pair* a, const Pair* b, int rows, std::int64_t columns,
                   float kept, float scale, float* out, std::int64_t out_stride) {
  __m512 sums[tile_rows][2] = {};
  for (std::int64_t p = 0; p < pairs; ++p) {
    const __m512bh left = (__m512bh)_mm512_load_si512(b + p * tile_columns);
    const __m512bh right = (__m512bh)_mm512_load_si512(b + p * tile_columns + lanes);
#pragma GCC unroll 14
    for (int row = 0; row < tile_rows; ++row) {
      const __m512bh value = (__m512bh)_mm512_set1_epi32(int(a[row * row_pairs + p]));
      sums[row][0] = _mm512_dpbf16_ps(sums[row][0], value, left);
      sums[row][1] = _mm512_dpbf16_ps(sums[row][1], value, right);
    }
  }
  const __m512 times = _mm512_set1_ps(scale), before = _mm512_set1_ps(kept);
  for (int half = 0; half < 2; ++half) {
    const __mmask16 mask = first(columns - half * lanes);
#pragma GCC unroll 14
    for (int row = 0; row < tile_rows; ++row) {
      if (row >= rows) break;
      float* to = out + row * out_stride + half * lanes;
      __m512 value = _mm512_mul_ps(times, sums[row][half]);
      if (kept != 0) value = _mm512_fmadd_ps(before, _mm512_maskz_loadu_ps(mask, to), value);
      _mm512_mask_storeu_ps(to, mask, value);
    }
  }
}

// A thread's memory, kept from call to call: fresh memory is slow.
class Buffer {
 public:
  Pair* of(std::int64_t count) {
    if (count > count_) {
      pairs_.reset(static_cast<Pair*>(::operator new(count * sizeof(Pair), alignment)));
      count_ = count;
    }
    return pairs_.get();
  }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Delete {
    void operator()(Pair* pairs) const { ::operator delete(pairs, alignment); }
  };
  std::unique_ptr<Pair, Delete> pairs_;
  std::int64_t count_ = 0;
};

// out (M, N), its columns adjacent.
void multiply(const Matrix& out, const Lines& a, const Lines& b, float kept, float scale) {
  thread_local Buffer of_columns;
  const std::int64_t width =
      std::min(most_columns, ceil_div(out.columns, tile_columns) * tile_columns);
  Pair* const columns = of_columns.of(width * depth_pairs);
  for (std::int64_t column = 0; column < out.columns; column += most_columns) {
    const std::int64_t count = std::min(most_columns, out.columns - column);
    // Of no depth, too, whose sums are 0.
    for (std::int64_t d = 0; d == 0 || d < a.depth; d += 2 * depth_pairs) {
      const std::int64_t depth = std::min(2 * depth_pairs, a.depth - d), pairs = ceil_div(depth, 2);
      const float before = d ? 1 : kept;
      auto part = [&](const Lines& of, std::int64_t line, std::int64_t length) {
        return Lines{of.at(line, d), length, depth, of.line_stride, of.depth_stride};
      };
      auto panel = [&](std::int64_t of) { return columns + of * tile_columns * depth_pairs; };
      parallel_pieces(ceil_div(count, tile_columns), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t k = from; k < to; ++k)
          round_columns(part(b, column + k * tile_columns,
                             std::min<std::int64_t>(tile_columns, count - k * tile_columns)),
                        panel(k));
      });
      const std::int64_t across = ceil_div(count, block_columns);
      parallel_pieces(
          across * ceil_div(out.rows, block_rows), [&](std::int64_t from, std::int64_t to) {
            thread_local Buffer of_rows;
            Pair* const rows = of_rows.of(ceil_div(block_rows, lanes) * lanes * row_pairs);
            for (std::int64_t piece = from; piece < to; ++piece) {
              const std::int64_t row = piece / across * block_rows;
              const std::int64_t height = std::min(block_rows, out.rows - row);
              if (piece == from || piece % across == 0) round_rows(part(a, row, height), rows);
              const std::int64_t start = piece % across * block_columns;
              const std::int64_t stop = std::min(start + block_columns, count);
              for (std::int64_t k = start; k < stop; k += tile_columns)
                for (std::int64_t i = 0; i < height; i += tile_rows)
                  multiply_tile(pairs, rows + i * row_pairs, panel(k / tile_columns),
                                int(std::min<std::int64_t>(tile_rows, height - i)), stop - k,
                                before, scale, out.data + (row + i) * out.row_stride + column + k,
                                out.row_stride);
            }
          });
    }
  }
}

}  // namespace

void rounded_product_avx512(const Matrix& out, const Matrix& a, const Matrix& b, float kept,
                            float scale) {
  multiply(out, {a.data, a.rows, a.columns, a.row_stride, a.column_stride},
           {b.data, b.columns, b.rows, b.column_stride, b.row_stride}, kept, scale);
}

}  // namespace garevla::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
