"""Tiles of pairs whose hidden vectors and increments never reach memory.

Forward is one kernel. Backward takes a bounded number of pairs at a time, whose ∂L/∂Δ, D operands
each, lie in a workspace near the L2 cache: one kernel makes it of increments that it computes once
more, one takes it through the hidden layer, one makes the weight's gradient of it and of hidden
vectors computed once more. Sums over texts and over videos are made per program and added up in
their order: results repeat bit for bit.

Where a text's or a frame's gradient is a sum of increments, hidden vectors are summed instead, and
the sum multiplied with the weight: Σ_j g_ij Δ_ij = W Σ_j g_ij y_ij + b Σ_j g_ij.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from garevla.kernels import configs
from garevla.kernels.configs import LaunchConfig, check_precision
from garevla.kernels.hidden.adjoint import (
    LayerNormGradient,
    TextSums,
    VideoSums,
    hidden_adjoint_kernel,
)
from garevla.kernels.hidden.arguments import (
    Layer,
    Normalization,
    PairGradients,
    constants,
)
from garevla.kernels.hidden.configs import hidden_config
from garevla.kernels.hidden.forward import TileSums, hidden_forward_kernel
from garevla.kernels.hidden.gradient import FrameProducts, Moments, hidden_gradient_kernel
from garevla.kernels.hidden.weight import hidden_weight_kernel
from garevla.kernels.launching import launch
from garevla.kernels.operands import as_operand
from garevla.kernels.pairs.configs import architecture
from garevla.ops.eager.hidden import EagerFunctions
from garevla.ops.hidden.scores import Gradients, Products
from garevla.ops.hidden.tiles import (
    ComposedTiles,
    Contracted,
    MomentsGradient,
    Tile,
    TileKernels,
    TileMoments,
    Workspace,
)


class Kept(NamedTuple):
    layer: Layer
    normalization: Normalization | None
    frame_product: Tensor  # (b, F, a)


class TritonTiles(TileKernels):
    """The hidden layers' kernels.

    Args:
        precision: of the products: float32, tf32x3, tf32 or bfloat16.

    Raises:
        ValueError: an unknown precision.
    """

    rows = 2**18

    def __init__(self, precision: str) -> None:
        check_precision(precision)
        self.precision = precision
        self.explicit = ComposedTiles(EagerFunctions(), Workspace())

    def forward(self, tile: Tile, with_moments: bool) -> Contracted:
        text, layer = tile.factors["text"], self._layer(tile)
        config = self._config("forward", text)
        videos, texts = len(tile.coefficients), len(text)
        num_frames, dim = tile.factors["frames"].shape[1:]
        tiles = triton.cdiv(texts, config.rows)
        text_product, squared_norm = (text.new_empty(videos, texts) for _ in range(2))
        frame_product = text.new_empty(videos, num_frames, texts)
        sums = normalization = None
        if with_moments:
            sums = TileSums(*(text.new_empty(videos, tiles, dim) for _ in range(2)))
        if layer.weight_sum is not None:
            normalization = Normalization(*(text.new_empty(videos, texts) for _ in range(2)))
        launch(
            hidden_forward_kernel,
            (tiles * videos,),
            **config.options(),
            text_product=text_product,
            squared_norm=squared_norm,
            frame_product=frame_product,
            sums=sums,
            normalization=normalization,
            layer=layer,
            text=self._operand(tile, "text"),
            frames=self._operand(tile, "frames"),
            num_texts=texts,
            num_videos=videos,
            TILE=constants(tile, config, self.precision),
            **_masks(tile, 0, 0),
        )
        moments = None if sums is None else merged_moments(*sums, config.rows, texts)
        products = Products(text_product, squared_norm, frame_product)
        return Contracted(products, moments, Kept(layer, normalization, frame_product))

    def backward(
        self,
        tile: Tile,
        kept: Kept,
        grad_products: Products,
        grad_moments: MomentsGradient | None,
    ) -> tuple[Tensor, Gradients]:
        return _Backward(self, tile, kept, grad_products, grad_moments).run()

    def _config(self, kernel: str, like: Tensor) -> LaunchConfig:
        return hidden_config(kernel, self.precision, architecture(like.device))

    def _layer(self, tile: Tile) -> Layer:
        factors = tile.factors
        weight = self._operand(tile, "weight")
        bias = factors["bias"].contiguous()
        coefficients = tile.coefficients.contiguous()
        if tile.layer.kind == "gap":
            text_hidden, video_hidden, shift = (
                factors[name].contiguous() for name in ("text_hidden", "video_hidden", "shift")
            )
            return Layer(coefficients, text_hidden, video_hidden, None, shift, weight, bias, None)
        values = as_operand(centered(factors["values"]), self.precision)
        shift = centered(factors["shift"])
        # Of the operands: what their rounding adds to a product with the mean is taken off again.
        total = weight.float().sum(dim=1)
        return Layer(coefficients, None, None, values, shift, weight, bias, total)

    def _operand(self, tile: Tile, name: str) -> Tensor:
        return as_operand(tile.factors[name], self.precision)


class _Backward:
    """The backward pass of one tile."""

    def __init__(
        self,
        kernels: TritonTiles,
        tile: Tile,
        kept: Kept,
        grad_products: Products,
        grad_moments: MomentsGradient | None,
    ) -> None:
        self.kernels, self.tile, self.kept = kernels, tile, kept
        factors = tile.factors
        self.of_pairs = PairGradients(*(x.contiguous() for x in grad_products))
        self.moments = None
        if grad_moments is not None:
            shift, slope, center = grad_moments
            self.moments = Moments(shift - slope * center, slope.contiguous())
        self.text, self.frames = (kernels._operand(tile, name) for name in ("text", "frames"))
        self.dim, self.hidden = factors["weight"].shape
        self.num_frames = self.frames.shape[1]
        self.num_videos, self.num_texts = self.of_pairs.text.shape
        self.coefficients = torch.empty_like(kept.layer.coefficients)
        self.grad_bias = self._empty(self.dim).zero_()
        self.grad_shift = torch.zeros_like(kept.layer.shift)
        self.frame_sum = self._empty(self.num_videos, self.num_frames, self.hidden).zero_()
        self.text_sum = self._empty(self.num_texts, self.hidden)
        config = kernels._config("weight", self.text)
        blocks = triton.cdiv(self.dim, config.columns) * triton.cdiv(self.hidden, config.reduction)
        texts, videos = self._steps()
        segments = _segments(blocks, triton.cdiv(texts, config.rows) * videos)
        self.weight_sums = self._empty(segments, self.dim, self.hidden).zero_()
        # Sums over texts, whatever the kind of layer has of them.
        like = kept.layer.video_hidden if self._gap else kept.layer.video_values
        assert like is not None
        self.of_videos = self._empty(*like.shape).zero_()

    def run(self) -> tuple[Tensor, Gradients]:
        factors, of_pairs = self.tile.factors, self.of_pairs
        weight, bias = factors["weight"], factors["bias"]
        texts_step, videos_step = self._steps()
        text_hidden = torch.empty_like(self.text_sum) if self._gap else None
        for i in range(0, self.num_texts, texts_step):
            texts = slice(i, min(i + texts_step, self.num_texts))
            sums = self._text_sums(texts)
            for j in range(0, self.num_videos, videos_step):
                videos = slice(j, min(j + videos_step, self.num_videos))
                self._chunk(texts, videos, sums)
            self.text_sum[texts] = sums.text.sum(dim=0)
            if text_hidden is not None and sums.text_hidden is not None:
                text_hidden[texts] = sums.text_hidden.sum(dim=0)
        of_bias = of_pairs.frame.sum(dim=2).unsqueeze(2) * bias
        gradients = {
            "text": self.text_sum @ weight.T + of_pairs.text.sum(dim=0).unsqueeze(1) * bias,
            "frames": self.frame_sum @ weight.T + of_bias,
            "weight": self.weight_sums.sum(dim=0),
            "bias": self.grad_bias,
            "shift": self.grad_shift,
        }
        if text_hidden is not None:
            gradients |= {"text_hidden": text_hidden, "video_hidden": self.of_videos}
        else:
            gradients["values"] = self.of_videos
        return self.coefficients, gradients

    def _steps(self) -> tuple[int, int]:
        """Texts and videos at a time."""
        pairs = max(1, configs.HIDDEN_GRADIENTS // self.dim)
        if pairs >= self.num_texts:
            return self.num_texts, min(self.num_videos, pairs // self.num_texts)
        # Chunks that begin where the whole does, modulo 16, are as aligned: compiled once.
        return max(1, pairs // 16 * 16), 1

    @property
    def _gap(self) -> bool:
        return self.tile.layer.kind == "gap"

    def _empty(self, *shape: int) -> Tensor:
        return self.of_pairs.text.new_empty(shape)

    def _text_sums(self, texts: slice) -> TextSums:
        config = self.kernels._config("adjoint", self.text)
        size = texts.stop - texts.start
        blocks = triton.cdiv(size, config.rows) * triton.cdiv(self.hidden, config.reduction)
        shape = _segments(blocks, self._steps()[1]), size, self.hidden
        text_hidden = self._empty(*shape).zero_() if self._gap else None
        return TextSums(self._empty(*shape).zero_(), text_hidden)

    def _chunk(self, texts: slice, videos: slice, text_sums: TextSums) -> None:
        """Gradients of some pairs, added to those of others."""
        layer = self.kept.layer
        normalization = self.kept.normalization
        layer = layer._replace(
            coefficients=layer.coefficients[videos][..., texts],
            text_hidden=None if layer.text_hidden is None else layer.text_hidden[texts],
            video_hidden=None if layer.video_hidden is None else layer.video_hidden[videos],
            video_values=None if layer.video_values is None else layer.video_values[videos],
        )
        if normalization is not None:
            normalization = Normalization(*(x[videos, texts] for x in normalization))
        of_pairs = PairGradients(*(x[videos][..., texts] for x in self.of_pairs))
        num_videos, num_texts = of_pairs.text.shape
        shared = {
            "layer": layer,
            "num_texts": num_texts,
            "num_videos": num_videos,
            "pair_stride": self.num_texts,
            **_masks(self.tile, texts.start, videos.start),
        }
        gradient = self.text.new_empty(num_videos, num_texts, self.dim)
        means = self._increments(texts, videos, gradient, of_pairs, shared)
        shared |= {"gradient": gradient, "normalization": normalization}
        self._hidden_layer(texts, videos, text_sums, means, of_pairs, shared)
        self._weight(shared)

    def _increments(
        self,
        texts: slice,
        videos: slice,
        gradient: Tensor,
        of_pairs: PairGradients,
        shared: dict[str, Any],
    ) -> LayerNormGradient | None:
        """Writes ∂L/∂Δ; the means of the LayerNorm's gradient where there is one."""
        config = self.kernels._config("gradient", self.text)
        num_videos, num_texts, dim = gradient.shape
        tiles = triton.cdiv(num_texts, config.rows)
        bias_sum = self._empty(num_videos, tiles, dim)
        means = products = None
        if not self._gap:
            products = FrameProducts(
                self.kept.frame_product[videos][..., texts],
                self.tile.factors["frames"][videos] @ self.tile.factors["bias"],
            )
            means = LayerNormGradient(*(self._empty(num_videos, num_texts) for _ in range(2)))
        launch(
            hidden_gradient_kernel,
            (tiles * num_videos,),
            **config.options(),
            gradient=gradient,
            bias_sum=bias_sum,
            along=means and means.along,
            average=means and means.average,
            products=products,
            text=self.text[texts],
            frames=self.frames[videos],
            moments=self.moments and Moments(*(x[videos] for x in self.moments)),
            of_pairs=of_pairs,
            TILE=constants(self.tile, config, self.kernels.precision),
            **shared,
        )
        self.grad_bias += bias_sum.sum(dim=(0, 1))
        return means

    def _hidden_layer(
        self,
        texts: slice,
        videos: slice,
        text_sums: TextSums,
        means: LayerNormGradient | None,
        of_pairs: PairGradients,
        shared: dict[str, Any],
    ) -> None:
        """Gradients of what the hidden layer is given, and sums of hidden vectors."""
        config = self.kernels._config("adjoint", self.text)
        known = constants(self.tile, config, self.kernels.precision)
        num_videos, num_texts = of_pairs.text.shape
        tiles, units = triton.cdiv(num_texts, known.ROWS), triton.cdiv(self.hidden, known.UNITS)
        target = self.coefficients[videos][..., texts]
        coefficients = self._empty(units, *target.shape)
        of_videos = self._empty(num_videos, tiles, *self.of_videos.shape[1:])
        sums = VideoSums(
            self._empty(num_videos, tiles, self.num_frames, self.hidden),
            self._empty(num_videos, tiles, len(self.grad_shift)),
            of_videos if self._gap else None,
            None if self._gap else of_videos,
        )
        segments = len(text_sums.text)
        launch(
            hidden_adjoint_kernel,
            (tiles * units, segments),
            **config.options(),
            coefficients=coefficients,
            video_sums=sums,
            text_sums=text_sums,
            means=means,
            of_pairs=of_pairs,
            segment_length=triton.cdiv(num_videos, segments),
            TILE=known,
            **shared,
        )
        target.copy_(coefficients.sum(dim=0))
        self.frame_sum[videos] += sums.frame.sum(dim=1)
        self.grad_shift += sums.shift.sum(dim=(0, 1))
        self.of_videos[videos] += of_videos.sum(dim=1)

    def _weight(self, shared: dict[str, Any]) -> None:
        config = self.kernels._config("weight", self.text)
        known = constants(self.tile, config, self.kernels.precision)
        tiles = triton.cdiv(shared["num_texts"], known.ROWS) * shared["num_videos"]
        blocks = triton.cdiv(self.dim, known.FEATURES) * triton.cdiv(self.hidden, known.UNITS)
        segments = len(self.weight_sums)
        launch(
            hidden_weight_kernel,
            (blocks, segments),
            **config.options(),
            sums=self.weight_sums,
            segment_length=triton.cdiv(tiles, segments),
            TILE=known,
            **shared,
        )


def centered(values: Tensor) -> Tensor:
    """Values or their shift (…, 2·H) less the mean that a pair's z has where nothing is dropped: a
    LayerNorm takes it off anyway."""
    plain, masked = values.chunk(2, dim=-1)
    return torch.cat([plain - (plain + masked).mean(dim=-1, keepdim=True), masked], dim=-1)


def merged_moments(mean: Tensor, squares: Tensor, length: int, num_texts: int) -> TileMoments:
    """Those (b, D) of all texts, from those (b, tiles, D) of tiles of ``length`` texts."""
    tiles = mean.shape[1]
    counts = mean.new_full((tiles, 1), length)
    counts[-1] = num_texts - (tiles - 1) * length
    whole = mean[:, 0] + ((mean - mean[:, :1]) * counts).sum(dim=1) / num_texts
    between = (mean - whole.unsqueeze(1)).square() * counts
    return TileMoments(whole, squares.sum(dim=1) + between.sum(dim=1))


def _masks(tile: Tile, first_text: int, first_video: int) -> dict[str, int]:
    """Where the masks of a chunk come from: arguments of every kernel."""
    if tile.dropout is None:
        return dict.fromkeys(("first_text", "first_video", "key_low", "key_high"), 0)
    _, seed, text, video = tile.dropout
    return {
        "first_text": text + first_text,
        "first_video": video + first_video,
        "key_low": _signed(seed & 0xFFFFFFFF),
        "key_high": _signed(seed >> 32),
    }


def _signed(word: int) -> int:
    """32 bits as a kernel's argument has them."""
    return word - 2**32 if word >= 2**31 else word


def _segments(blocks: int, most: int) -> int:
    """Parts of a sum, at most so many, for that many programs each."""
    return max(1, min(most, configs.HIDDEN_PROGRAMS // blocks))
