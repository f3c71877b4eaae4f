// The device of an operator's inputs: made current, its stream, and errors of launches.
#pragma once

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include "cuda/pair_kernels.h"

#if !defined(GAREVLA_HOST_LAUNCH)
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#define GAREVLA_DEVICE_KEY CUDA
#else
#define GAREVLA_DEVICE_KEY CPU
#endif

namespace garevla::cuda {

// For the time of one operator.
class OnDeviceOf {
 public:
#if defined(GAREVLA_HOST_LAUNCH)
  explicit OnDeviceOf(const at::Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
  static void check(cudaError_t) {}
#else
  explicit OnDeviceOf(const at::Tensor& tensor)
      : guard_(tensor.device()), stream_(at::cuda::getCurrentCUDAStream(tensor.get_device())) {}
  cudaStream_t stream() const { return stream_; }
  static void check(cudaError_t error) { C10_CUDA_CHECK(error); }

 private:
  c10::cuda::CUDAGuard guard_;
  cudaStream_t stream_;
#endif

 private:
  // Products are in the inputs' precision, whatever surrounds a backward pass.
  c10::impl::ExcludeDispatchKeyGuard no_autocast_{c10::autocast_dispatch_keyset};
};

}  // namespace garevla::cuda
