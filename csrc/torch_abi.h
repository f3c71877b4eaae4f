// The C functions of torch's stable ABI that these sources call, as of the oldest torch that is
// supported. Declared here, they need neither torch nor its headers to compile, and one library
// serves every later torch. tests/test_build.py holds the declarations to torch's own headers.
//
// A function that returns a TorchError returns 0, or an error whose message torch has printed.
#pragma once

#include <cstddef>
#include <cstdint>

// Torch's names for what it alone looks into.
struct AtenTensorOpaque;
struct DeviceGuardOpaque;
struct StableListOpaque;
struct StringOpaque;
class TorchLibraryOpaque;

namespace garevla {

// 2.11: the version's numbers in the upper bytes.
constexpr std::uint64_t torch_target_version = (2ull << 56) | (11ull << 48);

using TorchError = std::int32_t;
// An operator's argument or result: a number, a bool or a handle; of an optional one, a pointer to
// it or 0.
using StackValue = std::uint64_t;

extern "C" {

// Tensors. Handles that come back are the caller's; sizes and strides are the tensor's.
TorchError aoti_torch_delete_tensor_object(AtenTensorOpaque* tensor);
TorchError aoti_torch_get_data_ptr(AtenTensorOpaque* tensor, void** data);
TorchError aoti_torch_get_dim(AtenTensorOpaque* tensor, std::int64_t* axes);
TorchError aoti_torch_get_sizes(AtenTensorOpaque* tensor, std::int64_t** sizes);
TorchError aoti_torch_get_strides(AtenTensorOpaque* tensor, std::int64_t** strides);
TorchError aoti_torch_get_dtype(AtenTensorOpaque* tensor, std::int32_t* dtype);
TorchError aoti_torch_get_device_type(AtenTensorOpaque* tensor, std::int32_t* type);
TorchError aoti_torch_get_device_index(AtenTensorOpaque* tensor, std::int32_t* index);
TorchError aoti_torch_empty_strided(std::int64_t axes, const std::int64_t* sizes,
                                    const std::int64_t* strides, std::int32_t dtype,
                                    std::int32_t device_type, std::int32_t device_index,
                                    AtenTensorOpaque** tensor);
// The same memory in another shape; the offset, in elements, is added to the tensor's own.
TorchError aoti_torch__reinterpret_tensor(AtenTensorOpaque* tensor, std::int64_t axes,
                                          const std::int64_t* sizes, const std::int64_t* strides,
                                          std::int64_t offset, AtenTensorOpaque** view);
TorchError aoti_torch_copy_(AtenTensorOpaque* to, AtenTensorOpaque* from,
                            std::int32_t non_blocking);
TorchError aoti_torch_zero_(AtenTensorOpaque* tensor);
TorchError aoti_torch_aten_fill__Scalar(AtenTensorOpaque* tensor, double value);

// What types and devices are numbered.
std::int32_t aoti_torch_dtype_float32();
std::int32_t aoti_torch_dtype_float64();
std::int32_t aoti_torch_dtype_float16();
std::int32_t aoti_torch_dtype_bfloat16();
std::int32_t aoti_torch_dtype_int32();
std::int32_t aoti_torch_dtype_int64();
std::int32_t aoti_torch_dtype_bool();
std::int32_t aoti_torch_device_type_cpu();
std::int32_t aoti_torch_device_type_cuda();
std::int32_t aoti_torch_device_type_meta();

// Lists and strings on an operator's stack.
TorchError torch_new_list_reserve_size(std::size_t size, StableListOpaque** list);
TorchError torch_list_size(StableListOpaque* list, std::size_t* size);
TorchError torch_list_get_item(StableListOpaque* list, std::size_t index, StackValue* item);
TorchError torch_list_push_back(StableListOpaque* list, StackValue item);
TorchError torch_delete_list(StableListOpaque* list);
TorchError torch_new_string_handle(const char* text, std::size_t length, StringOpaque** string);
TorchError torch_string_length(StringOpaque* string, std::size_t* length);
TorchError torch_string_c_str(StringOpaque* string, const char** text);
TorchError torch_delete_string(StringOpaque* string);

// Operators: registered, and called by name.
TorchError aoti_torch_library_init_def(const char* name, const char* file, std::uint32_t line,
                                       TorchLibraryOpaque** library);
TorchError aoti_torch_library_init_impl(const char* name, const char* dispatch_key,
                                        const char* file, std::uint32_t line,
                                        TorchLibraryOpaque** library);
TorchError aoti_torch_delete_library_object(TorchLibraryOpaque* library);
TorchError aoti_torch_library_def(TorchLibraryOpaque* library, const char* schema);
TorchError torch_library_impl(TorchLibraryOpaque* library, const char* name,
                              void (*function)(StackValue*, std::uint64_t, std::uint64_t),
                              std::uint64_t version);
TorchError torch_call_dispatcher(const char* name, const char* overload, StackValue* stack,
                                 std::uint64_t version);

TorchError torch_parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain,
                              void (*body)(std::int64_t, std::int64_t, void*), void* context);

// Matrix products: out = beta * self + alpha * a b, of batches where the name begins so.
#define GAREVLA_PRODUCTS_ON(device)                                                           \
  TorchError aoti_torch_##device##_mm_out(AtenTensorOpaque* out, AtenTensorOpaque* a,         \
                                          AtenTensorOpaque* b);                               \
  TorchError aoti_torch_##device##_bmm_out(AtenTensorOpaque* out, AtenTensorOpaque* a,        \
                                           AtenTensorOpaque* b);                              \
  TorchError aoti_torch_##device##_addmm_out(AtenTensorOpaque* out, AtenTensorOpaque* self,   \
                                             AtenTensorOpaque* a, AtenTensorOpaque* b,        \
                                             double beta, double alpha);                      \
  TorchError aoti_torch_##device##_baddbmm_out(AtenTensorOpaque* out, AtenTensorOpaque* self, \
                                               AtenTensorOpaque* a, AtenTensorOpaque* b,      \
                                               double beta, double alpha);                    \
  TorchError aoti_torch_##device##_add_Tensor(AtenTensorOpaque* a, AtenTensorOpaque* b,       \
                                              double alpha, AtenTensorOpaque** sum);          \
  TorchError aoti_torch_##device##_add_Scalar(AtenTensorOpaque* a, double b, double alpha,    \
                                              AtenTensorOpaque** sum);                        \
  TorchError aoti_torch_##device##_mul_Tensor(AtenTensorOpaque* a, AtenTensorOpaque* b,       \
                                              AtenTensorOpaque** product);                    \
  TorchError aoti_torch_##device##_mul_Scalar(AtenTensorOpaque* a, double b,                  \
                                              AtenTensorOpaque** product);                    \
  TorchError aoti_torch_##device##_pow_Tensor_Scalar(AtenTensorOpaque* base, double exponent, \
                                                     AtenTensorOpaque** power);
GAREVLA_PRODUCTS_ON(cpu)
GAREVLA_PRODUCTS_ON(cuda)
#undef GAREVLA_PRODUCTS_ON

// GPUs.
TorchError aoti_torch_create_device_guard(std::int32_t index, DeviceGuardOpaque** guard);
TorchError aoti_torch_delete_device_guard(DeviceGuardOpaque* guard);
TorchError aoti_torch_get_current_cuda_stream(std::int32_t index, void** stream);

// Of the last error; where torch is old, it is not there.
__attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

}  // extern "C"

}  // namespace garevla
