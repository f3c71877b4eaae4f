"""The arithmetic of a tile of text-video pairs and its adjoint, shared by the pair kernels.

A tile is BLOCK_A texts (rows) with one video. Columns k of (BLOCK_A, K_PAD) tiles stand for the
video's basis: k < H·F for heads and frames, H·F for LN3's constant and H·F + 1 for the last bias;
the rest is padding, zero throughout, so that attention, hidden vector and coefficients, and their
Gram matrices padded with zeros, all have one shape. Derivation and symbols: docs/derivation.md;
compiled namesake: csrc/pair_arithmetic.h.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def matmul(a, b, PRECISION: tl.constexpr):
    """a (M, N) · b (N, P), accumulated in the type of ``a``."""
    if PRECISION == "bf16":
        product = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif PRECISION == "bf16 rounding":  # the interpreter cannot multiply bfloat16
        product = tl.dot(a.to(tl.bfloat16).to(a.dtype), b.to(tl.bfloat16).to(b.dtype))
    else:
        product = tl.dot(a, b, input_precision=PRECISION, out_dtype=a.dtype)
    return product


@triton.jit
def load_matrix(
    matrix,  # (rows, columns) row-major
    rows,  # (M) indices
    num_rows,
    columns,  # (N) indices
    num_columns,
):
    """A tile (M, N) of a matrix, zero outside."""
    inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    return tl.load(matrix + rows[:, None] * num_columns + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_matrix(
    matrix,  # (rows, columns) row-major
    rows,  # (M) indices
    num_rows,
    columns,  # (N) indices
    num_columns,
    values,  # (M, N)
):
    """The reverse of load_matrix."""
    inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    tl.store(matrix + rows[:, None] * num_columns + columns[None, :], values, mask=inside)


@triton.jit
def head_sums(
    x,  # (M, N)
    head,  # (N) head of each column, HEADS or more in the padding
    HEADS: tl.constexpr,
):
    """Each column's sum over the columns of its head, (M, N)."""
    if HEADS == 1:
        total = tl.broadcast_to(tl.sum(x, 1)[:, None], x.shape)
    else:
        total = tl.zeros_like(x)
        for h in tl.static_range(HEADS):
            own = (head == h)[None, :]
            total = tl.where(own, tl.sum(tl.where(own, x, 0.0), 1)[:, None], total)
    return total


@triton.jit
def masked_softmax(
    x,  # (M, N) logits
    valid,  # (N)
    head,  # (N)
    HEADS: tl.constexpr,
):
    """Softmax over the valid columns of each head; exactly 0 at the others."""
    x = tl.where(valid[None, :], x, float("-inf"))
    if HEADS == 1:
        top = tl.broadcast_to(tl.max(x, 1)[:, None], x.shape)
    else:
        top = tl.zeros_like(x)
        for h in tl.static_range(HEADS):
            own = (head == h)[None, :]
            top = tl.where(own, tl.max(tl.where(own, x, float("-inf")), 1)[:, None], top)
    weights = tl.exp(x - top)
    total = head_sums(weights, head, HEADS)
    return weights / tl.where(valid[None, :], total, 1.0)


@triton.jit
def softmax_adjoint(
    probabilities,  # (M, N)
    gradient,  # (M, N) of the probabilities
    head,  # (N)
    HEADS: tl.constexpr,
):
    """Gradient of the logits."""
    return probabilities * (gradient - head_sums(probabilities * gradient, head, HEADS))


@triton.jit
def text_products(
    text,  # (A, D)
    text_mean,  # (A) mean over D
    texts,  # (BLOCK_A) int64 indices
    num_texts,
    rows,  # (R, D) of this video: keys, frames, basis
    mean_frame,  # (D) of this video, centred
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    FRAMES: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_D: tl.constexpr,
    K_PAD: tl.constexpr,
    F_PAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Dot products with keys (BLOCK_A, K_PAD), frames (BLOCK_A, F_PAD) and basis (BLOCK_A, K_PAD),
    and the gaps' variance (BLOCK_A)."""
    ATTENTION: tl.constexpr = HEADS * FRAMES
    dtype = text.dtype.element_ty
    k = tl.arange(0, K_PAD)
    f = tl.arange(0, F_PAD)
    inside = texts < num_texts
    mean = tl.load(text_mean + texts, mask=inside, other=0.0)
    text_key = tl.zeros((BLOCK_A, K_PAD), dtype)
    text_frame = tl.zeros((BLOCK_A, F_PAD), dtype)
    text_basis = tl.zeros((BLOCK_A, K_PAD), dtype)
    squared_gap = tl.zeros((BLOCK_A,), dtype)
    frame_rows = rows + ATTENTION * DIM
    basis_rows = frame_rows + FRAMES * DIM
    for start in range(0, DIM, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        tile = load_matrix(text, texts, num_texts, d, DIM)
        keys = load_matrix(rows, k, ATTENTION, d, DIM)
        text_key += matmul(tile, tl.trans(keys), PRECISION)
        frames = load_matrix(frame_rows, f, FRAMES, d, DIM)
        text_frame += matmul(tile, tl.trans(frames), PRECISION)
        basis = load_matrix(basis_rows, k, ATTENTION + 2, d, DIM)
        text_basis += matmul(tile, tl.trans(basis), PRECISION)
        # The gap itself: as a difference of squares its variance would cancel where it is small.
        centre = tl.load(mean_frame + d, mask=d < DIM, other=0.0)
        gap = tl.where((d < DIM)[None, :], (tile - mean[:, None]) - centre[None, :], 0.0)
        squared_gap += tl.sum(gap * gap, 1)
    return text_key, text_frame, text_basis, squared_gap / DIM


@triton.jit
def pair_forward(
    text_key,  # (BLOCK_A, K_PAD)
    text_frame,  # (BLOCK_A, F_PAD)
    text_basis,  # (BLOCK_A, K_PAD)
    gap_variance,  # (BLOCK_A)
    squared_norm,  # (BLOCK_A) ‖t‖²
    frame_mask,  # (F), and all that follows, of this video
    key_offset,  # (H·F)
    key_bias,  # (H·F)
    value_gram,  # (H·F, H·F)
    hidden_gram,  # (H·F+1, H·F+1)
    basis_gram,  # (K, K)
    frame_gram,  # (F, F)
    basis_frame,  # (K, F)
    GAP_EPS: tl.constexpr,
    VALUE_EPS: tl.constexpr,
    HIDDEN_EPS: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    TINY: tl.constexpr,
    HEADS: tl.constexpr,
    FRAMES: tl.constexpr,
    K_PAD: tl.constexpr,
    F_PAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores a tile: similarity, ‖Δ‖, coefficients (BLOCK_A, K_PAD), and more for the adjoint."""
    ATTENTION: tl.constexpr = HEADS * FRAMES
    k = tl.arange(0, K_PAD)
    f = tl.arange(0, F_PAD)
    head = k // FRAMES
    valid_key = tl.load(frame_mask + k % FRAMES, mask=k < ATTENTION, other=0).to(tl.int1) & (
        k < ATTENTION
    )
    valid_frame = tl.load(frame_mask + f, mask=f < FRAMES, other=0).to(tl.int1) & (f < FRAMES)

    # The gap's attention over the frames, per head.
    r1 = 1.0 / tl.sqrt(gap_variance + GAP_EPS)
    offset = tl.load(key_offset + k, mask=valid_key, other=0.0)
    bias = tl.load(key_bias + k, mask=valid_key, other=0.0)
    gap_key = offset[None, :] - text_key
    attention = masked_softmax(bias[None, :] + gap_key * r1[:, None], valid_key, head, HEADS)

    # Through LN2 and LN3, whose variances are quadratic forms.
    gram = load_matrix(value_gram, k, ATTENTION, k, ATTENTION)
    attention_form = matmul(attention, gram, PRECISION)
    r2 = 1.0 / tl.sqrt(tl.sum(attention * attention_form, 1) + VALUE_EPS)
    hidden = attention * r2[:, None] + tl.where(k == ATTENTION, 1.0, 0.0).to(r2.dtype)[None, :]
    gram = load_matrix(hidden_gram, k, ATTENTION + 1, k, ATTENTION + 1)
    hidden_form = matmul(hidden, gram, PRECISION)
    r3 = 1.0 / tl.sqrt(tl.sum(hidden * hidden_form, 1) + HIDDEN_EPS)
    last = tl.where(k == ATTENTION + 1, 1.0, 0.0).to(r3.dtype)
    coefficients = hidden * r3[:, None] + last[None, :]
    gram = load_matrix(basis_gram, k, ATTENTION + 2, k, ATTENTION + 2)
    basis_form = matmul(coefficients, gram, PRECISION)
    squared_increment = tl.sum(coefficients * basis_form, 1)
    increment_norm = tl.sqrt(tl.where(squared_increment > 0, squared_increment, 0.0))

    # The text-conditioned video, pooled by the uncorrected text.
    pool = masked_softmax(text_frame / TEMPERATURE, valid_frame, f // F_PAD, 1)
    gram = load_matrix(basis_frame, k, ATTENTION + 2, f, FRAMES)
    basis_pool = matmul(pool, tl.trans(gram), PRECISION)
    gram = load_matrix(frame_gram, f, FRAMES, f, FRAMES)
    frame_form = matmul(pool, gram, PRECISION)
    squared_video = tl.sum(pool * frame_form, 1)

    score = tl.sum(pool * text_frame, 1) + tl.sum(coefficients * basis_pool, 1)
    squared_text = squared_norm + 2 * tl.sum(coefficients * text_basis, 1) + squared_increment
    # One root each: their product could underflow.
    inverse_norms = 1.0 / tl.sqrt(tl.where(squared_text > TINY, squared_text, TINY))
    inverse_norms *= 1.0 / tl.sqrt(tl.where(squared_video > TINY, squared_video, TINY))
    similarity = score * inverse_norms
    return (
        similarity,
        increment_norm,
        coefficients,
        gap_key,
        attention,
        attention_form,
        hidden,
        hidden_form,
        basis_form,
        basis_pool,
        pool,
        frame_form,
        r1,
        r2,
        r3,
        squared_increment,
        squared_text,
        squared_video,
        inverse_norms,
    )


@triton.jit
def score_tile(
    texts,  # (BLOCK_A) int64 indices
    num_texts,
    video,  # int64
    text,  # (A, D)
    text_mean,  # (A)
    squared_norm,  # (A)
    rows,  # (B, R, D)
    frame_mask,  # (B, F)
    key_offset,  # (B, H·F)
    key_bias,  # (B, H·F)
    mean_frame,  # (B, D)
    value_gram,  # (B, H·F, H·F)
    hidden_gram,  # (B, H·F+1, H·F+1)
    basis_gram,  # (B, K, K)
    frame_gram,  # (B, F, F)
    basis_frame,  # (B, K, F)
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    FRAMES: tl.constexpr,
    GAP_EPS: tl.constexpr,
    VALUE_EPS: tl.constexpr,
    HIDDEN_EPS: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    TINY: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_D: tl.constexpr,
    K_PAD: tl.constexpr,
    F_PAD: tl.constexpr,
    PRODUCT_PRECISION: tl.constexpr,
    GRAM_PRECISION: tl.constexpr,
):
    """Scores a tile of texts with one video: text-frame and text-basis products, and the state."""
    ATTENTION: tl.constexpr = HEADS * FRAMES
    BASIS: tl.constexpr = ATTENTION + 2
    text_key, text_frame, text_basis, gap_variance = text_products(
        text,
        text_mean,
        texts,
        num_texts,
        rows + video * ((ATTENTION + FRAMES + BASIS) * DIM),
        mean_frame + video * DIM,
        DIM,
        HEADS,
        FRAMES,
        BLOCK_A,
        BLOCK_D,
        K_PAD,
        F_PAD,
        PRODUCT_PRECISION,
    )
    state = pair_forward(
        text_key,
        text_frame,
        text_basis,
        gap_variance,
        tl.load(squared_norm + texts, mask=texts < num_texts, other=0.0),
        frame_mask + video * FRAMES,
        key_offset + video * ATTENTION,
        key_bias + video * ATTENTION,
        value_gram + video * (ATTENTION * ATTENTION),
        hidden_gram + video * ((ATTENTION + 1) * (ATTENTION + 1)),
        basis_gram + video * (BASIS * BASIS),
        frame_gram + video * (FRAMES * FRAMES),
        basis_frame + video * (BASIS * FRAMES),
        GAP_EPS,
        VALUE_EPS,
        HIDDEN_EPS,
        TEMPERATURE,
        TINY,
        HEADS,
        FRAMES,
        K_PAD,
        F_PAD,
        GRAM_PRECISION,
    )
    return text_frame, text_basis, state


@triton.jit
def pair_adjoint(
    grad_similarity,  # (BLOCK_A)
    grad_norm,  # (BLOCK_A) gradient of ‖Δ‖
    grad_coefficients,  # (BLOCK_A, K_PAD) from outside
    text_frame,  # (BLOCK_A, F_PAD)
    text_basis,  # (BLOCK_A, K_PAD)
    state,  # what pair_forward returned
    basis_frame,  # (K, F) of this video
    TEMPERATURE: tl.constexpr,
    TINY: tl.constexpr,
    HEADS: tl.constexpr,
    FRAMES: tl.constexpr,
    K_PAD: tl.constexpr,
    F_PAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The adjoint of pair_forward.

    Returns the gradients of the three products, the attention's logits, the gap's variance and
    ‖t‖², and the weights w of the Gram matrices' gradients Σ_i w_i x_i x_iᵀ: of value, hidden,
    basis and frame Gram, and of the basis-frame products.
    """
    ATTENTION: tl.constexpr = HEADS * FRAMES
    k = tl.arange(0, K_PAD)
    f = tl.arange(0, F_PAD)
    similarity, increment_norm, coefficients, gap_key = state[:4]
    attention, attention_form, hidden, hidden_form = state[4:8]
    basis_form, basis_pool, pool, frame_form = state[8:12]
    r1, r2, r3, squared_increment, squared_text, squared_video, inverse_norms = state[12:]

    # The cosine. A squared norm that was clamped has no gradient, nor has a zero increment's norm.
    grad_score = grad_similarity * inverse_norms
    half = -0.5 * grad_similarity * similarity
    open_text = squared_text > TINY
    grad_text = tl.where(open_text, half / tl.where(open_text, squared_text, 1.0), 0.0)
    open_video = squared_video > TINY
    grad_video = tl.where(open_video, half / tl.where(open_video, squared_video, 1.0), 0.0)
    moved = squared_increment > 0
    grad_increment = grad_text + tl.where(
        moved, 0.5 * grad_norm / tl.where(moved, increment_norm, 1.0), 0.0
    )
    grad_coefficients += grad_score[:, None] * basis_pool
    grad_coefficients += 2 * grad_text[:, None] * text_basis
    grad_coefficients += 2 * grad_increment[:, None] * basis_form

    # The pooling.
    gram = load_matrix(basis_frame, k, ATTENTION + 2, f, FRAMES)
    grad_pool = text_frame + matmul(coefficients, gram, PRECISION)
    grad_pool = grad_score[:, None] * grad_pool + 2 * grad_video[:, None] * frame_form
    grad_pool = softmax_adjoint(pool, grad_pool, f // F_PAD, 1)

    # LN3: coefficients = (hidden · r3, 1), and LN2: hidden = (attention · r2, 1).
    grad_hidden_variance = -0.5 * tl.sum(grad_coefficients * hidden, 1) * r3 * r3 * r3
    grad_hidden = grad_coefficients * r3[:, None] + 2 * grad_hidden_variance[:, None] * hidden_form
    grad_value_variance = -0.5 * tl.sum(grad_hidden * attention, 1) * r2 * r2 * r2
    grad_logits = grad_hidden * r2[:, None] + 2 * grad_value_variance[:, None] * attention_form
    grad_logits = softmax_adjoint(attention, grad_logits, k // FRAMES, HEADS)

    grad_text_key = -grad_logits * r1[:, None]
    grad_text_frame = grad_score[:, None] * pool + grad_pool / TEMPERATURE
    grad_text_basis = 2 * grad_text[:, None] * coefficients
    grad_gap_variance = -0.5 * tl.sum(grad_logits * gap_key, 1) * r1 * r1 * r1
    return (
        grad_text_key,
        grad_text_frame,
        grad_text_basis,
        grad_logits,
        grad_gap_variance,
        grad_text,
        grad_value_variance,
        grad_hidden_variance,
        grad_increment,
        grad_video,
        grad_score,
    )


@triton.jit
def weighted_outer(
    weight,  # (M)
    x,  # (M, N)
    y,  # (M, P)
    PRECISION: tl.constexpr,
):
    """Σ_m weight_m x_m y_mᵀ, (N, P)."""
    return matmul(tl.trans(weight[:, None] * x), y, PRECISION)
