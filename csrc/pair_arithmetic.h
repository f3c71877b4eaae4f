// The arithmetic of one text-video pair and its adjoint, once for every processor.
//
// `Lane` is the number type: a vector of several texts on a CPU, one text on a GPU. Everything that
// is the same for all texts (a video's Gram matrices) is a plain scalar `T`. Derivation and
// symbols: docs/derivation.md.
#pragma once

#include "pair_types.h"

// Every instruction set compiles these templates for itself; one name for all would let the linker
// mix them.
#ifndef GAREVLA_VARIANT
#define GAREVLA_VARIANT generic
#endif

namespace garevla {
namespace GAREVLA_VARIANT {

GAREVLA_INLINE float smallest_normal(float) { return 1.17549435e-38f; }
GAREVLA_INLINE double smallest_normal(double) { return 2.2250738585072014e-308; }

// Lengths of the per-pair arrays.
struct PairSizes {
  int attention;  // H*F
  int hidden;     // H*F + 1
  int basis;      // K = H*F + 2
  int frames;     // F
  int rows;       // R

  GAREVLA_INLINE constexpr PairSizes(int heads, int num_frames)
      : attention(heads * num_frames),
        hidden(heads * num_frames + 1),
        basis(heads * num_frames + 2),
        frames(num_frames),
        rows(2 * heads * num_frames + num_frames + 2) {}

  // Lanes that a PairState needs, and the adjoint's scratch beyond it.
  GAREVLA_INLINE constexpr int state() const {
    return 2 * attention + 2 * hidden + 3 * basis + 2 * frames;
  }
  GAREVLA_INLINE constexpr int adjoint() const { return basis + frames + attention; }
};

// All that the forward pass knows of a pair; arrays point into a workspace of PairSizes::state()
// lanes.
template <typename Lane>
struct PairState {
  Lane* attention;       // (H*F)
  Lane* attention_form;  // (H*F)   value_gram * attention
  Lane* hidden;          // (H*F+1) (attention * r2, 1)
  Lane* hidden_form;     // (H*F+1) hidden_gram * hidden
  Lane* coefficients;    // (K)     (hidden * r3, 1)
  Lane* basis_form;      // (K)     basis_gram * coefficients
  Lane* basis_pool;      // (K)     basis_frame * pool
  Lane* pool;            // (F)
  Lane* frame_form;      // (F)     frame_gram * pool
  Lane r1, r2, r3;
  Lane squared_increment;
  Lane squared_text;  // of the corrected text
  Lane squared_video;
  Lane inverse_norms;
  Lane similarity;
  Lane increment_norm;

  GAREVLA_INLINE PairState(const PairSizes& size, Lane* workspace) {
    attention = workspace;
    attention_form = attention + size.attention;
    hidden = attention_form + size.attention;
    hidden_form = hidden + size.hidden;
    coefficients = hidden_form + size.hidden;
    basis_form = coefficients + size.basis;
    basis_pool = basis_form + size.basis;
    pool = basis_pool + size.basis;
    frame_form = pool + size.frames;
  }
};

// y = M x, M (rows, columns). Four rows at a time hide the latency of one multiply-add behind the
// others'.
template <typename T, typename Lane>
GAREVLA_INLINE void multiply(const T* matrix, int rows, int columns, const Lane* x, Lane* y) {
  int row = 0;
  for (; row + 4 <= rows; row += 4) {
    const T* m = matrix + row * columns;
    Lane sum0(T(0)), sum1(T(0)), sum2(T(0)), sum3(T(0));
    for (int column = 0; column < columns; ++column) {
      const Lane value = x[column];
      sum0 += m[column] * value;
      sum1 += m[column + columns] * value;
      sum2 += m[column + 2 * columns] * value;
      sum3 += m[column + 3 * columns] * value;
    }
    y[row] = sum0;
    y[row + 1] = sum1;
    y[row + 2] = sum2;
    y[row + 3] = sum3;
  }
  for (; row < rows; ++row) {
    Lane sum(T(0));
    for (int column = 0; column < columns; ++column)
      sum += matrix[row * columns + column] * x[column];
    y[row] = sum;
  }
}

// y += scale * Mᵀ x, M (rows, columns).
template <typename T, typename Lane>
GAREVLA_INLINE void add_transposed_product(const T* matrix, int rows, int columns, const Lane* x,
                                           Lane scale, Lane* y) {
  int column = 0;
  for (; column + 4 <= columns; column += 4) {
    Lane sum0(T(0)), sum1(T(0)), sum2(T(0)), sum3(T(0));
    for (int row = 0; row < rows; ++row) {
      const T* m = matrix + row * columns + column;
      const Lane value = x[row];
      sum0 += m[0] * value;
      sum1 += m[1] * value;
      sum2 += m[2] * value;
      sum3 += m[3] * value;
    }
    y[column] += scale * sum0;
    y[column + 1] += scale * sum1;
    y[column + 2] += scale * sum2;
    y[column + 3] += scale * sum3;
  }
  for (; column < columns; ++column) {
    Lane sum(T(0));
    for (int row = 0; row < rows; ++row) sum += matrix[row * columns + column] * x[row];
    y[column] += scale * sum;
  }
}

template <typename T, typename Lane>
GAREVLA_INLINE Lane dot(int length, const Lane* x, const Lane* y) {
  Lane sum(T(0));
  for (int k = 0; k < length; ++k) sum += x[k] * y[k];
  return sum;
}

// Softmax over the valid frames, in place; exactly 0 at the others, whose logits are never looked
// at.
template <typename T, typename Lane>
GAREVLA_INLINE void masked_softmax(const bool* frame_mask, int frames, Lane* x) {
  Lane top(T(0));
  bool first = true;
  for (int f = 0; f < frames; ++f) {
    if (!frame_mask[f]) continue;
    top = first ? x[f] : maximum(top, x[f]);
    first = false;
  }
  Lane sum(T(0));
  for (int f = 0; f < frames; ++f) {
    if (!frame_mask[f]) continue;
    x[f] = exp_nonpositive(x[f] - top);
    sum += x[f];
  }
  const Lane inverse = T(1) / sum;
  for (int f = 0; f < frames; ++f) x[f] = frame_mask[f] ? x[f] * inverse : Lane(T(0));
}

// Adjoint of the softmax, in place: gradient of the probabilities p becomes that of the logits.
template <typename T, typename Lane>
GAREVLA_INLINE void softmax_adjoint(int frames, const Lane* p, Lane* gradient) {
  const Lane mean = dot<T>(frames, p, gradient);
  for (int f = 0; f < frames; ++f) gradient[f] = p[f] * (gradient[f] - mean);
}

template <typename T, typename Lane>
GAREVLA_INLINE Lane reciprocal_sqrt(Lane x) {
  return T(1) / square_root(x);
}

// The attention of the gap over the frames, per head.
template <typename T, typename Lane, typename Products>
GAREVLA_INLINE void gap_attention(const VideoView<T>& video, const Products& products, Lane r1,
                                  Lane* attention) {
  const int frames = video.frames;
  for (int head = 0; head < video.heads; ++head) {
    for (int f = 0; f < frames; ++f) {
      const int k = head * frames + f;
      attention[k] = video.key_bias[k] + (video.key_offset[k] - products(k)) * r1;
    }
    masked_softmax<T>(video.frame_mask, frames, attention + head * frames);
  }
}

// Scores one pair (or one vector of pairs).
//
// products(row) is the dot product of the text with row `row` of the video's R product rows;
// gap_variance the variance over D of the gap; squared_norm ‖t‖². Fills `state`.
template <typename T, typename Lane, typename Products>
GAREVLA_INLINE void pair_forward(const VideoView<T>& video, const PairConstants<T>& constants,
                                 Lane gap_variance, Lane squared_norm, const Products& products,
                                 PairState<Lane>& state) {
  const PairSizes size(video.heads, video.frames);
  state.r1 = reciprocal_sqrt<T>(gap_variance + constants.layer_norm_eps[0]);

  gap_attention(video, products, state.r1, state.attention);
  multiply(video.value_gram, size.attention, size.attention, state.attention, state.attention_form);
  const Lane attention_variance = dot<T>(size.attention, state.attention, state.attention_form);
  state.r2 = reciprocal_sqrt<T>(attention_variance + constants.layer_norm_eps[1]);
  for (int k = 0; k < size.attention; ++k) state.hidden[k] = state.attention[k] * state.r2;
  state.hidden[size.attention] = Lane(T(1));

  multiply(video.hidden_gram, size.hidden, size.hidden, state.hidden, state.hidden_form);
  const Lane hidden_variance = dot<T>(size.hidden, state.hidden, state.hidden_form);
  state.r3 = reciprocal_sqrt<T>(hidden_variance + constants.layer_norm_eps[2]);
  for (int k = 0; k < size.hidden; ++k) state.coefficients[k] = state.hidden[k] * state.r3;
  state.coefficients[size.hidden] = Lane(T(1));

  multiply(video.basis_gram, size.basis, size.basis, state.coefficients, state.basis_form);
  state.squared_increment = dot<T>(size.basis, state.coefficients, state.basis_form);
  state.increment_norm = square_root(maximum(state.squared_increment, Lane(T(0))));

  // The text-conditioned video.
  for (int f = 0; f < size.frames; ++f)
    state.pool[f] = products(size.attention + f) * constants.inverse_temperature;
  masked_softmax<T>(video.frame_mask, size.frames, state.pool);
  multiply(video.basis_frame, size.basis, size.frames, state.pool, state.basis_pool);
  multiply(video.frame_gram, size.frames, size.frames, state.pool, state.frame_form);
  state.squared_video = dot<T>(size.frames, state.pool, state.frame_form);

  const int first_frame = size.attention, first_basis = size.attention + size.frames;
  Lane score = dot<T>(size.basis, state.coefficients, state.basis_pool);
  for (int f = 0; f < size.frames; ++f) score += state.pool[f] * products(first_frame + f);
  Lane text_basis(T(0));
  for (int k = 0; k < size.basis; ++k)
    text_basis += state.coefficients[k] * products(first_basis + k);
  state.squared_text = squared_norm + T(2) * text_basis + state.squared_increment;

  // With a zero vector the cosine is 0, and has no gradient. A NaN is kept.
  const Lane zero(T(0)), tiny(smallest_normal(T(0)));
  const Lane inverse = T(1) / (square_root(maximum(state.squared_text, tiny)) *
                               square_root(maximum(state.squared_video, tiny)));
  const Lane least = minimum(state.squared_text, state.squared_video);
  state.inverse_norms = select_greater(tiny, least, zero, inverse);
  state.similarity = score * state.inverse_norms;
}

// What a pair's adjoint leaves for the text alone.
template <typename Lane>
struct PairTextGradient {
  Lane gap_variance;
  Lane squared_norm;
};

// The adjoint of pair_forward.
//
// coefficients holds the gradient of the coefficients from outside (K lanes) and is overwritten;
// scratch has F + H*F lanes. The sink takes what belongs to the video:
//   sink.product(row, value)                      gradient of products(row), called once a row
//   sink.key(k, bias, offset)                     gradients of key_bias and key_offset
//   sink.value_gram(weight, x), sink.hidden_gram, sink.basis_gram, sink.frame_gram   weight * x xᵀ
//   sink.basis_frame(weight, x, y)                weight * x yᵀ
template <typename T, typename Lane, typename Products, typename Sink>
GAREVLA_INLINE PairTextGradient<Lane> pair_adjoint(const VideoView<T>& video,
                                                   const PairConstants<T>& constants,
                                                   const Products& products,
                                                   const PairState<Lane>& state,
                                                   Lane grad_similarity, Lane grad_norm,
                                                   Lane* coefficients, Lane* scratch, Sink& sink) {
  const PairSizes size(video.heads, video.frames);
  const int first_frame = size.attention, first_basis = size.attention + size.frames;
  const Lane zero(T(0)), tiny(smallest_normal(T(0)));
  Lane* pool = scratch;
  Lane* attention = scratch + size.frames;
  PairTextGradient<Lane> text;

  // The cosine. Neither has the norm of a zero increment a gradient.
  const Lane grad_score = grad_similarity * state.inverse_norms;
  const Lane half = T(-0.5) * grad_similarity * state.similarity;
  const Lane grad_text = select_greater(state.squared_text, tiny, half / state.squared_text, zero);
  const Lane grad_video =
      select_greater(state.squared_video, tiny, half / state.squared_video, zero);
  const Lane grad_increment =
      grad_text + select_greater(state.squared_increment, zero,
                                 T(0.5) * grad_norm / state.increment_norm, zero);
  text.squared_norm = grad_text;
  sink.basis_gram(grad_increment, state.coefficients);
  sink.frame_gram(grad_video, state.pool);
  sink.basis_frame(grad_score, state.coefficients, state.pool);

  for (int k = 0; k < size.basis; ++k) {
    coefficients[k] +=
        grad_score * state.basis_pool[k] +
        T(2) * (grad_text * products(first_basis + k) + grad_increment * state.basis_form[k]);
  }

  // The pooling.
  for (int f = 0; f < size.frames; ++f)
    pool[f] = grad_score * products(first_frame + f) + T(2) * grad_video * state.frame_form[f];
  add_transposed_product(video.basis_frame, size.basis, size.frames, state.coefficients, grad_score,
                         pool);
  softmax_adjoint<T>(size.frames, state.pool, pool);

  // LN3: coefficients = (hidden * r3, 1).
  Lane grad_r3 = dot<T>(size.hidden, coefficients, state.hidden);
  const Lane grad_hidden_variance = T(-0.5) * grad_r3 * state.r3 * state.r3 * state.r3;
  sink.hidden_gram(grad_hidden_variance, state.hidden);

  // LN2: hidden = (attention * r2, 1).
  Lane grad_r2(T(0));
  for (int k = 0; k < size.attention; ++k) {
    const Lane grad_hidden =
        coefficients[k] * state.r3 + T(2) * grad_hidden_variance * state.hidden_form[k];
    grad_r2 += grad_hidden * state.attention[k];
    attention[k] = grad_hidden * state.r2;
  }
  const Lane grad_attention_variance = T(-0.5) * grad_r2 * state.r2 * state.r2 * state.r2;
  for (int k = 0; k < size.attention; ++k)
    attention[k] += T(2) * grad_attention_variance * state.attention_form[k];

  // The basis rows are done with; what follows may overwrite the products.
  for (int k = 0; k < size.basis; ++k)
    sink.product(first_basis + k, T(2) * grad_text * state.coefficients[k]);
  for (int f = 0; f < size.frames; ++f)
    sink.product(first_frame + f,
                 grad_score * state.pool[f] + pool[f] * constants.inverse_temperature);

  // The softmax over frames.
  sink.value_gram(grad_attention_variance, state.attention);
  Lane grad_r1(T(0));
  for (int head = 0; head < video.heads; ++head) {
    const int start = head * size.frames;
    softmax_adjoint<T>(size.frames, state.attention + start, attention + start);
    for (int k = start; k < start + size.frames; ++k) {
      const Lane offset = attention[k] * state.r1;
      grad_r1 += attention[k] * (video.key_offset[k] - products(k));
      sink.key(k, attention[k], offset);
      sink.product(k, -offset);
    }
  }
  text.gap_variance = T(-0.5) * grad_r1 * state.r1 * state.r1 * state.r1;
  return text;
}

// Gradient of one pair's similarity, norm and coefficients under the streaming loss; returns what
// the pair adds to the gradient of logit_scale. Text arrays are read through load(array).
template <typename T, typename Lane, typename Load>
GAREVLA_INLINE Lane statistics_pair_gradient(const StatisticsGradient<T>& statistics,
                                             const PairSizes& size, const PairState<Lane>& state,
                                             const Load& load, Lane* scratch, Lane& grad_similarity,
                                             Lane& grad_norm, Lane* grad_coefficients) {
  const Lane logit = statistics.logit_scale * state.similarity;
  // The logsumexps contain the logit, but for rounding.
  const Lane zero(T(0));
  const Lane row = exp_nonpositive(minimum(logit - load(statistics.row_logsumexp), zero));
  const Lane column = exp_nonpositive(minimum(logit - statistics.column_logsumexp, zero));
  const Lane grad_logit =
      load(statistics.grad_row_logsumexp) * row + statistics.grad_column_logsumexp * column;
  grad_similarity = statistics.logit_scale * grad_logit + load(statistics.grad_target);
  grad_norm = load(statistics.norm_slope) * (state.increment_norm - load(statistics.norm_mean));
  for (int k = 0; k < size.basis; ++k)
    scratch[k] = state.coefficients[k] - statistics.coefficient_mean[k];
  multiply(statistics.covariance_slope, size.basis, size.basis, scratch, grad_coefficients);
  for (int k = 0; k < size.basis; ++k) grad_coefficients[k] += Lane(statistics.mean_slope[k]);
  return grad_logit * state.similarity;
}

}  // namespace GAREVLA_VARIANT
}  // namespace garevla
