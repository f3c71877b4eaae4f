// The operators' schemas; garevla/ops/native.py adds fake kernels and autograd.
//
// `factors` are in the order of factor_table (pair_inputs.h). Gradients come back in the order
// text, factors without the mask.

#include "registration.h"

#define PAIRS "Tensor text, Tensor[] factors, float pool_temperature, float[] layer_norm_eps"
#define STATISTICS PAIRS ", Tensor logit_scale, Tensor targets, Tensor? samples"

static const garevla::Definitions pair_operators(
    GAREVLA_NAME(garevla),
    {
        // (B, A) similarities.
        "pair_similarity(" PAIRS ") -> Tensor",

        // (B, A) similarities, (B, K, A) coefficients, (B, A) increment norms.
        "pair_terms(" PAIRS ") -> (Tensor, Tensor, Tensor)",
        "pair_terms_backward(" PAIRS
        ", Tensor grad_similarity, Tensor? grad_coefficients, Tensor? grad_norm) -> Tensor[]",

        // Row logsumexp (A), column logsumexp (B), similarity of each text with its target (A),
        // mean and unbiased variance of the increments' norm over the videos (A) and (A), mean (B,
        // K) and unbiased covariance (B, K, K) of the coefficients over the texts, coefficients (A,
        // n, K) of the pairs in samples (A, n), empty without, and what rounding took from the
        // coefficients' mean (B, K).
        "pair_statistics(" STATISTICS
        ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        // gradients: of row and column logsumexp, target similarity, norm variance, coefficient
        // mean and covariance. Returns the gradients and, last, that of logit_scale (0-d).
        "pair_statistics_backward(" STATISTICS
        ", Tensor row_logsumexp, Tensor column_logsumexp, Tensor norm_mean, Tensor"
        " coefficient_mean, Tensor[] gradients, Tensor? grad_sampled) -> Tensor[]",

        // Directional diversity (0-d) of unit coefficients (B, K, A) in a basis (B, K, D), and its
        // gradients with respect to both, empty where not asked for.
        "direction(Tensor unit_coefficients, Tensor basis, float alpha, bool with_gradient)"
        " -> (Tensor, Tensor, Tensor)",
    });

// b videos, a texts; garevla/ops/hidden/tiles.py says what they compute. `dropout` 0 is none.
#define DROPOUT "float dropout, int seed, int first_text, int first_video"
#define GAP                                                                          \
  "Tensor coefficients, Tensor video_hidden, Tensor text_hidden, Tensor shift, str " \
  "activation, " DROPOUT
#define INCREMENTS "Tensor increments, Tensor text"

static const garevla::Definitions tile_operators(
    GAREVLA_NAME(garevla_tiles),
    {
        // Hidden vectors (b, a, H); gradients of the first four arguments.
        "gap_hidden(" GAP ", Tensor(a!) out) -> ()",
        "gap_hidden_backward(" GAP ", Tensor grad) -> (Tensor, Tensor, Tensor, Tensor)",

        // Hidden vectors (b, a, H) of mixed values (b, a, 2*H); returns inverse deviations (b, a).
        "attention_hidden(Tensor mixed, Tensor shift, float eps, " DROPOUT
        ", Tensor(a!) out) -> Tensor",
        // The mixed values' gradient; returns that of shift (2*H).
        "attention_hidden_backward(Tensor grad, Tensor hidden, Tensor inverse, " DROPOUT
        ", Tensor(a!) out) -> Tensor",

        // Products with the texts and squared norms (b, a), mean and sum of squared deviations (b,
        // D) over the texts, empty where not asked for.
        "contract(" INCREMENTS ", bool with_moments) -> (Tensor, Tensor, Tensor, Tensor)",
        // Adds to out (b, a, D); returns its sum (D) and the texts' gradient (a, D).
        "increment_gradient(" INCREMENTS
        ", Tensor grad_text_product, Tensor grad_norm_product, Tensor[] grad_moments,"
        " Tensor(a!) out) -> (Tensor, Tensor)",

        // Sum over a tile's texts of the directional diversity (0-d), and the increments' gradient;
        // increments (B, a, D) of all videos, norm (B, a) their lengths.
        "diversity(Tensor increments, Tensor norm, float alpha) -> Tensor",
        "diversity_gradient(Tensor increments, Tensor norm, float alpha, Tensor grad_output)"
        " -> Tensor",
    });

static const garevla::Definitions cpu_operators(
    GAREVLA_NAME(garevla_cpu),
    {
        // a (M, K) b (K, N), operands rounded to bfloat16, sums in float32.
        "product_of_rounded(Tensor a, Tensor b) -> Tensor",
    });
