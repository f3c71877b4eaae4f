// Arithmetic of small tensors on a GPU, which torch does: each result is a new tensor, axes of size
// 1 match any.
#pragma once

#include <array>
#include <vector>

#include "cuda/device.h"
#include "products.h"
#include "registration.h"

namespace garevla::cuda {

// Calls one of torch's operators by name; there must be an argument for each of its schema's.
template <typename... Arguments>
StackValue call(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StackValue, sizeof...(Arguments)> stack = {OnStack<Arguments>::give(arguments)...};
  GAREVLA_TORCH(torch_call_dispatcher, name, overload, stack.data(), torch_target_version);
  return stack[0];
}
template <typename... Arguments>
Tensor tensor_of(const char* name, const char* overload, const Arguments&... arguments) {
  return OnStack<Tensor>::take(call(name, overload, arguments...));
}

// Calls a function that makes a tensor of others and numbers.
template <typename Function, typename... Numbers>
Tensor made_by(const Function& function, const Tensor& a, Numbers... numbers) {
  AtenTensorOpaque* made = nullptr;
  check(function(a.handle().get(), numbers..., &made), "arithmetic of tensors");
  return Tensor(made);
}
inline Tensor sum_of(const Tensor& a, const Tensor& b, double scale) {
  return made_by(GAREVLA_OF_DEVICE(add_Tensor), a, b.handle().get(), scale);
}

inline Tensor operator+(const Tensor& a, const Tensor& b) { return sum_of(a, b, 1); }
inline Tensor operator-(const Tensor& a, const Tensor& b) { return sum_of(a, b, -1); }
inline Tensor operator*(const Tensor& a, const Tensor& b) {
  return made_by(GAREVLA_OF_DEVICE(mul_Tensor), a, b.handle().get());
}
inline Tensor operator+(const Tensor& a, double b) {
  return made_by(GAREVLA_OF_DEVICE(add_Scalar), a, b, 1.0);
}
inline Tensor operator*(const Tensor& a, double b) {
  return made_by(GAREVLA_OF_DEVICE(mul_Scalar), a, b);
}
inline Tensor reciprocal(const Tensor& a) {
  return made_by(GAREVLA_OF_DEVICE(pow_Tensor_Scalar), a, -1.0);
}
inline Tensor square(const Tensor& a) { return a * a; }
inline Tensor log(const Tensor& a) { return tensor_of("aten::log", "", a); }

// The larger of each number and 0.
inline Tensor nonnegative(const Tensor& a) { return tensor_of("aten::relu", "", a); }

// Over some axes, which stay with size 1 if they are kept.
inline Tensor sum(const Tensor& a, const std::vector<std::int64_t>& axes, bool kept = false) {
  const std::optional<std::vector<std::int64_t>> over = axes;
  const std::optional<std::int64_t> same_type;
  return tensor_of("aten::sum", "dim_IntList", a, over, kept, same_type);
}

inline Tensor logsumexp(const Tensor& a, std::int64_t axis) {
  return tensor_of("aten::logsumexp", "", a, std::vector{axis}, false);
}

// One number beside a tensor, of its type.
inline Tensor constant(double value, const Tensor& beside) {
  const Tensor number = Tensor::empty({}, beside.type(), beside.device());
  number.fill(value);
  return number;
}

// Raises, when the device comes to it, unless all numbers are in [0, end).
inline void assert_within(const Tensor& numbers, std::int64_t end, const std::string& message) {
  const Tensor from = tensor_of("aten::ge", "Tensor", numbers, constant(0, numbers));
  const Tensor below = tensor_of("aten::lt", "Tensor", numbers, constant(double(end), numbers));
  const Tensor both = tensor_of("aten::logical_and", "", from, below);
  call("aten::_assert_async", "msg", tensor_of("aten::all", "", both), message);
}

}  // namespace garevla::cuda
