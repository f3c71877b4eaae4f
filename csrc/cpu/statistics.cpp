// pair_statistics: the streaming loss's statistics and their gradient on a CPU, in O(A + B K²)
// memory.

#include <torch/library.h>

#include <limits>
#include <tuple>
#include <utility>

#include "cpu/pair_engine.h"
#include "statistics_inputs.h"

namespace garevla::cpu {
namespace {

// Which texts have a video as their target, or as a sample, by video.
class TextsOfVideo {
 public:
  // videos_of_text (A) or (A, n); entry k of the flattened tensor belongs to text k / n.
  TextsOfVideo(const at::Tensor& videos_of_text, std::int64_t videos) : starts_(videos + 1, 0) {
    const at::Tensor flat = videos_of_text.contiguous().flatten();
    const std::int64_t* video = flat.const_data_ptr<std::int64_t>();
    for (std::int64_t k = 0; k < flat.numel(); ++k) {
      TORCH_CHECK_INDEX(video[k] >= 0 && video[k] < videos, "video index ", video[k],
                        " is not in [0, ", videos, ")");
      ++starts_[video[k] + 1];
    }
    for (std::int64_t j = 0; j < videos; ++j) starts_[j + 1] += starts_[j];
    entries_.resize(flat.numel());
    std::vector<std::int64_t> next(starts_.begin(), starts_.end() - 1);
    for (std::int64_t k = 0; k < flat.numel(); ++k) entries_[next[video[k]]++] = k;
  }
  // Positions in the flattened tensor.
  at::ArrayRef<std::int64_t> of(std::int64_t video) const {
    return at::ArrayRef<std::int64_t>(entries_).slice(starts_[video],
                                                      starts_[video + 1] - starts_[video]);
  }

 private:
  std::vector<std::int64_t> starts_;
  std::vector<std::int64_t> entries_;
};

template <typename T>
std::vector<at::Tensor> forward(const PairInputs& inputs, const StatisticsInputs& given) {
  const PairEngine<T> engine(inputs);
  const auto options = inputs.text.options();
  const std::int64_t texts = inputs.texts, videos = inputs.videos, basis = inputs.basis;
  const std::int64_t per_text = given.per_text;
  const T scale = given.logit_scale.item<T>();
  const TextsOfVideo texts_of_target(given.targets, videos);
  const TextsOfVideo texts_of_sample(
      given.samples.defined() ? given.samples : at::empty({0}, given.targets.options()), videos);

  at::Tensor row_logsumexp = at::empty({texts}, options),
             column_logsumexp = at::empty({videos}, options);
  at::Tensor target_similarity = at::empty({texts}, options);
  at::Tensor norm_mean = at::zeros({texts}, options), norm_variance = at::zeros({texts}, options);
  at::Tensor mean = at::empty({videos, basis}, options);
  at::Tensor covariance = at::empty({videos, basis, basis}, options);
  at::Tensor sampled = at::empty({given.samples.defined() ? texts : 0, per_text, basis}, options);
  at::Tensor top = at::full({texts}, -std::numeric_limits<T>::infinity(), options);
  at::Tensor sum = at::zeros({texts}, options);

  for (std::int64_t begin = 0; begin < videos; begin += engine.chunk()) {
    const std::int64_t end = std::min(begin + engine.chunk(), videos);
    const at::Tensor similarity = at::empty({end - begin, texts}, options);
    const at::Tensor norm = at::empty({end - begin, texts}, options);
    engine.for_each_group(
        begin, end, {},
        [&](std::int64_t first, std::int64_t last, const at::Tensor& products,
            const at::Tensor& variance) {
          const Scratch<T> scratch(engine.scratch_size()), coefficients(basis * texts);
          for (std::int64_t j = first; j < last; ++j) {
            T* own = similarity.data_ptr<T>() + (j - begin) * texts;
            engine.kernels.forward(
                inputs.video<T>(j), engine.constants, texts,
                products.const_data_ptr<T>() + (j - first) * inputs.num_rows * texts,
                variance.const_data_ptr<T>() + (j - first) * texts, engine.squared_norm(), own,
                norm.data_ptr<T>() + (j - begin) * texts, coefficients.data(), scratch.data());
            column_logsumexp.data_ptr<T>()[j] = engine.kernels.column_logsumexp(texts, own, scale);
            for (const std::int64_t i : texts_of_target.of(j))
              target_similarity.data_ptr<T>()[i] = own[i];
            for (const std::int64_t entry : texts_of_sample.of(j)) {
              for (std::int64_t k = 0; k < basis; ++k)
                sampled.data_ptr<T>()[entry * basis + k] =
                    coefficients.data()[k * texts + entry / per_text];
            }
            engine.kernels.moments(int(basis), texts, coefficients.data(),
                                   mean.data_ptr<T>() + j * basis,
                                   covariance.data_ptr<T>() + j * basis * basis, scratch.data());
          }
        });
    const std::int64_t block = engine.text_block;
    at::parallel_for(0, (texts + block - 1) / block, 1, [&](std::int64_t from, std::int64_t to) {
      const std::int64_t start = from * block, length = std::min(to * block, texts) - start;
      engine.kernels.update_rows(begin, end - begin, length, texts,
                                 similarity.const_data_ptr<T>() + start,
                                 norm.const_data_ptr<T>() + start, scale, top.data_ptr<T>() + start,
                                 sum.data_ptr<T>() + start, norm_mean.data_ptr<T>() + start,
                                 norm_variance.data_ptr<T>() + start);
    });
  }
  row_logsumexp.copy_(top + sum.log());
  norm_variance /= double(std::max<std::int64_t>(videos - 1, 1));
  return {row_logsumexp, column_logsumexp, target_similarity, norm_mean, norm_variance, mean,
          covariance,    sampled};
}

// Adds rows of a sampled gradient (A, n, K) to a video's (K, A), or takes them back to zero.
template <typename T>
void scatter_samples(at::ArrayRef<std::int64_t> entries, std::int64_t per_text, std::int64_t basis,
                     std::int64_t texts, const T* grad_sampled, T* coefficients) {
  for (const std::int64_t entry : entries) {
    for (std::int64_t k = 0; k < basis; ++k) {
      T& to = coefficients[k * texts + entry / per_text];
      to = grad_sampled ? to + grad_sampled[entry * basis + k] : T(0);
    }
  }
}

template <typename T>
at::Tensor backward(const PairInputs& inputs, const StatisticsInputs& given,
                    const StatisticsOutside& outside, const PairGradients& gradients) {
  const PairEngine<T> engine(inputs);
  typename PairEngine<T>::TextGradient text(engine, gradients.text);
  const auto options = inputs.text.options();
  const std::int64_t texts = inputs.texts, videos = inputs.videos, basis = inputs.basis;
  const std::int64_t per_video = inputs.num_rows * texts;
  const std::int64_t per_text = given.per_text;
  const TextsOfVideo texts_of_target(given.targets, videos);
  const TextsOfVideo texts_of_sample(
      given.samples.defined() ? given.samples : at::empty({0}, given.targets.options()), videos);
  const at::Tensor norm_slope = outside.norm_slope(inputs), mean_slope = outside.mean_slope(inputs);
  const at::Tensor covariance_slope = outside.covariance_slope(inputs);
  const at::Tensor grad_scale = at::empty({videos}, options);
  StatisticsGradient<T> shared{};
  shared.logit_scale = given.logit_scale.item<T>();
  shared.row_logsumexp = outside.row_logsumexp.const_data_ptr<T>();
  shared.grad_row_logsumexp = outside.grad_row_logsumexp.const_data_ptr<T>();
  shared.norm_mean = outside.norm_mean.const_data_ptr<T>();
  shared.norm_slope = norm_slope.const_data_ptr<T>();

  const std::int64_t chunk = engine.chunk();
  const at::Tensor all_products = at::empty({chunk * inputs.num_rows, texts}, options);
  const at::Tensor all_variance = at::empty({chunk, texts}, options);
  const at::Tensor all_squared_norm = at::empty({chunk, texts}, options);
  for (std::int64_t begin = 0; begin < videos; begin += chunk) {
    const std::int64_t end = std::min(begin + chunk, videos);
    const std::int64_t count = end - begin;
    const at::Tensor grad_products = all_products.narrow(0, 0, count * inputs.num_rows);
    const at::Tensor grad_variance = all_variance.narrow(0, 0, count);
    const at::Tensor grad_squared_norm = all_squared_norm.narrow(0, 0, count);
    engine.for_each_group(
        begin, end, grad_products,
        [&](std::int64_t first, std::int64_t last, const at::Tensor& products,
            const at::Tensor& variance) {
          const Scratch<T> scratch(engine.scratch_size());
          const at::Tensor grad_target = at::zeros({texts}, options);
          const at::Tensor grad_coefficients =
              given.samples.defined() ? at::zeros({basis, texts}, options) : at::Tensor();
          for (std::int64_t j = first; j < last; ++j) {
            StatisticsGradient<T> own = shared;
            own.column_logsumexp = outside.column_logsumexp.const_data_ptr<T>()[j];
            own.grad_column_logsumexp = outside.grad_column_logsumexp.const_data_ptr<T>()[j];
            own.grad_target = grad_target.const_data_ptr<T>();
            own.coefficient_mean = outside.coefficient_mean.const_data_ptr<T>() + j * basis;
            own.mean_slope = mean_slope.const_data_ptr<T>() + j * basis;
            own.covariance_slope = covariance_slope.const_data_ptr<T>() + j * basis * basis;
            for (const std::int64_t i : texts_of_target.of(j))
              grad_target.data_ptr<T>()[i] = outside.grad_target_similarity.const_data_ptr<T>()[i];
            T* from_samples =
                grad_coefficients.defined() ? grad_coefficients.data_ptr<T>() : nullptr;
            if (from_samples)
              scatter_samples(texts_of_sample.of(j), per_text, basis, texts,
                              outside.grad_sampled.const_data_ptr<T>(), from_samples);
            grad_scale.data_ptr<T>()[j] = engine.kernels.statistics_backward(
                inputs.video<T>(j), engine.constants, texts,
                products.data_ptr<T>() + (j - first) * per_video,
                variance.const_data_ptr<T>() + (j - first) * texts, engine.squared_norm(), own,
                from_samples, grad_variance.data_ptr<T>() + (j - begin) * texts,
                grad_squared_norm.data_ptr<T>() + (j - begin) * texts, gradients.video<T>(j),
                scratch.data());
            for (const std::int64_t i : texts_of_target.of(j)) grad_target.data_ptr<T>()[i] = 0;
            if (from_samples)
              scatter_samples<T>(texts_of_sample.of(j), per_text, basis, texts, nullptr,
                                 from_samples);
          }
          engine.video_gradient(first, last, products,
                                grad_variance.narrow(0, first - begin, last - first), gradients);
        });
    text.add(begin, end, grad_products, grad_variance, grad_squared_norm);
  }
  text.finish();
  // In double: the sum is small beside its terms.
  return grad_scale.sum(at::kDouble).to(grad_scale.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
           at::Tensor>
pair_statistics(const at::Tensor& text, at::TensorList factors, double pool_temperature,
                at::ArrayRef<double> layer_norm_eps, const at::Tensor& logit_scale,
                const at::Tensor& targets, const std::optional<at::Tensor>& samples) {
  const WithoutAutocast guard;
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const StatisticsInputs given(inputs, logit_scale, targets, samples);
  std::vector<at::Tensor> found;
  AT_DISPATCH_FLOATING_TYPES(inputs.text.scalar_type(), "pair_statistics",
                             [&] { found = forward<scalar_t>(inputs, given); });
  return {found[0], found[1], found[2], found[3], found[4], found[5], found[6], found[7]};
}

std::vector<at::Tensor> pair_statistics_backward(
    const at::Tensor& text, at::TensorList factors, double pool_temperature,
    at::ArrayRef<double> layer_norm_eps, const at::Tensor& logit_scale, const at::Tensor& targets,
    const std::optional<at::Tensor>& samples, const at::Tensor& row_logsumexp,
    const at::Tensor& column_logsumexp, const at::Tensor& norm_mean,
    const at::Tensor& coefficient_mean, at::TensorList gradients_given,
    const std::optional<at::Tensor>& grad_sampled) {
  const WithoutAutocast guard;
  const PairInputs inputs(text, factors, pool_temperature, layer_norm_eps);
  const StatisticsInputs given(inputs, logit_scale, targets, samples);
  const StatisticsOutside outside(inputs, given, row_logsumexp, column_logsumexp, norm_mean,
                                  coefficient_mean, gradients_given, grad_sampled);
  const PairGradients gradients(inputs);
  at::Tensor grad_scale;
  AT_DISPATCH_FLOATING_TYPES(inputs.text.scalar_type(), "pair_statistics_backward", [&] {
    grad_scale = backward<scalar_t>(inputs, given, outside, gradients);
  });
  std::vector<at::Tensor> found = gradients.list();
  found.push_back(grad_scale);
  return found;
}

}  // namespace
}  // namespace garevla::cpu

TORCH_LIBRARY_IMPL(garevla, CPU, m) {
  m.impl("pair_statistics", garevla::cpu::pair_statistics);
  m.impl("pair_statistics_backward", garevla::cpu::pair_statistics_backward);
}
