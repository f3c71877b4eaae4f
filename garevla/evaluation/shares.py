"""A test set that several processes encode and score together, with the ranks of one.

Each process encodes its share of the texts and of the videos. Text features are gathered, frame
features are not: every process scores all texts against its own videos. What else is sent are a
score and two counts for each text, and two counts for each video.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from garevla.head.sharding import gathered, own_rows, resolve_group

if TYPE_CHECKING:
    from garevla.head.sharding import Group


@dataclass(frozen=True)
class Share:
    """This process's part of a number of texts or videos, a run of whole batches."""

    group: dist.ProcessGroup
    counts: tuple[int, ...]
    """Of each process, in the order of their ranks in the group; 0 where there are too few."""

    @property
    def rows(self) -> slice:
        """This process's among all."""
        return own_rows(self.counts, dist.get_rank(self.group))

    def join(self, own: Tensor) -> Tensor:
        """All processes' rows of a tensor that each has for its own part."""
        return gathered(own, self.group, self.counts)

    def like_others(
        self, own: tuple[Tensor, ...] | None, device: torch.device
    ) -> tuple[Tensor, ...]:
        """A process without rows learns of the others' what no rows of theirs are like."""
        found: list[list[tuple[torch.Size, torch.dtype]] | None] = [None] * len(self.counts)
        layouts = None if own is None else [(x.shape[1:], x.dtype) for x in own]
        dist.all_gather_object(found, layouts, group=self.group)
        if own is not None:
            return own
        others = next(layouts for layouts in found if layouts is not None)
        return tuple(torch.empty(0, *shape, dtype=x, device=device) for shape, x in others)

    def joined(self, own: Sequence[str]) -> list[str]:
        """The same of a sequence."""
        found: list[Sequence[str]] = [()] * len(self.counts)
        dist.all_gather_object(found, own, group=self.group)
        return [item for part in found for item in part]

    def sum(self, own: Tensor) -> Tensor:
        """The sum of the processes' tensors of one shape."""
        return self._reduced(own, dist.ReduceOp.SUM)

    def maximum(self, own: Tensor) -> Tensor:
        """The largest of the processes' tensors of one shape, number by number."""
        return self._reduced(own, dist.ReduceOp.MAX)

    def _reduced(self, own: Tensor, operation: Any) -> Tensor:
        result = own.clone()
        dist.all_reduce(result, operation, group=self.group)
        return result


def share_of(group: Group, num_rows: int, batch: int) -> Share | None:
    """This process's share of a number of rows; None where it has all.

    Args:
        group: as given by the user.
        batch: rows that go together: shares begin at multiples of it, so that every batch is one
            that a single process has, and gives the same bits.

    Raises:
        RuntimeError: torch.distributed is not initialized.
        ValueError: this process is not in the group.
    """
    processes = resolve_group(group)
    if processes is None or dist.get_world_size(processes) == 1:
        return None
    count, batches = dist.get_world_size(processes), -(-num_rows // batch)
    bounds = [min(num_rows, rank * batches // count * batch) for rank in range(count + 1)]
    counts = tuple(end - start for start, end in itertools.pairwise(bounds))
    return Share(processes, counts)
