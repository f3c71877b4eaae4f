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
