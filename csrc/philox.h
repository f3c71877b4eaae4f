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

// One round on a counter's four words, in place.
GAREVLA_INLINE void philox_round(std::uint32_t& a, std::uint32_t& b, std::uint32_t& c,
                                 std::uint32_t& d, const std::uint32_t (&key)[2]) {
  const std::uint64_t first = std::uint64_t(a) * 0xD2511F53u;
  const std::uint64_t second = std::uint64_t(c) * 0xCD9E8D57u;
  a = std::uint32_t(second >> 32) ^ b ^ key[0];
  b = std::uint32_t(second);
  c = std::uint32_t(first >> 32) ^ d ^ key[1];
  d = std::uint32_t(first);
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

  GAREVLA_INLINE T factor(std::uint32_t word) const { return word >= threshold ? scale : T(0); }
};

}  // namespace garevla
