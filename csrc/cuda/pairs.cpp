// pair_similarity, pair_terms and their gradient on a GPU.

#include <tuple>

#include "cuda/pair_engine.h"

namespace garevla::cuda {
namespace {

template <typename T>
void forward(const PairInputs& inputs, const OnDeviceOf& device, const at::Tensor& similarity,
             const at::Tensor& coefficients, const at::Tensor& norm) {
  const PairEngine<T> engine(inputs, 0);
  const std::int64_t texts = inputs.texts;
  engine.for_each_chunk(
      [&](std::int64_t first, std::int64_t, const PairChunk<T>& chunk, const at::Tensor&) {
        auto at = [&](const at::Tensor& tensor, std::int64_t per_video) {
          return tensor.defined() ? tensor.data_ptr<T>() + first * per_video : nullptr;
        };
        const PairScores<T> to{at(similarity, texts), at(norm, texts),
                               at(coefficients, inputs.basis * texts)};
        device.check(launch_forward(chunk, to, device.stream()));
      });
}

template <typename T>
void backward(const PairInputs& inputs, const OnDeviceOf& device, const at::Tensor& grad_similarity,
              const at::Tensor& grad_coefficients, const at::Tensor& grad_norm,
              const PairGradients& gradients) {
  using Gradient = typename PairEngine<T>::Gradient;
  const PairEngine<T> engine(inputs, Gradient::rows_per_pair(inputs));
  Gradient gradient(engine, gradients);
  const std::int64_t texts = inputs.texts;
  engine.for_each_chunk([&](std::int64_t first, std::int64_t videos, const PairChunk<T>& chunk,
                            const at::Tensor& products) {
    auto at = [&](const at::Tensor& tensor, std::int64_t per_video) {
      return tensor.defined() ? tensor.const_data_ptr<T>() + first * per_video : nullptr;
    };
    const ScoreGradients<T> given{at(grad_similarity, texts), at(grad_norm, texts),
                                  at(grad_coefficients, inputs.basis * texts)};
    device.check(launch_backward(chunk, given, gradient.adjoint(), device.stream()));
    gradient.add(first, videos, products);
  });
  gradient.finish();
}

at::Tensor pair_similarity(const at::Tensor& text, at::TensorList factors, double pool_temperature,
                           at::ArrayRef<double> layer_norm_eps) {
  const OnDeviceOf device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  at::Tensor similarity = at::empty({inputs.videos, inputs.texts}, inputs.text.options());
  AT_DISPATCH_FLOATING_TYPES(inputs.text.scalar_type(), "pair_similarity",
                             [&] { forward<scalar_t>(inputs, device, similarity, {}, {}); });
  return similarity;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pair_terms(const at::Tensor& text,
                                                          at::TensorList factors,
                                                          double pool_temperature,
                                                          at::ArrayRef<double> layer_norm_eps) {
  const OnDeviceOf device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const auto options = inputs.text.options();
  at::Tensor similarity = at::empty({inputs.videos, inputs.texts}, options);
  at::Tensor coefficients = at::empty({inputs.videos, inputs.basis, inputs.texts}, options);
  at::Tensor norm = at::empty({inputs.videos, inputs.texts}, options);
  AT_DISPATCH_FLOATING_TYPES(inputs.text.scalar_type(), "pair_terms", [&] {
    forward<scalar_t>(inputs, device, similarity, coefficients, norm);
  });
  return {similarity, coefficients, norm};
}

std::vector<at::Tensor> pair_terms_backward(const at::Tensor& text, at::TensorList factors,
                                            double pool_temperature,
                                            at::ArrayRef<double> layer_norm_eps,
                                            const at::Tensor& grad_similarity,
                                            const std::optional<at::Tensor>& grad_coefficients,
                                            const std::optional<at::Tensor>& grad_norm) {
  const OnDeviceOf device(text);
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const PairGradients gradients(inputs);
  const std::vector<std::int64_t> of_pairs = {inputs.videos, inputs.texts};
  AT_DISPATCH_FLOATING_TYPES(inputs.text.scalar_type(), "pair_terms_backward", [&] {
    backward<scalar_t>(inputs, device, inputs.checked("grad_similarity", grad_similarity, of_pairs),
                       inputs.checked("grad_coefficients", grad_coefficients,
                                      {inputs.videos, inputs.basis, inputs.texts}),
                       inputs.checked("grad_norm", grad_norm, of_pairs), gradients);
  });
  return gradients.list();
}

}  // namespace
}  // namespace garevla::cuda

TORCH_LIBRARY_IMPL(garevla, GAREVLA_DEVICE_KEY, m) {
  m.impl("pair_similarity", garevla::cuda::pair_similarity);
  m.impl("pair_terms", garevla::cuda::pair_terms);
  m.impl("pair_terms_backward", garevla::cuda::pair_terms_backward);
}
