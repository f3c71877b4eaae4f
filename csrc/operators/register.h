// The operators' implementations for a device.
//
// A Device is made for the time of one operator, from a tensor on it, and has
//   PairEngine<T>              for_each_chunk, forward, backward; its Gradient gathers gradients
//   PairStatistics<T>          adds chunks of videos to StatisticsOutputs
//   PairStatisticsBackward<T>  hands the gradients of chunks of videos to a Gradient
// In its namespace, compute_direction returns the regularizer, and fills gradients that are not
// empty; what the operators of a tile need there is in tiles.h and diversity.h.
#pragma once

#include <torch/library.h>

#include "operators/direction.h"
#include "operators/diversity.h"
#include "operators/pair_statistics.h"
#include "operators/pair_terms.h"
#include "operators/tiles.h"

namespace garevla {

template <typename Device>
void register_operators(torch::Library& library) {
  library.impl("pair_similarity", pair_similarity<Device>);
  library.impl("pair_terms", pair_terms<Device>);
  library.impl("pair_terms_backward", pair_terms_backward<Device>);
  library.impl("pair_statistics", pair_statistics<Device>);
  library.impl("pair_statistics_backward", pair_statistics_backward<Device>);
  library.impl("direction", direction<Device>);
}

template <typename Device>
void register_tile_operators(torch::Library& library) {
  library.impl("gap_hidden", gap_hidden<Device>);
  library.impl("gap_hidden_backward", gap_hidden_backward<Device>);
  library.impl("attention_hidden", attention_hidden<Device>);
  library.impl("attention_hidden_backward", attention_hidden_backward<Device>);
  library.impl("contract", contract<Device>);
  library.impl("increment_gradient", increment_gradient<Device>);
  library.impl("diversity", diversity<Device>);
  library.impl("diversity_gradient", diversity_gradient<Device>);
}

}  // namespace garevla
