// The operators' implementations for a device.
//
// A Device is made for the time of one operator, from a tensor on it, and has
//   PairEngine<T>              for_each_chunk, forward, backward; its Gradient gathers gradients
//   PairStatistics<T>          adds chunks of videos to StatisticsOutputs, finishes them
//   PairStatisticsBackward<T>  fills in a StatisticsAdjoint's slopes, hands the gradients of chunks
//                              of videos to a Gradient
// In its namespace, compute_direction returns the regularizer, and fills gradients that are not
// empty; what the operators of a tile need there is in tiles.h and diversity.h.
#pragma once

#include "operators/direction.h"
#include "operators/diversity.h"
#include "operators/pair_statistics.h"
#include "operators/pair_terms.h"
#include "operators/tiles.h"
#include "registration.h"

namespace garevla {

template <typename Device>
struct OperatorsOf {
  explicit OperatorsOf(const char* dispatch_key)
      : pairs(GAREVLA_NAME(garevla), dispatch_key,
              {{"pair_similarity", Boxed<pair_similarity<Device>>::call},
               {"pair_terms", Boxed<pair_terms<Device>>::call},
               {"pair_terms_backward", Boxed<pair_terms_backward<Device>>::call},
               {"pair_statistics", Boxed<pair_statistics<Device>>::call},
               {"pair_statistics_backward", Boxed<pair_statistics_backward<Device>>::call},
               {"direction", Boxed<direction<Device>>::call}}),
        tiles(GAREVLA_NAME(garevla_tiles), dispatch_key,
              {{"gap_hidden", Boxed<gap_hidden<Device>>::call},
               {"gap_hidden_backward", Boxed<gap_hidden_backward<Device>>::call},
               {"attention_hidden", Boxed<attention_hidden<Device>>::call},
               {"attention_hidden_backward", Boxed<attention_hidden_backward<Device>>::call},
               {"contract", Boxed<contract<Device>>::call},
               {"increment_gradient", Boxed<increment_gradient<Device>>::call},
               {"diversity", Boxed<diversity<Device>>::call},
               {"diversity_gradient", Boxed<diversity_gradient<Device>>::call}}) {}

  Implementations pairs, tiles;
};

}  // namespace garevla
