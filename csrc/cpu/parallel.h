// Parallel pieces of work whose results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>

#include "errors.h"

// MKL's own switch for the calling thread, where torch brings MKL.
extern "C" __attribute__((weak)) int MKL_Set_Num_Threads_Local(int threads);

namespace garevla::cpu {

// While it lives, MKL computes as if for one thread. Inside a parallel region it has no other, but
// would split long sums as if it had, so that bits depended on the number of threads.
class OneBlasThread {
 public:
  OneBlasThread() : before_(set(1)) {}
  ~OneBlasThread() { set(before_); }
  OneBlasThread(const OneBlasThread&) = delete;
  OneBlasThread& operator=(const OneBlasThread&) = delete;

 private:
  static int set(int threads) {
    return MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(threads) : 0;
  }
  int before_;
};

// Calls body(from, to) for parts of [0, count) in torch's threads; matrix products inside run on
// one thread. Raises the first error of any.
template <typename Body>
void parallel_pieces(std::int64_t count, const Body& body) {
  struct Context {
    const Body& body;
    std::mutex mutex;
    std::exception_ptr error;
  } context{body, {}, {}};
  auto run = [](std::int64_t from, std::int64_t to, void* passed) {
    Context& context = *static_cast<Context*>(passed);
    try {
      const OneBlasThread one_thread;
      context.body(from, to);
    } catch (...) {
      const std::lock_guard lock(context.mutex);
      if (!context.error) context.error = std::current_exception();
    }
  };
  GAREVLA_TORCH(torch_parallel_for, 0, count, 1, run, &context);
  if (context.error) std::rethrow_exception(context.error);
}

// Calls body(start, length) for blocks of [0, count), in parallel likewise.
template <typename Body>
void parallel_blocks(std::int64_t count, std::int64_t block, const Body& body) {
  parallel_pieces((count + block - 1) / block, [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t start = from * block; start < std::min(to * block, count); start += block)
      body(start, std::min(block, count - start));
  });
}

}  // namespace garevla::cpu
