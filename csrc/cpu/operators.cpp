#include "cpu/direction.h"
#include "cpu/diversity.h"
#include "cpu/pair_statistics.h"
#include "cpu/tiles.h"
#include "operators/register.h"

namespace garevla::cpu {

struct Device {
  explicit Device(const Tensor&) {}

  template <typename T>
  using PairEngine = cpu::PairEngine<T>;
  template <typename T>
  using PairStatistics = cpu::PairStatistics<T>;
  template <typename T>
  using PairStatisticsBackward = cpu::PairStatisticsBackward<T>;
};

// a (M, K), b (K, N).
static Tensor product_of_rounded(const Tensor& a, const Tensor& b) {
  RoundedProduct* const product = rounded_product();
  require(product, "this processor has no instruction for products of bfloat16");
  require(a.axes() == 2 && b.axes() == 2 && a.size(1) == b.size(0), "a ", a.sizes(), " and b ",
          b.sizes(), " must be matrices (M, K) and (K, N)");
  require(a.type() == type_of<float>() && b.type() == type_of<float>(),
          "a and b must be float32, got ", a.type(), " and ", b.type());
  const Tensor out = Tensor::empty({a.size(0), b.size(1)}, a.type(), a.device());
  products::run_rounded(product, out, a, b, 0, 1);
  return out;
}

}  // namespace garevla::cpu

static const garevla::OperatorsOf<garevla::cpu::Device> on_cpu("CPU");
static const garevla::Implementations products_on_cpu(
    GAREVLA_NAME(garevla_cpu), "CPU",
    {{"product_of_rounded", garevla::Boxed<garevla::cpu::product_of_rounded>::call}});

// For garevla/ops/products.py. From now on large products of float32 have their operands rounded to
// bfloat16, or not; returns whether this processor can.
extern "C" [[gnu::visibility("default")]] bool garevla_round_products(bool on) {
  garevla::products::rounded = on ? garevla::cpu::rounded_product() : nullptr;
  return garevla::cpu::rounded_product();
}

// Whether torch's own products have their operands rounded now. Not by its dispatcher, which modes
// and autocast could lead elsewhere.
extern "C" [[gnu::visibility("default")]] bool garevla_torch_rounds() {
  using namespace garevla;
  const std::int64_t size = 256;
  bool rounds = false;
  Message message;
  const auto ask = [&] {
    auto zeros = [&] {
      const Tensor made =
          Tensor::empty({size, size}, type_of<float>(), {aoti_torch_device_type_cpu(), 0});
      made.zero();
      return made;
    };
    const Tensor one = zeros(), values = zeros(), found = zeros();
    for (std::int64_t k = 0; k < size; ++k) {
      one.data<float>(k)[k] = 1;
      values.data<float>(k)[0] = 1 + 0x1p-10f;
    }
    products::run(found, values, one, 0, 1);
    for (std::int64_t k = 0; k < size; ++k)
      rounds = rounds || found.data<float>(k)[0] != values.data<float>(k)[0];
  };
  if (!succeeds(ask, message)) std::fprintf(stderr, "garevla: %s\n", message.text());
  return rounds;
}

// For garevla/ops/native.py, when it has loaded the library.
extern "C" [[gnu::visibility("default")]] void garevla_take_onednn_from(
    std::int64_t multiply_adds) {
  if (garevla::aoti_torch_cpu__linear_pointwise) garevla::products::onednn_from = multiply_adds;
}
