// The kernels' choice of an instruction set.

#include <cstdlib>
#include <string_view>

#include "cpu/pair_kernels.h"
#include "cpu/rounded_product.h"
#include "cpu/tile_kernels.h"

namespace garevla {

#define GAREVLA_DECLARE(variant)                             \
  namespace variant {                                        \
  extern const cpu::PairKernels<float> float_kernels;        \
  extern const cpu::PairKernels<double> double_kernels;      \
  extern const cpu::TileKernels<float> float_tile_kernels;   \
  extern const cpu::TileKernels<double> double_tile_kernels; \
  }
#if defined(__x86_64__)
GAREVLA_DECLARE(avx512)
GAREVLA_DECLARE(avx2)
#endif
GAREVLA_DECLARE(baseline)
#undef GAREVLA_DECLARE

namespace cpu {
namespace {

enum class Capability { baseline, avx2, avx512 };

Capability detect() {
  Capability found = Capability::baseline;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found = Capability::avx2;
  if (found == Capability::avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw"))
    found = Capability::avx512;
#endif
  const char* wanted = std::getenv("GAREVLA_CPU_CAPABILITY");
  if (!wanted) return found;
  const std::string_view name(wanted);
  const Capability limit = name == "baseline" ? Capability::baseline
                           : name == "avx2"   ? Capability::avx2
                                              : Capability::avx512;
  return limit < found ? limit : found;
}

Capability capability() {
  static const Capability found = detect();
  return found;
}

}  // namespace

#if defined(__x86_64__)
RoundedProduct rounded_product_avx512;
#endif

RoundedProduct* rounded_product() {
#if defined(__x86_64__)
  if (capability() == Capability::avx512 && __builtin_cpu_supports("avx512bf16"))
    return rounded_product_avx512;
#endif
  return nullptr;
}

#if defined(__x86_64__)
#define GAREVLA_SELECT(table)                                   \
  if (capability() == Capability::avx512) return avx512::table; \
  if (capability() == Capability::avx2) return avx2::table;     \
  return baseline::table;
#else
#define GAREVLA_SELECT(table) return baseline::table;
#endif

template <>
const PairKernels<float>& pair_kernels<float>() {
  GAREVLA_SELECT(float_kernels)
}
template <>
const PairKernels<double>& pair_kernels<double>() {
  GAREVLA_SELECT(double_kernels)
}
template <>
const TileKernels<float>& tile_kernels<float>() {
  GAREVLA_SELECT(float_tile_kernels)
}
template <>
const TileKernels<double>& tile_kernels<double>() {
  GAREVLA_SELECT(double_tile_kernels)
}

}  // namespace cpu
}  // namespace garevla
