// The operators on small, awkward sizes: gradients against finite differences, the stream against
// all pairs at once, and the CUDA operators, with loops in place of kernel launches, against the
// CPU's. Meant to be run under the address sanitizer, too.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "cpu/rounded_product.h"
#include "pair_inputs.h"

namespace {

using garevla::factor_table;

using Tensors = std::vector<at::Tensor>;

int failures = 0;

void check(bool good, const char* what, double error) {
  if (good) return;
  ++failures;
  std::printf("FAILED %s: error %.3e\n", what, error);
}

double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  return ((actual - expected).norm() / expected.norm().clamp_min(1e-12)).item<double>();
}

// Every tensor that an operator of a library returns.
Tensors call_in(const std::string& library, const char* name,
                const std::vector<c10::IValue>& arguments) {
  std::vector<c10::IValue> stack = arguments;
  // Lists of their own: torch moves the tensors out of a list that it hands to a stable operator.
  for (c10::IValue& value : stack)
    if (value.isTensorList()) value = value.toTensorVector();
  c10::Dispatcher::singleton()
      .findSchemaOrThrow((library + "::" + name).c_str(), "")
      .callBoxed(&stack);
  Tensors found;
  for (const c10::IValue& value : stack) {
    const Tensors more = value.isTensor() ? Tensors{value.toTensor()} : value.toTensorVector();
    found.insert(found.end(), more.begin(), more.end());
  }
  return found;
}

// The CPU's operator, to which the CUDA one is held where it is there.
template <typename OnHost>
Tensors held(const char* name, const Tensors& found, [[maybe_unused]] const OnHost& on_host) {
#if defined(GAREVLA_CUDA_ON_HOST)
  // What rounding took from the mean is different rounding on a GPU: the two are compared as one.
  auto comparable = [&](Tensors tensors) {
    if (name != std::string("pair_statistics")) return tensors;
    tensors[5] = tensors[5] + tensors.back();
    tensors.pop_back();
    return tensors;
  };
  const Tensors ours = comparable(found), others = comparable(on_host());
  check(ours.size() == others.size(), name, NAN);
  for (std::size_t k = 0; k < ours.size(); ++k) {
    if (ours[k].numel() == 0) continue;
    const double error = relative_error(others[k], ours[k]);
    check(error < (ours[k].scalar_type() == at::kDouble ? 1e-10 : 3e-4), name, error);
  }
#else
  (void)name;
#endif
  return found;
}

Tensors call(const char* name, const std::vector<c10::IValue>& arguments) {
  return held(name, call_in("garevla", name, arguments),
              [&] { return call_in("garevla_cuda_on_host", name, arguments); });
}

// Of a tile; what it writes to `out`, the last argument, comes first.
Tensors call_tile(const char* name, const std::vector<c10::IValue>& arguments,
                  const at::Tensor& out = {}) {
  auto run = [&](const char* library) {
    std::vector<c10::IValue> all = arguments;
    const at::Tensor written = out.defined() ? out.clone() : out;
    if (out.defined()) all.push_back(written);
    Tensors found = call_in(library, name, all);
    if (out.defined()) found.insert(found.begin(), written);
    return found;
  };
  return held(name, run("garevla_tiles"), [&] { return run("garevla_tiles_on_host"); });
}

struct Case {
  std::int64_t texts, videos, dim, heads, frames;
  at::Tensor text;
  Tensors factors;

  // Random factors; Gram matrices are Gram matrices, so that no variance is negative.
  Case(const std::array<std::int64_t, 5>& sizes, at::ScalarType dtype)
      : texts(sizes[0]), videos(sizes[1]), dim(sizes[2]), heads(sizes[3]), frames(sizes[4]) {
    auto random = [&](at::IntArrayRef shape) { return at::randn(shape, dtype); };
    auto gram = [&](std::int64_t size) {
      const at::Tensor x = random({videos, size, dim});
      return x.matmul(x.mT()) / double(dim);
    };
    const std::int64_t attention = heads * frames, basis = attention + 2;
    at::Tensor mask = at::rand({videos, frames}) < 0.7;
    mask.select(1, 0).fill_(true);
    const at::Tensor vectors = random({videos, basis, dim}), frame = random({videos, frames, dim});
    const at::Tensor keys = random({videos, attention, dim}) / std::sqrt(double(dim));
    const at::Tensor mean = frame.mean(1);
    text = random({texts, dim});
    const std::map<std::string, at::Tensor> named = {
        {"rows", at::cat({keys, frame, vectors}, 1)},
        {"frame_mask", mask},
        {"key_offset", random({videos, heads, frames})},
        {"key_bias", random({videos, heads, frames})},
        {"mean_frame", mean - mean.mean(1, true)},
        {"value_gram", gram(attention)},
        {"hidden_gram", gram(attention + 1)},
        {"basis_gram", vectors.matmul(vectors.mT())},
        {"frame_gram", frame.matmul(frame.mT())},
        {"basis_frame", vectors.matmul(frame.mT())}};
    for (const garevla::Factor& factor : factor_table) factors.push_back(named.at(factor.name));
  }

  // The arguments that all pair operators begin with.
  std::vector<c10::IValue> arguments(const std::vector<c10::IValue>& more = {}) const {
    std::vector<c10::IValue> all = {text, factors, 3.0, std::vector<double>{1e-5, 1e-5, 1e-5}};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
};

// Central differences along one random direction of each differentiable factor.
void check_gradients(const Case& given) {
  Tensors weights;
  for (const at::Tensor& output : call("pair_terms", given.arguments()))
    weights.push_back(at::randn_like(output));
  const Tensors gradients =
      call("pair_terms_backward", given.arguments({weights[0], weights[1], weights[2]}));
  call("pair_terms_backward", given.arguments({weights[0], c10::IValue(), c10::IValue()}));
  if (given.text.scalar_type() != at::kDouble) return;
  auto objective = [&](const Case& at_point) {
    const Tensors outputs = call_in("garevla", "pair_terms", at_point.arguments());
    double sum = 0;
    for (std::size_t k = 0; k < outputs.size(); ++k)
      sum += (outputs[k] * weights[k]).sum().item<double>();
    return sum;
  };
  std::size_t next = 0;
  auto check_one = [&](const std::string& name, const at::Tensor& at_point, auto tensor_of) {
    at::Tensor direction = at::randn_like(at_point);
    if (name.ends_with("_gram")) direction = direction + direction.mT();        // stays symmetric
    if (name == "mean_frame") direction = direction - direction.mean(1, true);  // stays centered
    const double step = 1e-6;
    auto shifted = [&](double by) {
      Case other = given;
      tensor_of(other) = at_point + by * direction;
      return objective(other);
    };
    const double numeric = (shifted(step) - shifted(-step)) / (2 * step);
    const double analytic = (gradients[next++] * direction).sum().item<double>();
    const double error =
        std::abs(numeric - analytic) / (std::abs(numeric) + std::abs(analytic) + 1e-3);
    check(error < 1e-5, ("gradient of " + name).c_str(), error);
  };
  check_one("text", given.text, [](Case& other) -> at::Tensor& { return other.text; });
  for (std::size_t k = 0; k < std::size(factor_table); ++k) {
    if (!factor_table[k].is_mask())
      check_one(factor_table[k].name, given.factors[k],
                [k](Case& other) -> at::Tensor& { return other.factors[k]; });
  }
}

void check_statistics(const Case& given) {
  const Tensors terms = call("pair_terms", given.arguments());
  const at::Tensor &similarity = terms[0], &coefficients = terms[1], &norm = terms[2];
  const at::Tensor scale = at::full({}, 5.0, given.text.options());
  const at::Tensor targets = at::randint(given.videos, {given.texts}, at::kLong);
  const at::Tensor samples = at::arange(given.texts).unsqueeze(1).remainder(given.videos);
  call("pair_statistics", given.arguments({scale, targets, c10::IValue()}));
  const Tensors found = call("pair_statistics", given.arguments({scale, targets, samples}));
  const double tolerance = given.text.scalar_type() == at::kDouble ? 1e-10 : 1e-5;
  auto expect = [&](const char* what, const at::Tensor& actual, const at::Tensor& expected) {
    const double error = relative_error(actual, expected);
    check(error < tolerance, what, error);
  };
  expect("row logsumexp", found[0], (scale * similarity).logsumexp(0));
  expect("column logsumexp", found[1], (scale * similarity).logsumexp(1));
  expect("target similarity", found[2], similarity.gather(0, targets.unsqueeze(0)).squeeze(0));
  expect("norm mean", found[3], norm.mean(0));
  expect("coefficient mean", found[5], coefficients.mean(2));
  const at::Tensor index = samples.unsqueeze(2).expand({-1, -1, coefficients.size(1)});
  expect("samples", found[7], coefficients.permute({2, 0, 1}).gather(1, index));

  std::vector<at::Tensor> outside;
  for (const int k : {0, 1, 2, 4, 5, 6}) outside.push_back(at::randn_like(found[k]));
  const Tensors gradients =
      call("pair_statistics_backward",
           given.arguments({scale, targets, samples, found[0], found[1], found[3], found[5],
                            outside, at::randn_like(found[7])}));
  for (const at::Tensor& gradient : gradients)
    check(gradient.isfinite().all().item<bool>(), "finite gradients of the stream", NAN);
}

void check_direction(std::int64_t texts, std::int64_t videos, std::int64_t dim) {
  const std::int64_t basis = 5;
  const at::Tensor coefficients = at::randn({videos, basis, texts}, at::kDouble);
  const at::Tensor vectors = at::randn({videos, basis, dim}, at::kDouble);
  const at::Tensor increments = at::einsum("bka,bkd->abd", {coefficients, vectors});
  const at::Tensor norm = increments.norm(2, 2, true);
  const at::Tensor unit = coefficients / norm.squeeze(2).t().unsqueeze(1);
  const at::Tensor value = call("direction", {unit, vectors, 2.0, true})[0];
  const at::Tensor directions = increments / norm;
  const at::Tensor kernel = (2.0 * (directions.matmul(directions.mT()) - 1)).exp();
  const double error = relative_error(value, (kernel.mean({1, 2}) + 1e-8).log().mean());
  check(error < 1e-10, "direction", error);
}

// Every operator of a tile, where the loops that stand for launches are.
void check_tiles(std::int64_t videos, std::int64_t texts, std::int64_t size, at::ScalarType dtype) {
  auto random = [&](at::IntArrayRef shape) { return at::randn(shape, dtype); };
  const at::Tensor pairs = random({videos, texts}), grad = random({videos, texts, size});
  const at::Tensor video = random({videos, size}), text = random({texts, size});
  const at::Tensor empty = at::empty_like(grad);
  for (const double dropout : {0.0, 0.3}) {
    const std::vector<c10::IValue> masks = {dropout, 12345678901234, 70, 1000};
    auto with_masks = [&](std::vector<c10::IValue> arguments) {
      arguments.insert(arguments.end(), masks.begin(), masks.end());
      return arguments;
    };
    for (const char* activation : {"gelu", "gelu_tanh", "silu", "relu", "quick_gelu"}) {
      std::vector<c10::IValue> gap =
          with_masks({pairs.abs(), video, text, random({size}), activation});
      call_tile("gap_hidden", gap, empty);
      gap.push_back(grad);
      call_tile("gap_hidden_backward", gap);
    }
    const at::Tensor mixed = random({videos, texts, 2 * size});
    const Tensors hidden =
        call_tile("attention_hidden", with_masks({mixed, random({2 * size}), 1e-3}), empty);
    call_tile("attention_hidden_backward", with_masks({grad, hidden[0], hidden[1]}),
              at::empty_like(mixed));
  }
  const Tensors products = call_tile("contract", {grad, text, true});
  call_tile("contract", {grad, text, false});
  const Tensors none, moments = {video, random({videos, size}), random({videos, size})};
  call_tile("increment_gradient", {grad, text, pairs, random({videos, texts}), moments}, grad);
  call_tile("increment_gradient", {grad, text, pairs, random({videos, texts}), none}, grad);
  const at::Tensor norm = products[1].sqrt(), upstream = at::full({}, 0.7, grad.options());
  if (videos == 1) return;  // the logarithm of 1, and rounding
  call_tile("diversity", {grad, norm, 2.0});
  call_tile("diversity_gradient", {grad, norm, 2.0, upstream});
}

// out (M, N) = kept * out + scale * a (M, K) b (K, N) of rounded operands, from transposed and
// plain memory. Nothing where the processor has no such product.
void check_rounded(std::int64_t rows, std::int64_t depth, std::int64_t columns) {
  garevla::cpu::RoundedProduct* const product = garevla::cpu::rounded_product();
  if (!product) return;
  auto matrix = [](const at::Tensor& x) {
    return garevla::cpu::Matrix{x.data_ptr<float>(), x.size(0), x.size(1), x.stride(0),
                                x.stride(1)};
  };
  auto exact = [](const at::Tensor& x) { return x.to(at::kBFloat16).to(at::kDouble); };
  for (const bool transposed : {false, true}) {
    auto random = [&](std::int64_t m, std::int64_t n) {
      return transposed ? at::randn({n, m}).t() : at::randn({m, n});
    };
    const at::Tensor a = random(rows, depth), b = random(depth, columns);
    for (const float kept : {0.0f, 1.0f, 0.5f}) {
      // Rows apart, and what lies between them is to stay.
      const at::Tensor memory = at::randn({rows, columns + 3}), before = memory.clone();
      const at::Tensor out = memory.narrow(1, 0, columns);
      if (kept == 0) out.fill_(NAN);
      const at::Tensor old = kept == 0 ? at::zeros({rows, columns}, at::kDouble)
                                       : before.narrow(1, 0, columns).to(at::kDouble);
      product(matrix(out), matrix(a), matrix(b), kept, -2);
      const at::Tensor want = double(kept) * old - 2 * exact(a).matmul(exact(b));
      const double error = relative_error(out.to(at::kDouble), want);
      check(error < 1e-5, "rounded_product", error);
      const bool kept_gaps = memory.narrow(1, columns, 3).equal(before.narrow(1, columns, 3));
      check(kept_gaps, "rounded_product's gaps", NAN);
    }
  }
}

}  // namespace

int main() {
  at::manual_seed(0);
  const std::vector<std::array<std::int64_t, 5>> sizes = {
      {1, 1, 4, 1, 1}, {7, 3, 8, 1, 3}, {17, 5, 16, 2, 4}, {33, 9, 24, 1, 12}, {5, 2, 8, 1, 70}};
  for (const auto& size : sizes) {
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
      const Case given(size, dtype);
      call("pair_similarity", given.arguments());
      check_gradients(given);
      check_statistics(given);
    }
  }
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    check_tiles(1, 1, 5, dtype);
    check_tiles(3, 17, 66, dtype);
    check_tiles(35, 2, 129, dtype);
  }
  check_direction(1, 1, 3);
  check_direction(7, 130, 9);
  check_rounded(1, 1, 1);
  check_rounded(57, 70, 33);
  check_rounded(29, 1100, 2100);
  if (failures == 0) std::printf("all checks passed\n");
  return failures != 0;
}
