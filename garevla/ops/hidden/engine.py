"""The hidden-layer operations in a stream of tiles: what is kept grows as A + B, or as A·B where
the scores themselves are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from garevla.ops.hidden import scores as pair
from garevla.ops.hidden.factors import FACTORS, NO_GRADIENT, HiddenPairs, axis, seed_and_origin
from garevla.ops.hidden.tiles import (
    LEAST_ROWS_ON_GPU,
    ComposedTiles,
    Dropout,
    MomentsGradient,
    Tile,
    TileKernels,
    TileMoments,
)
from garevla.utils.numerics import variance_slope


class Moments(NamedTuple):
    mean: Tensor  # (B, D)
    variance: Tensor  # (B, D) unbiased


class HiddenTerms(NamedTuple):
    """What is known of every pair, texts on the last axis; the increments' moments over texts."""

    similarity: Tensor  # (B, A)
    norm: Tensor  # (B, A) ‖Δ_ij‖
    mean: Tensor  # (B, D); empty where not asked for, as the variance
    variance: Tensor  # (B, D) unbiased
    direction: Tensor  # 0-d directional diversity; 0 where not asked for


class HiddenStatistics(NamedTuple):
    """Statistics of all pairs, O(A + B·D) numbers."""

    row_logsumexp: Tensor  # (A)
    column_logsumexp: Tensor  # (B)
    target_similarity: Tensor  # (A)
    norm_mean: Tensor  # (A) of ‖Δ_ij‖ over the videos
    norm_variance: Tensor  # (A) unbiased
    mean: Tensor  # (B, D) of the increments over the texts
    variance: Tensor  # (B, D) unbiased
    direction: Tensor  # 0-d; 0 where not asked for


class _Position(NamedTuple):
    """A tile, where it lies among all pairs, and what its texts share."""

    tile: Tile
    texts: slice
    videos: slice
    squared_norm: Tensor  # (a) of the texts
    inverse_gap: Tensor  # (b, a)
    attention: pair.Attention | None
    centered_text: Tensor  # (a, D) wide
    centered_video: Tensor  # (b, D) wide


class _Diversity(NamedTuple):
    """The exact directional diversity, of increments that lie in memory."""

    alpha: float
    kernels: ComposedTiles


Upstream = Callable[[_Position, pair.Scores], tuple[Tensor, Tensor]]
"""From a tile's scores, ∂L/∂s_ij and ∂L/∂‖Δ_ij‖, (b, a) each."""


class HiddenEngine:
    """Walks the tiles of all pairs with a backend's kernels.

    Args:
        pairs: the factors.
        pool_temperature: τ_p of the pooling.
        alpha: of the directional diversity; None leaves it out.
        kernels: the backend's.
    """

    def __init__(
        self,
        pairs: HiddenPairs,
        pool_temperature: float,
        alpha: float | None,
        kernels: TileKernels,
    ) -> None:
        self.layer = pairs.layer
        # Products of strided tensors may differ in their last bits.
        self.factors = {name: value.contiguous() for name, value in pairs.factors.items()}
        self.seed: tuple[int, int, int] | None = None
        if pairs.seed is not None:
            seed, first_text, first_video = map(int, seed_and_origin(pairs.seed))
            self.seed = seed, first_text, first_video
        self.pool_temperature = pool_temperature
        self.kernels, self.diversity = kernels, None
        if alpha is not None:
            self.diversity = _Diversity(alpha, kernels.explicit)
            self.kernels = kernels.explicit
        self.num_texts, self.num_videos = len(pairs.text), len(self.factors["frames"])

    def terms(self, with_moments: bool) -> HiddenTerms:
        """Scores and norms of all pairs."""
        text, shape = self.factors["text"], (self.num_videos, self.num_texts)
        similarity, norm = text.new_empty(shape), text.new_empty(shape)
        moments = _RunningMoments(self.factors["mean_frame"])
        direction = text.new_zeros(())
        for at in self._tiles():
            found = self.kernels.forward(at.tile, with_moments)
            scored = self._scores(at, found.products)
            similarity[at.videos, at.texts] = scored.similarity
            norm[at.videos, at.texts] = scored.norm
            if found.moments is not None:
                moments.add(at, found.moments)
            if (wanted := self.diversity) is not None:
                direction += wanted.kernels.diversity(found.kept, scored.norm, wanted.alpha)
        mean, variance = text.new_empty(0), text.new_empty(0)
        if with_moments:
            mean, variance = moments.finish()
        return HiddenTerms(similarity, norm, mean, variance, direction / self.num_texts)

    def terms_backward(
        self, mean: Tensor | None, grads: tuple[Tensor | None, ...]
    ) -> dict[str, Tensor]:
        """The factors' gradients.

        Args:
            mean: as returned, where the moments were asked for.
            grads: of the fields of HiddenTerms, in their order; None for 0.
        """
        similarity, norm, grad_mean, grad_variance, grad_direction = grads

        def upstream(at: _Position, found: pair.Scores) -> tuple[Tensor, Tensor]:
            return (
                _part(similarity, at, found.similarity),
                _part(norm, at, found.norm),
            )

        moments = self._moments_gradient(mean, grad_mean, grad_variance)
        return self._backward(upstream, moments, grad_direction)

    def statistics(self, logit_scale: Tensor, targets: Tensor) -> HiddenStatistics:
        """Statistics of all pairs."""
        text = self.factors["text"]
        row = text.new_full((self.num_texts,), -torch.inf)
        column = text.new_full((self.num_videos,), -torch.inf)
        target = text.new_empty(self.num_texts)
        norm_mean, norm_squares = text.new_zeros(self.num_texts), text.new_zeros(self.num_texts)
        moments = _RunningMoments(self.factors["mean_frame"])
        direction = text.new_zeros(())
        for at in self._tiles():
            found = self.kernels.forward(at.tile, True)
            scored = self._scores(at, found.products)
            logits = scored.similarity * logit_scale
            row[at.texts] = torch.logaddexp(row[at.texts], logits.logsumexp(dim=0))
            column[at.videos] = torch.logaddexp(column[at.videos], logits.logsumexp(dim=1))
            videos, inside = _targets(at, targets)
            picked = scored.similarity.gather(0, videos).squeeze(0)
            target[at.texts] = torch.where(inside, picked, target[at.texts])
            _add_moments(
                (norm_mean[at.texts], norm_squares[at.texts]),
                at.videos.start,
                _moments_of(scored.norm, dim=0),
                len(scored.norm),
            )
            assert found.moments is not None
            moments.add(at, found.moments)
            if (wanted := self.diversity) is not None:
                direction += wanted.kernels.diversity(found.kept, scored.norm, wanted.alpha)
        norm_variance = norm_squares / max(self.num_videos - 1, 1)
        return HiddenStatistics(
            row,
            column,
            target,
            norm_mean,
            norm_variance,
            *moments.finish(),
            direction / self.num_texts,
        )

    def statistics_backward(
        self,
        logit_scale: Tensor,
        targets: Tensor,
        saved: HiddenStatistics,
        grads: HiddenStatistics,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The factors' gradients, and that (0-d) of logit_scale.

        Args:
            saved: as returned.
            grads: of the same.
        """
        slope = grads.norm_variance * variance_slope(self.num_videos)
        grad_norm_mean = grads.norm_mean / self.num_videos
        grad_scale = logit_scale.new_zeros(())

        def upstream(at: _Position, found: pair.Scores) -> tuple[Tensor, Tensor]:
            nonlocal grad_scale
            logits = found.similarity * logit_scale
            grad = grads.row_logsumexp[at.texts] * (logits - saved.row_logsumexp[at.texts]).exp()
            column = saved.column_logsumexp[at.videos].unsqueeze(1)
            grad += grads.column_logsumexp[at.videos].unsqueeze(1) * (logits - column).exp()
            grad_scale = grad_scale + (grad * found.similarity).sum()
            grad *= logit_scale
            videos, inside = _targets(at, targets)
            grad_target = torch.where(inside, grads.target_similarity[at.texts], 0.0)
            grad.scatter_add_(0, videos, grad_target.unsqueeze(0))
            deviation = found.norm - saved.norm_mean[at.texts]
            return grad, torch.addcmul(grad_norm_mean[at.texts], slope[at.texts], deviation)

        moments = self._moments_gradient(saved.mean, grads.mean, grads.variance)
        return self._backward(upstream, moments, grads.direction), grad_scale

    def _moments_gradient(
        self, mean: Tensor | None, grad_mean: Tensor | None, grad_variance: Tensor | None
    ) -> MomentsGradient | None:
        if mean is None or grad_mean is None or grad_variance is None:
            return None
        slope = grad_variance * variance_slope(self.num_texts)
        return MomentsGradient(grad_mean / self.num_texts, slope, mean)

    def _backward(
        self,
        upstream: Upstream,
        grad_moments: MomentsGradient | None,
        grad_direction: Tensor | None,
    ) -> dict[str, Tensor]:
        kind = self.layer.kind
        grads = {
            name: torch.zeros(value.shape, dtype=value.dtype, device=value.device)
            for name, value in self.factors.items()
            if name not in NO_GRADIENT
        }
        wide = pair.wide_dtype(self.factors["text"])
        # Gathered wide, and centered at the end.
        grad_centered = torch.zeros_like(self.factors["text"], dtype=wide)
        for at in self._tiles():
            found = self.kernels.forward(at.tile, False)
            scored = self._scores(at, found.products)
            grad_similarity, grad_norm = upstream(at, scored)
            text, factors = at.tile.factors["text"], at.tile.factors
            grad_products, grad_text, grad_squared, gradients = pair.scores_adjoint(
                grad_similarity, grad_norm, scored, text, factors, self.pool_temperature
            )
            parts = [gradients]
            grad_text += 2 * grad_squared.unsqueeze(1) * text
            parts.append({"text": grad_text})
            moments = grad_moments and MomentsGradient(*(x[at.videos] for x in grad_moments))
            given = at.tile, found.kept, grad_products, moments
            if (wanted := self.diversity) is not None and grad_direction is not None:
                increments = wanted.kernels.diversity_gradient(
                    found.kept, scored.norm, wanted.alpha, grad_direction / self.num_texts
                )
                grad_coefficients, gradients = wanted.kernels.backward(*given, increments)
            else:
                grad_coefficients, gradients = self.kernels.backward(*given)
            parts.append(gradients)
            if at.attention is not None:
                grad_text, grad_inverse, gradients = pair.attention_adjoint(
                    grad_coefficients, at.attention, text, factors, at.inverse_gap
                )
                parts += [{"text": grad_text}, gradients]
            else:
                grad_inverse = grad_coefficients
            grad_centered_text, grad_mean_frame = pair.inverse_deviation_adjoint(
                grad_inverse, at.inverse_gap, at.centered_text, at.centered_video
            )
            grad_centered[at.texts] += grad_centered_text
            parts.append({"mean_frame": grad_mean_frame.to(text.dtype)})
            where = {"A": at.texts, "B": at.videos}
            for part in parts:
                for name, value in part.items():
                    grads[name][where.get(axis(kind, name), slice(None))] += value
        grads["text"] += (grad_centered - grad_centered.mean(1, keepdim=True)).to(text.dtype)
        return grads

    def _scores(self, at: _Position, products: pair.Products) -> pair.Scores:
        factors = at.tile.factors
        return pair.scores(
            factors["text"], at.squared_norm, factors, products, self.pool_temperature
        )

    def _tiles(self) -> Iterator[_Position]:
        """All tiles; those of the same texts one after the other."""
        rows, kind = self.kernels.rows, self.layer.kind
        if self.factors["text"].device.type != "cpu":
            rows = max(rows, LEAST_ROWS_ON_GPU)
        if self.diversity is None:
            texts_step = min(self.num_texts, rows)
            videos_step = max(1, rows // texts_step)
        else:
            # The diversity of a text is over all videos.
            videos_step = self.num_videos
            texts_step = max(1, rows // videos_step)
        wide = pair.wide_dtype(self.factors["text"])
        for i in range(0, self.num_texts, texts_step):
            texts = slice(i, min(i + texts_step, self.num_texts))
            text = self.factors["text"][texts]
            squared_norm = text.square().sum(dim=1)
            centered_text = text.to(wide)
            centered_text = centered_text - centered_text.mean(dim=1, keepdim=True)
            for j in range(0, self.num_videos, videos_step):
                videos = slice(j, min(j + videos_step, self.num_videos))
                where = {"A": texts, "B": videos}
                factors = {
                    name: value[where.get(axis(kind, name), slice(None))]
                    for name, value in self.factors.items()
                }
                centered_video = factors["mean_frame"].to(wide)
                eps = self.layer.layer_norm_eps
                coefficients = inverse_gap = pair.inverse_deviation(
                    centered_text, centered_video, eps[0], text.dtype
                )
                attention = None
                if kind == "attention":
                    attention = pair.attention(text, factors, inverse_gap, eps[1])
                    coefficients = attention.weights
                dropout = None
                if self.seed is not None:
                    seed, first_text, first_video = self.seed
                    at = first_text + i, first_video + j
                    dropout = Dropout(self.layer.dropout, seed, *at)
                yield _Position(
                    Tile(self.layer, factors, coefficients, dropout),
                    texts,
                    videos,
                    squared_norm,
                    inverse_gap,
                    attention,
                    centered_text,
                    centered_video,
                )


class _RunningMoments:
    """Mean and variance over the texts, gathered tile by tile."""

    def __init__(self, like: Tensor) -> None:
        self.mean = torch.zeros_like(like, memory_format=torch.contiguous_format)
        self.squares = torch.zeros_like(self.mean)
        self.texts = 0

    def add(self, at: _Position, tile: TileMoments) -> None:
        count = at.texts.stop - at.texts.start
        running = self.mean[at.videos], self.squares[at.videos]
        _add_moments(running, at.texts.start, tile, count)
        self.texts = at.texts.stop

    def finish(self) -> Moments:
        return Moments(self.mean, self.squares / max(self.texts - 1, 1))


def _add_moments(
    running: tuple[Tensor, Tensor], before: int, more: TileMoments, count: int
) -> None:
    """Take ``count`` more values into a running mean and sum of squares, in place (Chan et al.)."""
    mean, squares = running
    distance = more.mean - mean
    mean += distance * (count / (before + count))
    squares += more.squares + distance.square() * (before * count / (before + count))


def _moments_of(values: Tensor, dim: int) -> TileMoments:
    mean = values.mean(dim=dim)
    return TileMoments(mean, (values - mean.unsqueeze(dim)).square().sum(dim=dim))


def _part(whole: Tensor | None, at: _Position, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if whole is None else whole[at.videos, at.texts]


def _targets(at: _Position, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Each text's video (1, a) counted from the tile's first, and whether (a) it is in the tile."""
    videos = targets[at.texts] - at.videos.start
    count = at.videos.stop - at.videos.start
    inside = (videos >= 0) & (videos < count)
    return videos.clamp(0, count - 1).unsqueeze(0), inside


__all__ = ["FACTORS", "HiddenEngine", "HiddenStatistics", "HiddenTerms"]
