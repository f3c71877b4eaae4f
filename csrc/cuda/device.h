// The device of an operator's inputs: made current, its stream, its memory, and errors of launches.
#pragma once

#include "cuda/pair_kernels.h"
#include "tensor.h"

#if defined(GAREVLA_HOST_LAUNCH)
#define GAREVLA_DEVICE_KEY "CPU"
#else
#define GAREVLA_ON_CUDA
#define GAREVLA_DEVICE_KEY "CUDA"
#endif

namespace garevla::cuda {

// For the time of one operator.
class OnDeviceOf {
 public:
#if defined(GAREVLA_HOST_LAUNCH)
  explicit OnDeviceOf(const Tensor& tensor) : device_(tensor.device()) {}
  cudaStream_t stream() const { return nullptr; }
  static void check(cudaError_t) {}
#else
  explicit OnDeviceOf(const Tensor& tensor) : device_(tensor.device()) {
    DeviceGuardOpaque* guard = nullptr;
    GAREVLA_TORCH(aoti_torch_create_device_guard, device_.index, &guard);
    guard_.reset(guard);
    void* stream = nullptr;
    GAREVLA_TORCH(aoti_torch_get_current_cuda_stream, device_.index, &stream);
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }
  static void check(cudaError_t error) {
    if (error != cudaSuccess) raise<std::runtime_error>("CUDA: ", cudaGetErrorString(error));
  }

 private:
  struct DeleteGuard {
    void operator()(DeviceGuardOpaque* guard) const { aoti_torch_delete_device_guard(guard); }
  };
  std::unique_ptr<DeviceGuardOpaque, DeleteGuard> guard_;
  cudaStream_t stream_ = nullptr;

 public:
#endif
  template <typename T>
  Tensor empty(const Shape& shape) const {
    return Tensor::empty(shape, type_of<T>(), device_);
  }

 private:
  DeviceIndex device_;
};

}  // namespace garevla::cuda
