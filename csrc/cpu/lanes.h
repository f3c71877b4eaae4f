// A vector of texts as a number type, by the compiler's vector extension. Include after choosing
// the instruction set: its width follows from GAREVLA_VECTOR_BYTES.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace garevla {
namespace GAREVLA_VARIANT {

template <typename T>
struct Lanes {
  static constexpr int width = GAREVLA_VECTOR_BYTES / sizeof(T);
  typedef T Vector __attribute__((vector_size(GAREVLA_VECTOR_BYTES)));

  Vector v;

  Lanes() = default;
  GAREVLA_INLINE explicit Lanes(T value) : v(value - Vector{}) {}
  GAREVLA_INLINE explicit Lanes(const Vector& vector) : v(vector) {}

  GAREVLA_INLINE Lanes operator-() const { return Lanes(-v); }
  GAREVLA_INLINE Lanes& operator+=(const Lanes& other) {
    v += other.v;
    return *this;
  }
  GAREVLA_INLINE Lanes& operator*=(const Lanes& other) {
    v *= other.v;
    return *this;
  }

  static GAREVLA_INLINE Lanes load(const T* from) {
    Lanes lanes;
    std::memcpy(&lanes.v, from, sizeof(Vector));
    return lanes;
  }
  GAREVLA_INLINE void store(T* to) const { std::memcpy(to, &v, sizeof(Vector)); }
  // The first `count` elements; the others are `fill`.
  static GAREVLA_INLINE Lanes load(const T* from, int count, T fill = T(0)) {
    Lanes lanes(fill);
    for (int i = 0; i < count; ++i) lanes.v[i] = from[i];
    return lanes;
  }
  GAREVLA_INLINE void store(T* to, int count) const {
    for (int i = 0; i < count; ++i) to[i] = v[i];
  }
  GAREVLA_INLINE Lanes keep_first(int count) const {
    Lanes lanes(T(0));
    for (int i = 0; i < count; ++i) lanes.v[i] = v[i];
    return lanes;
  }
  GAREVLA_INLINE T sum() const {
    T total = 0;
    for (int i = 0; i < width; ++i) total += v[i];
    return total;
  }
  GAREVLA_INLINE T max() const {
    T top = v[0];
    for (int i = 1; i < width; ++i) top = v[i] > top ? v[i] : top;
    return top;
  }
};

#define GAREVLA_OPERATOR(op)                                                  \
  template <typename T>                                                       \
  GAREVLA_INLINE Lanes<T> operator op(const Lanes<T>& a, const Lanes<T>& b) { \
    return Lanes<T>(a.v op b.v);                                              \
  }                                                                           \
  template <typename T>                                                       \
  GAREVLA_INLINE Lanes<T> operator op(T a, const Lanes<T>& b) {               \
    return Lanes<T>(a op b.v);                                                \
  }                                                                           \
  template <typename T>                                                       \
  GAREVLA_INLINE Lanes<T> operator op(const Lanes<T>& a, T b) {               \
    return Lanes<T>(a.v op b);                                                \
  }
GAREVLA_OPERATOR(+)
GAREVLA_OPERATOR(-)
GAREVLA_OPERATOR(*)
GAREVLA_OPERATOR(/)
#undef GAREVLA_OPERATOR

// A NaN in a, the first, is kept.
template <typename T>
GAREVLA_INLINE Lanes<T> maximum(const Lanes<T>& a, const Lanes<T>& b) {
  return Lanes<T>(a.v < b.v ? b.v : a.v);
}

template <typename T>
GAREVLA_INLINE Lanes<T> minimum(const Lanes<T>& a, const Lanes<T>& b) {
  return Lanes<T>(b.v < a.v ? b.v : a.v);
}

// a > b ? yes : no, element by element.
template <typename T>
GAREVLA_INLINE Lanes<T> select_greater(const Lanes<T>& a, const Lanes<T>& b, const Lanes<T>& yes,
                                       const Lanes<T>& no) {
  return Lanes<T>(a.v > b.v ? yes.v : no.v);
}

template <typename T>
GAREVLA_INLINE Lanes<T> square_root(const Lanes<T>& x) {
  // Through an array: this loop the compiler vectorizes.
  T values[Lanes<T>::width];
  x.store(values);
  for (T& value : values) {
    if constexpr (sizeof(T) == 4)
      value = __builtin_sqrtf(value);
    else
      value = __builtin_sqrt(value);
  }
  return Lanes<T>::load(values);
}

// exp(x) for x <= 0; 0 below the smallest normal number; NaN for NaN.
GAREVLA_INLINE Lanes<double> exp_nonpositive(const Lanes<double>& x) {
  Lanes<double> result;
  for (int i = 0; i < Lanes<double>::width; ++i) result.v[i] = __builtin_exp(x.v[i]);
  return result;
}

GAREVLA_INLINE Lanes<float> exp_nonpositive(const Lanes<float>& x) {
  using Vector = Lanes<float>::Vector;
  typedef std::int32_t Bits __attribute__((vector_size(GAREVLA_VECTOR_BYTES)));
  // exp(x) = 2^n exp(r), n the nearest integer to x / ln 2 (found by rounding to the magic number's
  // last bit), |r| <= ln(2) / 2; ln 2 in two parts, so that r is exact to rounding.
  const float magic = 12582912.0f;
  const Vector lowest = Lanes<float>(-87.33654f).v;
  const Vector clamped = x.v > lowest ? x.v : lowest;
  const Vector shifted = clamped * 1.44269504f + magic;
  const Vector n = shifted - magic;
  const Vector r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  // Taylor's series to the seventh power; the remainder is below 1e-8 of the sum.
  Vector p = r * (1.0f / 5040.0f) + (1.0f / 720.0f);
  p = p * r + (1.0f / 120.0f);
  p = p * r + (1.0f / 24.0f);
  p = p * r + (1.0f / 6.0f);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Bits exponent = ((Bits)shifted - (Bits)Lanes<float>(magic).v) << 23;
  const Vector result = (Vector)((Bits)p + exponent);
  const Vector number = x.v < lowest ? Vector{} : result;
  return Lanes<float>(x.v == x.v ? number : x.v);
}

// 1 - erf(x).
GAREVLA_INLINE Lanes<double> error_complement(const Lanes<double>& x) {
  Lanes<double> result;
  for (int i = 0; i < Lanes<double>::width; ++i) result.v[i] = __builtin_erfc(x.v[i]);
  return result;
}

// Words of 32 bits, one in the lower half of each element; what is in the upper halves is of no
// meaning.
struct WideWords {
  static constexpr int width = GAREVLA_VECTOR_BYTES / sizeof(std::uint64_t);
  typedef std::uint64_t Vector __attribute__((vector_size(GAREVLA_VECTOR_BYTES)));

  Vector v;

  explicit GAREVLA_INLINE WideWords(std::uint64_t word) : v(word - Vector{}) {}
  explicit GAREVLA_INLINE WideWords(const Vector& words) : v(words) {}
  static GAREVLA_INLINE WideWords counting(std::uint64_t first) {
    constexpr std::uint64_t numbers[] = {0, 1, 2, 3, 4, 5, 6, 7};
    Vector words;
    std::memcpy(&words, numbers, sizeof(words));
    return WideWords(words + first);
  }
  friend GAREVLA_INLINE WideWords operator^(const WideWords& a, const WideWords& b) {
    return WideWords(a.v ^ b.v);
  }
  friend GAREVLA_INLINE WideWords operator^(const WideWords& a, std::uint32_t b) {
    return WideWords(a.v ^ b);
  }
  // This word and, from bit 32 on, another.
  GAREVLA_INLINE void pair_with(const WideWords& other, std::uint64_t* to) const {
    const Vector pairs = (v & 0xFFFFFFFFu) | other.v << 32;
    std::memcpy(to, &pairs, sizeof(pairs));
  }
};

GAREVLA_INLINE WideWords wide_product(const WideWords& a, std::uint32_t b) {
  const WideWords factor{std::uint64_t(b)};
  // The compiler does not find this instruction by itself.
#if defined(__x86_64__) && GAREVLA_VECTOR_BYTES == 64
  return WideWords(
      (WideWords::Vector)_mm512_maskz_mul_epu32(0xFF, (__m512i)a.v, (__m512i)factor.v));
#elif defined(__x86_64__) && GAREVLA_VECTOR_BYTES == 32
  return WideWords((WideWords::Vector)_mm256_mul_epu32((__m256i)a.v, (__m256i)factor.v));
#elif defined(__x86_64__)
  return WideWords((WideWords::Vector)_mm_mul_epu32((__m128i)a.v, (__m128i)factor.v));
#else
  return WideWords((a.v & 0xFFFFFFFFu) * factor.v);
#endif
}
GAREVLA_INLINE WideWords lower_half(const WideWords& product) { return product; }
GAREVLA_INLINE WideWords upper_half(const WideWords& product) { return WideWords(product.v >> 32); }

}  // namespace GAREVLA_VARIANT
}  // namespace garevla
