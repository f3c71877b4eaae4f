// The kernel matrices of `direction`.

#include "cuda/launch.h"

namespace garevla::cuda {
namespace {

// Row: the matrix, column: its element.
template <typename T>
struct CosineKernelTask {
  std::int64_t length;
  T alpha;
  T* cosines;

  GAREVLA_INLINE void operator()(std::int64_t matrix, std::int64_t k) const {
    T& value = cosines[matrix * length + k];
    value = scalar::exp_nonpositive(scalar::minimum(alpha * (value - T(1)), T(0)));
  }
};

}  // namespace

template <typename T>
cudaError_t launch_cosine_kernel(std::int64_t matrices, std::int64_t length, T alpha, T* cosines,
                                 cudaStream_t stream) {
  return launch(CosineKernelTask<T>{length, alpha, cosines}, matrices, length, stream);
}

template cudaError_t launch_cosine_kernel(std::int64_t, std::int64_t, float, float*, cudaStream_t);
template cudaError_t launch_cosine_kernel(std::int64_t, std::int64_t, double, double*,
                                          cudaStream_t);

}  // namespace garevla::cuda
