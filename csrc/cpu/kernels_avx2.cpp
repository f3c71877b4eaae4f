#if defined(__x86_64__)

#include <cstdint>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define GAREVLA_VARIANT avx2
#define GAREVLA_VARIANT_NAME "avx2"
#define GAREVLA_VECTOR_BYTES 32
#include "cpu/pair_kernels.inc"
#include "cpu/tile_kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
