#include <ATen/autocast_mode.h>

#include "cpu/direction.h"
#include "cpu/diversity.h"
#include "cpu/pair_statistics.h"
#include "cpu/tiles.h"
#include "operators/register.h"

namespace garevla::cpu {

struct Device {
  explicit Device(const at::Tensor&) {}

  template <typename T>
  using PairEngine = cpu::PairEngine<T>;
  template <typename T>
  using PairStatistics = cpu::PairStatistics<T>;
  template <typename T>
  using PairStatisticsBackward = cpu::PairStatisticsBackward<T>;

 private:
  // Products are in the inputs' precision, whatever surrounds a backward pass.
  c10::impl::ExcludeDispatchKeyGuard no_autocast_{c10::autocast_dispatch_keyset};
};

}  // namespace garevla::cpu

TORCH_LIBRARY_IMPL(garevla, CPU, library) {
  garevla::register_operators<garevla::cpu::Device>(library);
}

TORCH_LIBRARY_IMPL(garevla_tiles, CPU, library) {
  garevla::register_tile_operators<garevla::cpu::Device>(library);
}
