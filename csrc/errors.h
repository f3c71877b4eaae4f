// Errors, as Python gets them: std::invalid_argument is ValueError, but RuntimeError from
// torch 2.15 on, std::out_of_range IndexError, std::runtime_error RuntimeError.
#pragma once

#include <sstream>
#include <stdexcept>

#include "torch_abi.h"

namespace garevla {

template <typename Error, typename... Parts>
[[noreturn, gnu::cold]] void raise(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

// Raises ValueError unless the condition holds.
template <typename... Parts>
inline void require(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    raise<std::invalid_argument>(parts...);
}

// Raises what a function of torch's failed with.
inline void check(TorchError error, const char* function) {
  if (!error) [[likely]]
    return;
  const char* said = torch_exception_get_what_without_backtrace
                         ? torch_exception_get_what_without_backtrace()
                         : "torch has printed why";
  raise<std::runtime_error>(function, " failed: ", said);
}

// Calls a function of torch's.
#define GAREVLA_TORCH(function, ...) ::garevla::check(::garevla::function(__VA_ARGS__), #function)

}  // namespace garevla
