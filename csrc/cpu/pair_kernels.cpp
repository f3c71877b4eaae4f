#include "cpu/pair_kernels.h"

#include <cstdlib>
#include <string_view>

namespace garevla {

#define GAREVLA_DECLARE(variant)                        \
  namespace variant {                                   \
  extern const cpu::PairKernels<float> float_kernels;   \
  extern const cpu::PairKernels<double> double_kernels; \
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

template <>
const PairKernels<float>& pair_kernels<float>() {
#if defined(__x86_64__)
  if (capability() == Capability::avx512) return avx512::float_kernels;
  if (capability() == Capability::avx2) return avx2::float_kernels;
#endif
  return baseline::float_kernels;
}

template <>
const PairKernels<double>& pair_kernels<double>() {
#if defined(__x86_64__)
  if (capability() == Capability::avx512) return avx512::double_kernels;
  if (capability() == Capability::avx2) return avx2::double_kernels;
#endif
  return baseline::double_kernels;
}

}  // namespace cpu
}  // namespace garevla
