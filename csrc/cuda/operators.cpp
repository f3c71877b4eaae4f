#include "cuda/direction.h"
#include "cuda/pair_statistics.h"
#include "cuda/tiles.h"
#include "operators/register.h"

namespace garevla::cuda {

struct Device : OnDeviceOf {
  using OnDeviceOf::OnDeviceOf;

  template <typename T>
  using PairEngine = cuda::PairEngine<T>;
  template <typename T>
  using PairStatistics = cuda::PairStatistics<T>;
  template <typename T>
  using PairStatisticsBackward = cuda::PairStatisticsBackward<T>;
};

}  // namespace garevla::cuda

static const garevla::OperatorsOf<garevla::cuda::Device> on_gpu(GAREVLA_DEVICE_KEY);
