// The number types of a GPU thread: one text is one lane. Include before pair_arithmetic.h, whose
// templates would not find these functions of built-in types later.
#pragma once

#include <cmath>

#include "pair_types.h"

#define GAREVLA_VARIANT scalar

namespace garevla {
namespace GAREVLA_VARIANT {

// A NaN in a, the first argument, is kept.
#define GAREVLA_SCALAR_FUNCTIONS(T)                             \
  GAREVLA_INLINE T exp_nonpositive(T x) { return std::exp(x); } \
  GAREVLA_INLINE T square_root(T x) { return std::sqrt(x); }    \
  GAREVLA_INLINE T maximum(T a, T b) { return a < b ? b : a; }  \
  GAREVLA_INLINE T minimum(T a, T b) { return b < a ? b : a; }  \
  GAREVLA_INLINE T select_greater(T a, T b, T yes, T no) { return a > b ? yes : no; }
GAREVLA_SCALAR_FUNCTIONS(float)
GAREVLA_SCALAR_FUNCTIONS(double)
#undef GAREVLA_SCALAR_FUNCTIONS
GAREVLA_INLINE double error_complement(double x) { return std::erfc(x); }

}  // namespace GAREVLA_VARIANT
}  // namespace garevla
