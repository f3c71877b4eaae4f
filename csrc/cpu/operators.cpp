#include <ATen/autocast_mode.h>

#include "cpu/direction.h"
#include "cpu/pair_statistics.h"
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

  template <typename T>
  at::Tensor direction(const at::Tensor& unit, const at::Tensor& basis, T alpha,
                       const at::Tensor& grad_unit, const at::Tensor& grad_basis) const {
    return cpu::direction(unit, basis, alpha, grad_unit, grad_basis);
  }

 private:
  // Products are in the inputs' precision, whatever surrounds a backward pass.
  c10::impl::ExcludeDispatchKeyGuard no_autocast_{c10::autocast_dispatch_keyset};
};

}  // namespace garevla::cpu

TORCH_LIBRARY_IMPL(garevla, CPU, library) {
  garevla::register_operators<garevla::cpu::Device>(library);
}
