"""The processes that torchrun starts, and what one of them does for all."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from garevla.utils.devices import pick_device

if TYPE_CHECKING:
    from garevla.head.sharding import Group

Item = TypeVar("Item")
Result = TypeVar("Result")

# A process may be done with its share of a data set long before the others. One that dies does not
# make them wait: torchrun ends them all.
_LONGEST_WAIT = datetime.timedelta(days=7)


class OtherProcessError(RuntimeError):
    """The first process could not go on, and said why."""


@dataclass(frozen=True)
class Processes:
    """This process among those that work together."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes the files and the log."""
        return self.rank == 0

    @property
    def group(self) -> Group:
        """As losses and evaluation take it."""
        return True if self.count > 1 else None

    def first_then_others(self, function: Callable[[], Result]) -> Result:
        """What a function returns, which the first process calls before the others do.

        Raises:
            OtherProcessError: it failed in the first process.
        """
        if not self.is_first:
            self._hear_of_first()
            return function()
        try:
            result = function()
        except BaseException as error:
            self._tell(f"{type(error).__name__}: {error}")
            raise
        self._tell(None)
        return result

    def by_first(self, function: Callable[[], Result]) -> Result | None:
        """What a function returns that the first process alone calls while the others wait; None
        in these.

        Raises:
            OtherProcessError: it failed.
        """
        return self.first_then_others(function if self.is_first else lambda: None)

    def of_first(self, function: Callable[[], Result]) -> Result:
        """What a function returns in the first process, which alone calls it; in all of them.

        Raises:
            OtherProcessError: it failed.
        """
        found: Result = self.gather(self.by_first(function))[0]
        return found

    def share(self, items: Sequence[Item]) -> list[Item]:
        """What this process does of work that all do together."""
        return list(items[self.rank :: self.count])

    def gather(self, value: Any) -> list[Any]:
        """A value of each process, in all of them."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def _tell(self, failure: str | None) -> None:
        if self.count > 1:
            dist.broadcast_object_list([failure], src=0)

    def _hear_of_first(self) -> None:
        heard: list[str | None] = [None]
        dist.broadcast_object_list(heard, src=0)
        if heard[0] is not None:
            raise OtherProcessError(f"process 0 failed: {heard[0]}")


ALONE = Processes()


@contextlib.contextmanager
def join_processes(device_name: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that ``torchrun`` started with this one, where it did; until the end.

    Args:
        device_name: as in the settings; ``auto`` and ``cuda`` give each process a GPU of its own.

    Yields:
        The processes, and this one's device.

    Raises:
        ValueError: one GPU named for several processes, fewer GPUs than processes, or as
            :func:`garevla.utils.devices.pick_device`.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or not dist.is_torchelastic_launched():
        yield ALONE, pick_device(device_name)
        return
    device = _own_device(device_name, int(os.environ["LOCAL_RANK"]))
    rank = int(os.environ["RANK"])
    if rank:
        logging.getLogger("garevla").setLevel(logging.ERROR)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield Processes(rank, count), device
    finally:
        dist.destroy_process_group()


def _own_device(name: str, local_rank: int) -> torch.device:
    device = pick_device(name)
    if device.type != "cuda":
        return device
    if device.index is not None:
        raise ValueError(f"device {name} is one GPU for several processes: cuda gives each its own")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"there are {torch.cuda.device_count()} GPUs on this machine for more processes"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
