// Operators of torch.library in C++: how functions of tensors and numbers are called from torch's
// stack of arguments, and registered.
#pragma once

#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tensor.h"

namespace garevla {

// take reads an argument, whose handles become its own; give makes a result.
template <typename T>
struct OnStack {  // numbers
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= sizeof(StackValue));
  static T take(StackValue value) {
    T number;
    std::memcpy(&number, &value, sizeof(T));
    return number;
  }
  static StackValue give(T number) {
    StackValue value = 0;
    std::memcpy(&value, &number, sizeof(T));
    return value;
  }
};

template <typename Opaque>
struct OnStack<Opaque*> {
  static Opaque* take(StackValue value) { return reinterpret_cast<Opaque*>(value); }
  static StackValue give(Opaque* handle) { return reinterpret_cast<StackValue>(handle); }
};

template <>
struct OnStack<Tensor> {
  static Tensor take(StackValue value) { return Tensor(OnStack<AtenTensorOpaque*>::take(value)); }
  static StackValue give(const Tensor& tensor) {
    return OnStack<AtenTensorOpaque*>::give(tensor.handle().release());
  }
};

template <typename T>
struct OnStack<std::optional<T>> {
  static std::optional<T> take(StackValue value) {
    if (value == 0) return std::nullopt;
    const std::unique_ptr<StackValue> inner(OnStack<StackValue*>::take(value));
    return OnStack<T>::take(*inner);
  }
  // Torch deletes what new has made here, and the other way round.
  static StackValue give(const std::optional<T>& value) {
    return value ? OnStack<StackValue*>::give(new StackValue(OnStack<T>::give(*value))) : 0;
  }
};

template <typename T>
struct OnStack<std::vector<T>> {
  static std::vector<T> take(StackValue value) {
    const List list(OnStack<StableListOpaque*>::take(value), torch_delete_list);
    std::size_t size = 0;
    GAREVLA_TORCH(torch_list_size, list.get(), &size);
    std::vector<T> items;
    items.reserve(size);
    for (std::size_t k = 0; k < size; ++k) {
      StackValue item;
      GAREVLA_TORCH(torch_list_get_item, list.get(), k, &item);
      items.push_back(OnStack<T>::take(item));
    }
    return items;
  }
  static StackValue give(const std::vector<T>& items) {
    StableListOpaque* made = nullptr;
    GAREVLA_TORCH(torch_new_list_reserve_size, items.size(), &made);
    List list(made, torch_delete_list);
    for (const T& item : items)
      GAREVLA_TORCH(torch_list_push_back, list.get(), OnStack<T>::give(item));
    return OnStack<StableListOpaque*>::give(list.release());
  }

 private:
  using List = std::unique_ptr<StableListOpaque, TorchError (*)(StableListOpaque*)>;
};

template <>
struct OnStack<std::string> {
  static std::string take(StackValue value) {
    const std::unique_ptr<StringOpaque, TorchError (*)(StringOpaque*)> string(
        OnStack<StringOpaque*>::take(value), torch_delete_string);
    std::size_t length = 0;
    const char* text = nullptr;
    GAREVLA_TORCH(torch_string_length, string.get(), &length);
    GAREVLA_TORCH(torch_string_c_str, string.get(), &text);
    return std::string(text, length);
  }
  static StackValue give(const std::string& text) {
    StringOpaque* made = nullptr;
    GAREVLA_TORCH(torch_new_string_handle, text.data(), text.size(), &made);
    return OnStack<StringOpaque*>::give(made);
  }
};

// A function as torch calls it.
template <auto function>
struct Boxed;
template <typename Result, typename... Arguments, Result (*function)(Arguments...)>
struct Boxed<function> {
  // No exception leaves it: another C++ library, or another unwinder, could not catch it. Torch
  // raises one of its own instead, through this frame, which has nothing to clean up.
  static void call(StackValue* stack, std::uint64_t, std::uint64_t) {
    Message message;
    if (!succeeds([=] { call(stack, std::index_sequence_for<Arguments...>()); }, message))
      aoti_torch_check(false, __func__, __FILE__, __LINE__, message.text());
  }

 private:
  template <std::size_t... k>
  static void call(StackValue* stack, std::index_sequence<k...>) {
    // In braces, so that they are taken in their order.
    const std::tuple<std::decay_t<Arguments>...> arguments{
        OnStack<std::decay_t<Arguments>>::take(stack[k])...};
    if constexpr (std::is_void_v<Result>)
      std::apply(function, arguments);
    else
      give(stack, std::apply(function, arguments));
  }
  template <typename T>
  static void give(StackValue* stack, const T& result) {
    *stack = OnStack<T>::give(result);
  }
  template <typename... T>
  static void give(StackValue* stack, const std::tuple<T...>& results) {
    std::apply([&](const T&... result) { ((*stack++ = OnStack<T>::give(result)), ...); }, results);
  }
};

// A library's name, as the preprocessor leaves it: tests compile these sources under another.
#define GAREVLA_NAME(name) GAREVLA_QUOTED(name)
#define GAREVLA_QUOTED(name) #name

struct Implementation {
  const char* name;
  void (*function)(StackValue*, std::uint64_t, std::uint64_t);
};

// Calls body(), which runs while the library is loaded. Nobody could catch an exception then, so
// that an error is printed; garevla/ops/native_library.py notices operators that are missing.
template <typename Body>
void while_loading(const Body& body) {
  Message message;
  if (!succeeds(body, message)) std::fprintf(stderr, "garevla: %s\n", message.text());
}

// To be static variables: operators are registered while these live.
using LibraryHandle = std::unique_ptr<TorchLibraryOpaque, TorchError (*)(TorchLibraryOpaque*)>;

struct Definitions {
  LibraryHandle handle{nullptr, aoti_torch_delete_library_object};

  Definitions(const char* library, std::initializer_list<const char*> schemas) {
    while_loading([&] {
      TorchLibraryOpaque* made = nullptr;
      GAREVLA_TORCH(aoti_torch_library_init_def, library, __FILE__, __LINE__, &made);
      handle.reset(made);
      for (const char* schema : schemas) GAREVLA_TORCH(aoti_torch_library_def, made, schema);
    });
  }
};
struct Implementations {
  LibraryHandle handle{nullptr, aoti_torch_delete_library_object};

  Implementations(const char* library, const char* dispatch_key,
                  std::initializer_list<Implementation> implementations) {
    while_loading([&] {
      TorchLibraryOpaque* made = nullptr;
      GAREVLA_TORCH(aoti_torch_library_init_impl, library, dispatch_key, __FILE__, __LINE__, &made);
      handle.reset(made);
      for (const auto& [name, function] : implementations)
        GAREVLA_TORCH(torch_library_impl, made, name, function, torch_target_version);
    });
  }
};

}  // namespace garevla
