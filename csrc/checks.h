// What every operator asks of its tensors.
#pragma once

#include <ATen/ATen.h>

#include <type_traits>

namespace garevla {

// A contiguous tensor's memory from an index of its first axis on; null where it is undefined. It
// is only read where T is constant.
template <typename T>
T* data_at(const at::Tensor& tensor, std::int64_t index = 0) {
  if (!tensor.defined()) return nullptr;
  const std::int64_t offset = index ? index * tensor.stride(0) : 0;
  if constexpr (std::is_const_v<T>)
    return tensor.const_data_ptr<T>() + offset;
  else
    return tensor.mutable_data_ptr<T>() + offset;
}

// Raises unless a tensor lies beside the texts and has this shape and type.
inline void check_tensor(const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                         at::ScalarType dtype, const at::Tensor& text) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", got ",
                    tensor.sizes());
  TORCH_CHECK_VALUE(tensor.device() == text.device(), name, " is on ", tensor.device(),
                    ", text on ", text.device());
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ",
                   tensor.scalar_type());
}

}  // namespace garevla
