// The operators' schemas; garevla/ops/native.py adds fake kernels and autograd.
//
// `factors` are in the order of factor_table (pair_inputs.h). Gradients come back in the order
// text, factors without the mask.

#include <torch/library.h>

#define PAIRS "Tensor text, Tensor[] factors, float pool_temperature, float[] layer_norm_eps"
#define STATISTICS PAIRS ", Tensor logit_scale, Tensor targets, Tensor? samples"

TORCH_LIBRARY(garevla, m) {
  // (B, A) similarities.
  m.def("pair_similarity(" PAIRS ") -> Tensor");

  // (B, A) similarities, (B, K, A) coefficients, (B, A) increment norms.
  m.def("pair_terms(" PAIRS ") -> (Tensor, Tensor, Tensor)");
  m.def("pair_terms_backward(" PAIRS
        ", Tensor grad_similarity, Tensor? grad_coefficients, Tensor? grad_norm) -> Tensor[]");

  // Row logsumexp (A), column logsumexp (B), similarity of each text with its target (A), mean and
  // unbiased variance of the increments' norm over the videos (A) and (A), mean (B, K) and unbiased
  // covariance (B, K, K) of the coefficients over the texts, coefficients (A, n, K) of the pairs in
  // samples (A, n), empty without.
  m.def("pair_statistics(" STATISTICS
        ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // gradients: of row and column logsumexp, target similarity, norm variance, coefficient mean and
  // covariance. Returns the gradients and, last, that of logit_scale (0-d).
  m.def("pair_statistics_backward(" STATISTICS
        ", Tensor row_logsumexp, Tensor column_logsumexp, Tensor norm_mean, Tensor"
        " coefficient_mean, Tensor[] gradients, Tensor? grad_sampled) -> Tensor[]");

  // Directional diversity (0-d) of unit coefficients (B, K, A) in a basis (B, K, D), and its
  // gradients with respect to both, empty where not asked for.
  m.def(
      "direction(Tensor unit_coefficients, Tensor basis, float alpha, bool with_gradient)"
      " -> (Tensor, Tensor, Tensor)");
}

// b videos, a texts; garevla/ops/hidden/tiles.py says what they compute. `dropout` 0 is none.
#define DROPOUT "float dropout, int seed, int first_text, int first_video"
#define GAP                                                                          \
  "Tensor coefficients, Tensor video_hidden, Tensor text_hidden, Tensor shift, str " \
  "activation, " DROPOUT
#define INCREMENTS "Tensor increments, Tensor text"

TORCH_LIBRARY(garevla_tiles, m) {
  // Hidden vectors (b, a, H); gradients of the first four arguments.
  m.def("gap_hidden(" GAP ", Tensor(a!) out) -> ()");
  m.def("gap_hidden_backward(" GAP ", Tensor grad) -> (Tensor, Tensor, Tensor, Tensor)");

  // Hidden vectors (b, a, H) of mixed values (b, a, 2*H); returns inverse deviations (b, a).
  m.def("attention_hidden(Tensor mixed, Tensor shift, float eps, " DROPOUT
        ", Tensor(a!) out) -> Tensor");
  // The mixed values' gradient; returns that of shift (2*H).
  m.def("attention_hidden_backward(Tensor grad, Tensor hidden, Tensor inverse, " DROPOUT
        ", Tensor(a!) out) -> Tensor");

  // Products with the texts and squared norms (b, a), mean and sum of squared deviations (b, D)
  // over the texts, empty where not asked for.
  m.def("contract(" INCREMENTS ", bool with_moments) -> (Tensor, Tensor, Tensor, Tensor)");
  // Adds to out (b, a, D); returns its sum (D) and the texts' gradient (a, D).
  m.def("increment_gradient(" INCREMENTS
        ", Tensor grad_text_product, Tensor grad_norm_product, Tensor[] grad_moments,"
        " Tensor(a!) out) -> (Tensor, Tensor)");

  // Sum over a tile's texts of the directional diversity (0-d), and the increments' gradient;
  // increments (B, a, D) of all videos, norm (B, a) their lengths.
  m.def("diversity(Tensor increments, Tensor norm, float alpha) -> Tensor");
  m.def(
      "diversity_gradient(Tensor increments, Tensor norm, float alpha, Tensor grad_output)"
      " -> Tensor");
}
