// What every operator asks of its tensors.
#pragma once

#include "tensor.h"

namespace garevla {

// Raises unless a tensor lies beside the texts and has this shape and type.
inline void check_tensor(const char* name, const Tensor& tensor, const Shape& shape, DataType type,
                         const Tensor& text) {
  require(tensor.sizes() == shape, name, " must have shape ", shape, ", got ", tensor.sizes());
  require(tensor.device() == text.device(), name, " is on ", tensor.device(), ", text on ",
          text.device());
  require(tensor.type() == type, name, " must be ", type, ", got ", tensor.type());
}

}  // namespace garevla
