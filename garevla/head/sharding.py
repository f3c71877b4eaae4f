"""One batch over several processes: N processes give the values and gradients of one.

Each process keeps its own videos. Texts are gathered, and every process scores all texts against
its own videos: a column of the pairs each. What the loss needs of whole rows and columns are a few
numbers for each text and video, which are exchanged.

Every process computes the same loss of the whole batch, from its own numbers, which carry
gradients, and the others', which do not. Its backward pass gives N times what its own numbers
contribute, so that DistributedDataParallel, which averages over the N processes, leaves the
gradient of one process on the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from garevla.ops.dropout import draw_seed, dropout_seed

if TYPE_CHECKING:
    Group = dist.ProcessGroup | Literal[True] | None
    """Processes that share a batch: a process group, ``True`` for all; ``None``: this one alone."""


class Layout(NamedTuple):
    """What a process's inputs are like apart from their number, in integers that can be sent."""

    frames: int
    has_mask: int
    captioned_frames: int = -1
    """Frames that have pseudo captions; -1: there are none."""
    words: int = 0
    """Words of a text, where they have features of their own."""

    @classmethod
    def of(
        cls,
        frame_features: Tensor,
        frame_mask: Tensor | None,
        captions: Tensor | None = None,
        words: Tensor | None = None,
    ) -> Layout:
        return cls(
            _second_size(frame_features),
            int(frame_mask is not None),
            -1 if captions is None else _second_size(captions),
            0 if words is None else _second_size(words),
        )


def _second_size(features: Tensor) -> int:
    """Of wrongly shaped ones, too: what is wrong with them is found later."""
    shape: tuple[int, ...] = getattr(features, "shape", ())
    return shape[1] if len(shape) > 1 else 0


@dataclass(frozen=True)
class Shard:
    """This process's part of a batch."""

    group: dist.ProcessGroup
    text_counts: tuple[int, ...]
    """Texts of each process, in the order of their ranks in the group."""
    video_counts: tuple[int, ...]
    seed: int | None
    """Of the pairs' dropout masks, the first process's, where one was drawn."""
    layouts: tuple[Layout, ...]
    """Of each process's inputs."""

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @property
    def texts(self) -> slice:
        """This process's among all texts."""
        return own_rows(self.text_counts, self.rank)

    @property
    def videos(self) -> slice:
        """This process's among all videos."""
        return own_rows(self.video_counts, self.rank)

    @property
    def own_texts(self) -> int:
        return self.text_counts[self.rank]

    @property
    def num_texts(self) -> int:
        return sum(self.text_counts)

    @property
    def num_videos(self) -> int:
        return sum(self.video_counts)

    def gather(self, own: Tensor, counts: tuple[int, ...]) -> Tensor:
        """All processes' rows; their gradients come back to them added up over the processes."""
        return _Gather.apply(own, self.group, counts)

    def complete(self, own: Tensor, counts: tuple[int, ...]) -> Tensor:
        """All processes' rows, of which its own alone carry a gradient here: N times theirs."""
        rows = list(gathered(own.detach(), self.group, counts).split(counts))
        rows[self.rank] = _Scaled.apply(own, len(counts))
        return torch.cat(rows)

    def complete_by_process(self, own: Tensor) -> Tensor:
        """A tensor of each process, stacked, as :meth:`complete`."""
        return self.complete(own.unsqueeze(0), (1,) * len(self.text_counts))

    def exchanged(self) -> Shard:
        """With texts in the place of videos, videos in that of texts, and as many words in each
        process as the texts with the most have."""
        most = max(layout.words for layout in self.layouts)
        layouts = tuple(layout._replace(frames=most) for layout in self.layouts)
        return replace(
            self, text_counts=self.video_counts, video_counts=self.text_counts, layouts=layouts
        )

    def require_alike(self, names: Sequence[str], message: str) -> None:
        """Raise ValueError in all processes where these fields of their layouts differ."""
        found = [{name: getattr(layout, name) for name in names} for layout in self.layouts]
        if any(other != found[0] for other in found):
            raise ValueError(f"{message}, got {found}")


def shard_of(
    group: Group,
    num_texts: int,
    num_videos: int,
    device: torch.device,
    layout: Layout,
    *,
    draw: bool = False,
) -> Shard | None:
    """This process's part of a batch of A texts and B videos; None where it has all.

    Args:
        group: as given by the user.
        layout: of this process's inputs.
        draw: whether a seed of dropout masks is to be drawn and agreed upon.

    Raises:
        RuntimeError: torch.distributed is not initialized.
        ValueError: this process is not in the group, or a process has no text or no video, which
            all of them raise.
    """
    processes = resolve_group(group)
    if processes is None or dist.get_world_size(processes) == 1:
        return None
    seed = int(draw_seed()) if draw else 0
    own = torch.tensor([[num_texts, num_videos, seed, *layout]], device=device)
    found = gathered(own, processes, (1,) * dist.get_world_size(processes)).tolist()
    texts, videos, seeds, *layouts = zip(*found, strict=True)
    if 0 in texts or 0 in videos:
        raise ValueError(
            f"every process needs at least one text and one video, got {texts} texts and {videos} "
            "videos; leave the rest of a data set out, or spread it over all processes"
        )
    return Shard(
        processes,
        texts,
        videos,
        seeds[0] if draw else None,
        tuple(map(Layout, *layouts)),
    )


def resolve_group(group: Group) -> dist.ProcessGroup | None:
    """The process group that a user means.

    Raises:
        RuntimeError, ValueError: as :func:`shard_of`.
    """
    if group is None:
        return None
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "group is given, but torch.distributed is not initialized: call "
            "torch.distributed.init_process_group first, under torchrun"
        )
    if group is True:
        return dist.group.WORLD
    if dist.get_rank(group) < 0:
        raise ValueError("this process is not in the group that the loss was given")
    return group


def check_synchronized(module: nn.Module, name: str) -> None:
    """Raise where nothing will average a module's gradients over the processes.

    Raises:
        RuntimeError: the module has parameters to train, and is not in one whose wrapped forward
            pass, DistributedDataParallel's, is running. FSDP is not recognized: in its forward pass
            parameters are plain ones.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters or not torch.is_grad_enabled():
        return
    wrapper = nn.parallel.DistributedDataParallel._get_active_ddp_module()
    if wrapper is not None:
        wrapped = {id(p) for p in wrapper.parameters()}
        if all(id(p) in wrapped for p in parameters):
            return
    raise RuntimeError(
        f"{name}'s gradients would not be averaged over the processes: the loss was called outside "
        "of the forward pass of the DistributedDataParallel module that holds its parameters. Make "
        "the loss part of the wrapped module, whose forward returns it; under FSDP, or where you "
        "average the gradients yourself, pass synchronized=True"
    )


def shard_seed(shard: Shard | None) -> AbstractContextManager[None]:
    """Inside, pairs' dropout masks have the seed that the processes agreed upon."""
    if shard is None or shard.seed is None:
        return nullcontext()
    return dropout_seed(shard.seed)


def own_rows(counts: Sequence[int], rank: int) -> slice:
    """A process's among the rows of all, of which each has some."""
    start = sum(counts[:rank])
    return slice(start, start + counts[rank])


def gathered(own: Tensor, group: dist.ProcessGroup, counts: tuple[int, ...]) -> Tensor:
    """All processes' rows; collectives take equal sizes and contiguous tensors alone."""
    # Not every backend of torch.distributed carries bool.
    carried = own.to(torch.uint8) if own.dtype == torch.bool else own
    padded = carried.new_zeros(max(counts), *carried.shape[1:])
    padded[: len(carried)] = carried
    received = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(received, padded, group=group)
    rows = [part[:count] for part, count in zip(received, counts, strict=True)]
    return torch.cat(rows).to(own.dtype)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup, counts: tuple[int, ...]) -> Tensor:
        ctx.group, ctx.counts = group, counts
        return gathered(own, group, counts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        rows = own_rows(ctx.counts, dist.get_rank(ctx.group))
        return total[rows].clone(), None, None


class _Scaled(torch.autograd.Function):
    """Identity, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None
