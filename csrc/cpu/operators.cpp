#include "cpu/direction.h"
#include "cpu/diversity.h"
#include "cpu/pair_statistics.h"
#include "cpu/tiles.h"
#include "operators/register.h"

namespace garevla::cpu {

struct Device {
  explicit Device(const Tensor&) {}

  template <typename T>
  using PairEngine = cpu::PairEngine<T>;
  template <typename T>
  using PairStatistics = cpu::PairStatistics<T>;
  template <typename T>
  using PairStatisticsBackward = cpu::PairStatisticsBackward<T>;
};

}  // namespace garevla::cpu

static const garevla::OperatorsOf<garevla::cpu::Device> on_cpu("CPU");
