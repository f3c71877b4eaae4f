// Philox4x32-10 (Salmon et al., SC 2011), from which dropout masks come: garevla/ops/dropout.py
// says how. A mask is a function of a seed and a pair's indices, the same on every processor.
#pragma once

#include "pair_types.h"

namespace garevla {

constexpr int philox_rounds = 10;
constexpr int philox_words = 4;  // that one evaluation gives, 32 bits each

struct PhiloxKeys {
  std::uint32_t round[philox_rounds][2];

  PhiloxKeys() = default;
  explicit PhiloxKeys(std::uint64_t seed) {
    std::uint32_t first = std::uint32_t(seed), second = std::uint32_t(seed >> 32);
    for (auto& key : round) {
      key[0] = first;
      key[1] = second;
      first += 0x9E3779B9u;
      second += 0xBB67AE85u;
    }
  }
};

GAREVLA_INLINE std::uint64_t wide_product(std::uint32_t a, std::uint32_t b) {
  return std::uint64_t(a) * b;
}
GAREVLA_INLINE std::uint32_t lower_half(std::uint64_t product) { return std::uint32_t(product); }
GAREVLA_INLINE std::uint32_t upper_half(std::uint64_t product) {
  return std::uint32_t(product >> 32);
}

// One round on a counter's four words, in place. A Word is a number of 32 bits, or several.
template <typename Word>
GAREVLA_INLINE void philox_round(Word& a, Word& b, Word& c, Word& d,
                                 const std::uint32_t (&key)[2]) {
  const auto first = wide_product(a, 0xD2511F53u), second = wide_product(c, 0xCD9E8D57u);
  a = upper_half(second) ^ b ^ key[0];
  b = lower_half(second);
  c = upper_half(first) ^ d ^ key[1];
  d = lower_half(first);
}

// Which numbers of a pair stay, and what they are multiplied with.
template <typename T>
struct Dropout {
  bool active;
  std::uint32_t threshold;  // words from here on keep
  T scale;                  // 1 / (1 - probability)
  std::int64_t first_text, first_video;
  PhiloxKeys keys;

  Dropout(double probability, std::int64_t seed, std::int64_t text, std::int64_t video)
      : active(probability > 0),
        threshold(std::uint32_t(probability * 4294967296.0)),
        scale(T(1) / T(1 - probability)),
        first_text(text),
        first_video(video),
        keys(std::uint64_t(seed)) {}
};

}  // namespace garevla
