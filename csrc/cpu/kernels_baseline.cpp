#define GAREVLA_VARIANT baseline
#define GAREVLA_VARIANT_NAME "baseline"
#define GAREVLA_VECTOR_BYTES 16
#include "cpu/pair_kernels.inc"
#include "cpu/tile_kernels.inc"
