// What these sources know of tensors: shapes, views and memory, on torch's stable ABI.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <ostream>
#include <type_traits>
#include <utility>

#include "errors.h"

namespace garevla {

// Sizes or strides of a tensor's axes.
struct Shape {
  static constexpr int most_axes = 6;
  int axes = 0;
  std::int64_t sizes[most_axes] = {};  // 0 beyond the axes

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> list) {
    for (const std::int64_t size : list) append(size);
  }
  Shape(const std::int64_t* from, std::int64_t count) {
    require(count <= most_axes, "tensors of ", count, " axes are not supported");
    for (std::int64_t axis = 0; axis < count; ++axis) append(from[axis]);
  }
  void append(std::int64_t size) { sizes[axes++] = size; }
  std::int64_t& operator[](int axis) { return sizes[axis]; }
  std::int64_t operator[](int axis) const { return sizes[axis]; }
  bool operator==(const Shape&) const = default;

  std::int64_t count() const {
    std::int64_t product = 1;
    for (int axis = 0; axis < axes; ++axis) product *= sizes[axis];
    return product;
  }
  // Of a contiguous tensor.
  Shape strides() const {
    Shape result = *this;
    std::int64_t next = 1;
    for (int axis = axes; axis-- > 0; next *= sizes[axis]) result[axis] = next;
    return result;
  }
  void erase(int axis) {
    for (; axis + 1 < axes; ++axis) sizes[axis] = sizes[axis + 1];
    sizes[--axes] = 0;
  }
};

inline std::ostream& operator<<(std::ostream& to, const Shape& shape) {
  to << '[';
  for (int axis = 0; axis < shape.axes; ++axis) to << (axis ? ", " : "") << shape[axis];
  return to << ']';
}

struct DataType {
  std::int32_t code;
  bool operator==(const DataType&) const = default;
};

template <typename T>
DataType type_of() {
  if constexpr (std::is_same_v<T, float>) return {aoti_torch_dtype_float32()};
  if constexpr (std::is_same_v<T, double>) return {aoti_torch_dtype_float64()};
  if constexpr (std::is_same_v<T, std::int64_t>) return {aoti_torch_dtype_int64()};
  if constexpr (std::is_same_v<T, bool>) return {aoti_torch_dtype_bool()};
}

inline std::ostream& operator<<(std::ostream& to, DataType type) {
  const struct {
    std::int32_t code;
    const char* name;
  } known[] = {{aoti_torch_dtype_float32(), "float32"}, {aoti_torch_dtype_float64(), "float64"},
               {aoti_torch_dtype_float16(), "float16"}, {aoti_torch_dtype_bfloat16(), "bfloat16"},
               {aoti_torch_dtype_int32(), "int32"},     {aoti_torch_dtype_int64(), "int64"},
               {aoti_torch_dtype_bool(), "bool"}};
  for (const auto& [code, name] : known)
    if (code == type.code) return to << name;
  return to << "of another type (" << type.code << ")";
}

struct DeviceIndex {
  std::int32_t type, index;
  bool operator==(const DeviceIndex&) const = default;
};

inline std::ostream& operator<<(std::ostream& to, DeviceIndex device) {
  if (device.type == aoti_torch_device_type_cpu()) return to << "cpu";
  if (device.type == aoti_torch_device_type_meta()) return to << "meta";
  const bool cuda = device.type == aoti_torch_device_type_cuda();
  return to << (cuda ? "cuda:" : "another device:") << device.index;
}

// Torch's own tensor, owned.
struct DeleteHandle {
  void operator()(AtenTensorOpaque* handle) const { aoti_torch_delete_tensor_object(handle); }
};
using Handle = std::unique_ptr<AtenTensorOpaque, DeleteHandle>;

// Part of the memory of one of torch's tensors, or none. Copies and views share the memory.
class Tensor {
 public:
  Tensor() = default;

  // Takes the handle over.
  explicit Tensor(AtenTensorOpaque* handle) : Tensor(Handle(handle)) {}
  explicit Tensor(Handle handle) {
    AtenTensorOpaque* tensor = handle.get();
    std::int64_t axes = 0, *sizes = nullptr, *strides = nullptr;
    GAREVLA_TORCH(aoti_torch_get_dim, tensor, &axes);
    GAREVLA_TORCH(aoti_torch_get_sizes, tensor, &sizes);
    GAREVLA_TORCH(aoti_torch_get_strides, tensor, &strides);
    sizes_ = Shape(sizes, axes);
    strides_ = Shape(strides, axes);
    GAREVLA_TORCH(aoti_torch_get_dtype, tensor, &type_.code);
    GAREVLA_TORCH(aoti_torch_get_device_type, tensor, &device_.type);
    GAREVLA_TORCH(aoti_torch_get_device_index, tensor, &device_.index);
    GAREVLA_TORCH(aoti_torch_get_data_ptr, tensor, &data_);
    memory_ = std::move(handle);
  }

  // Uninitialized and contiguous.
  static Tensor empty(const Shape& shape, DataType type, DeviceIndex device) {
    AtenTensorOpaque* made = nullptr;
    const Shape strides = shape.strides();
    GAREVLA_TORCH(aoti_torch_empty_strided, shape.axes, shape.sizes, strides.sizes, type.code,
                  device.type, device.index, &made);
    return Tensor(made);
  }

  bool defined() const { return memory_ != nullptr; }
  int axes() const { return sizes_.axes; }
  const Shape& sizes() const { return sizes_; }
  std::int64_t size(int axis) const { return sizes_[axis]; }
  std::int64_t stride(int axis) const { return strides_[axis]; }
  std::int64_t count() const { return sizes_.count(); }
  DataType type() const { return type_; }
  DeviceIndex device() const { return device_; }

  // From an index of the first axis on; null where there is no tensor.
  template <typename T>
  T* data(std::int64_t index = 0) const {
    if (!defined()) return nullptr;
    return static_cast<T*>(data_) + offset_ + (index ? index * strides_[0] : 0);
  }

  bool is_contiguous() const {
    std::int64_t next = 1;
    for (int axis = axes(); axis-- > 0; next *= sizes_[axis])
      if (sizes_[axis] != 1 && strides_[axis] != next) return count() == 0;
    return true;
  }

  // Views.
  Tensor narrow(int axis, std::int64_t first, std::int64_t size) const {
    Tensor view = *this;
    view.offset_ += first * strides_[axis];
    view.sizes_[axis] = size;
    return view;
  }
  Tensor select(int axis, std::int64_t index) const {
    Tensor view = narrow(axis, index, 1);
    view.sizes_.erase(axis);
    view.strides_.erase(axis);
    return view;
  }
  Tensor swapped(int one, int other) const {
    Tensor view = *this;
    std::swap(view.sizes_[one], view.sizes_[other]);
    std::swap(view.strides_[one], view.strides_[other]);
    return view;
  }
  // With another axis, of size 1.
  Tensor with_axis(int axis) const {
    Tensor view = *this;
    for (Shape* shape : {&view.sizes_, &view.strides_}) {
      shape->append(0);
      for (int k = shape->axes - 1; k > axis; --k) (*shape)[k] = (*shape)[k - 1];
      (*shape)[axis] = 1;
    }
    return view;
  }
  // Of matrices, the last two axes.
  Tensor transposed() const { return swapped(axes() - 2, axes() - 1); }
  // Of a contiguous tensor, in another shape of as many elements.
  Tensor view(const Shape& shape) const {
    Tensor view = *this;
    view.sizes_ = shape;
    view.strides_ = shape.strides();
    return view;
  }

  Tensor like() const { return empty(sizes_, type_, device_); }
  Tensor contiguous() const { return is_contiguous() ? *this : copied(type_, device_); }
  // Itself where nothing changes.
  Tensor to(DataType type, DeviceIndex device) const {
    return type == type_ && device == device_ ? *this : copied(type, device);
  }
  Tensor to(DataType type) const { return to(type, device_); }

  void copy_from(const Tensor& other) const {
    GAREVLA_TORCH(aoti_torch_copy_, handle().get(), other.handle().get(), 0);
  }
  void zero() const { GAREVLA_TORCH(aoti_torch_zero_, handle().get()); }
  void fill(double value) const {
    GAREVLA_TORCH(aoti_torch_aten_fill__Scalar, handle().get(), value);
  }

  // A new handle for torch.
  Handle handle() const {
    AtenTensorOpaque* made = nullptr;
    GAREVLA_TORCH(aoti_torch__reinterpret_tensor, memory_.get(), axes(), sizes_.sizes,
                  strides_.sizes, offset_, &made);
    return Handle(made);
  }

 private:
  Tensor copied(DataType type, DeviceIndex device) const {
    const Tensor copy = empty(sizes_, type, device);
    copy.copy_from(*this);
    return copy;
  }

  std::shared_ptr<AtenTensorOpaque> memory_;
  void* data_ = nullptr;     // where memory_ begins
  std::int64_t offset_ = 0;  // from there, in elements
  Shape sizes_, strides_;
  DataType type_{};
  DeviceIndex device_{};
};

template <typename T>
T* data_at(const Tensor& tensor, std::int64_t index = 0) {
  return tensor.data<T>(index);
}

// Calls body(zero) with a zero of a tensor's type, which must be float or double.
template <typename Body>
auto with_type_of(const char* name, const Tensor& tensor, const Body& body) {
  if (tensor.type() == type_of<float>()) return body(0.0f);
  require(tensor.type() == type_of<double>(), name, " must be float32 or float64, got ",
          tensor.type());
  return body(0.0);
}

}  // namespace garevla
