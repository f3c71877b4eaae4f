// How tasks become kernels. A task is a struct of plain arguments whose operator() does one
// thread's work, so that with GAREVLA_HOST_LAUNCH, compiled by any C++ compiler, a loop over all
// threads takes a launch's place: the tests hold the operators to the CPU's without a GPU.
#pragma once

#include <cstdint>
#include <vector>

// clang-format off
#include "cuda/scalar.h"
#include "pair_arithmetic.h"
// clang-format on

#include "cuda/pair_kernels.h"

namespace garevla::cuda {

constexpr int block_size = 128;  // threads

// Copies arrays of one video into shared memory, together with the other threads of the block, or
// leaves them where they are.
template <bool staged>
class Stage {
 public:
  GAREVLA_INLINE Stage(unsigned char* memory, int thread, int threads)
      : next_(memory), thread_(thread), threads_(threads) {}

  // To be called in descending order of alignment.
  template <typename T>
  GAREVLA_INLINE const T* operator()(const T* from, int count) {
    if constexpr (!staged) return from;
    T* to = reinterpret_cast<T*>(next_);
    for (int k = thread_; k < count; k += threads_) to[k] = from[k];
    next_ += count * sizeof(T);
    return to;
  }

 private:
  unsigned char* next_;
  int thread_, threads_;
};

// The threads that share a row, and what they can do together.
struct Warp {
#if defined(GAREVLA_HOST_LAUNCH)
  static constexpr int size = 1;
#else
  static constexpr int size = 32;
#endif
  int lane;

  // Of every lane's x, the same for all.
  template <typename T>
  GAREVLA_INLINE T sum(T x) const {
#if defined(__CUDA_ARCH__)
    for (int distance = size / 2; distance > 0; distance /= 2)
      x += __shfl_xor_sync(0xFFFFFFFFu, x, distance);
#endif
    return x;
  }
};

#if defined(GAREVLA_HOST_LAUNCH)

template <typename Task>
cudaError_t launch_warps(const Task& task, std::int64_t rows, cudaStream_t) {
  for (std::int64_t row = 0; row < rows; ++row) task(row, Warp{0});
  return cudaSuccess;
}

template <typename Task>
cudaError_t launch_staged(const Task& task, std::int64_t videos, std::int64_t texts,
                          int shared_bytes, cudaStream_t) {
  std::vector<double> memory(shared_bytes / sizeof(double) + 1);
  for (std::int64_t video = 0; video < videos; ++video) {
    Stage<Task::staged> stage(reinterpret_cast<unsigned char*>(memory.data()), 0, 1);
    const auto view = task.view(video, stage);
    for (std::int64_t text = 0; text < texts; ++text) task(view, video, text);
  }
  return cudaSuccess;
}

template <typename Task>
cudaError_t launch(const Task& task, std::int64_t rows, std::int64_t columns, cudaStream_t) {
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t column = 0; column < columns; ++column) task(row, column);
  return cudaSuccess;
}

#else

template <typename Task>
__global__ void __launch_bounds__(block_size)
    run_staged(const __grid_constant__ Task task, const std::int64_t texts) {
  extern __shared__ double memory[];
  Stage<Task::staged> stage(reinterpret_cast<unsigned char*>(memory), threadIdx.x, block_size);
  const auto view = task.view(blockIdx.y, stage);
  if constexpr (Task::staged) __syncthreads();
  const std::int64_t text = std::int64_t(blockIdx.x) * block_size + threadIdx.x;
  if (text < texts) task(view, blockIdx.y, text);
}

template <typename Task>
__global__ void __launch_bounds__(block_size)
    run(const __grid_constant__ Task task, const std::int64_t columns) {
  const std::int64_t column = std::int64_t(blockIdx.x) * block_size + threadIdx.x;
  if (column < columns) task(blockIdx.y, column);
}

template <typename Task>
__global__ void __launch_bounds__(block_size)
    run_warps(const __grid_constant__ Task task, const std::int64_t rows) {
  const std::int64_t row =
      std::int64_t(blockIdx.x) * (block_size / Warp::size) + threadIdx.x / Warp::size;
  if (row < rows) task(row, Warp{int(threadIdx.x) % Warp::size});
}

inline dim3 grid(std::int64_t rows, std::int64_t columns) {
  return dim3(unsigned((columns + block_size - 1) / block_size), unsigned(rows));
}

// clang-format off: it does not know <<< in a header.
// One thread for each text of each video; threads of a block share a video, and task.view(video, stage).
template <typename Task>
cudaError_t launch_staged(const Task& task, std::int64_t videos, std::int64_t texts,
                          int shared_bytes, cudaStream_t stream) {
  const int shared = Task::staged ? shared_bytes : 0;
  run_staged<<<grid(videos, texts), block_size, shared, stream>>>(task, texts);
  return cudaGetLastError();
}

// One thread for each (row, column).
template <typename Task>
cudaError_t launch(const Task& task, std::int64_t rows, std::int64_t columns, cudaStream_t stream) {
  run<<<grid(rows, columns), block_size, 0, stream>>>(task, columns);
  return cudaGetLastError();
}

// One warp for each row.
template <typename Task>
cudaError_t launch_warps(const Task& task, std::int64_t rows, cudaStream_t stream) {
  run_warps<<<grid(1, rows * Warp::size), block_size, 0, stream>>>(task, rows);
  return cudaGetLastError();
}
// clang-format on

#endif

}  // namespace garevla::cuda
