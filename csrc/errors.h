// Errors: exceptions among these sources, which torch raises as RuntimeError (registration.h).
#pragma once

#include <algorithm>
#include <concepts>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

#include "torch_abi.h"

namespace garevla {

// Parts of a message. Not std::ostream's: it formats numbers by a locale, and where another C++
// library is in the process, as after linking statically, that need not be its own.
inline void write(std::string& to, std::string_view text) { to += text; }
inline void write(std::string& to, std::integral auto number) { to += std::to_string(number); }

// Raises an error that says all the parts.
template <typename... Parts>
[[noreturn, gnu::cold]] void raise(const Parts&... parts) {
  std::string message;
  (write(message, parts), ...);
  throw std::runtime_error(message);
}

// Raises unless the condition holds.
template <typename... Parts>
inline void require(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    raise(parts...);
}

// Raises what a function of torch's failed with.
inline void check(TorchError error, const char* function) {
  if (!error) [[likely]]
    return;
  const char* said = torch_exception_get_what_without_backtrace
                         ? torch_exception_get_what_without_backtrace()
                         : "torch has printed why";
  raise(function, " failed: ", said);
}

// Calls a function of torch's.
#define GAREVLA_TORCH(function, ...) ::garevla::check(::garevla::function(__VA_ARGS__), #function)

// An error's message where nothing may need cleaning up.
class Message {
 public:
  const char* text() const { return text_; }
  void take(std::string_view said) {
    const std::size_t length = std::min(said.size(), sizeof(text_) - 1);
    std::memcpy(text_, said.data(), length);
    text_[length] = '\0';
  }

 private:
  char text_[2048];
};

// Whether body() ended without an error; the message of one is taken.
template <typename Body>
[[gnu::noinline]] bool succeeds(const Body& body, Message& message) noexcept {
  try {
    body();
    return true;
  } catch (const std::exception& error) {
    message.take(error.what());
  } catch (...) {
    message.take("an error of unknown type");
  }
  return false;
}

}  // namespace garevla
