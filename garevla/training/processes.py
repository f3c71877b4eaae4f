"""The processes that torchrun starts, and what one of them does for all."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from garevla.training.config import ConfigError
from garevla.utils.devices import pick_device

Result = TypeVar("Result")

# The first process may check a whole data set while the others wait. One that dies does not make
# them wait: torchrun ends them all.
_LONGEST_WAIT = datetime.timedelta(days=7)


class OtherProcessError(RuntimeError):
    """The first process could not go on, and said why."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train one model together."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes the files and the log."""
        return self.rank == 0

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


@contextlib.contextmanager
def join_processes(device_name: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that ``torchrun`` started with this one, where it did; until the end.

    Args:
        device_name: as in the settings; ``auto`` and ``cuda`` give each process a GPU of its own.

    Yields:
        The processes, and this one's device.

    Raises:
        ConfigError: one GPU named for several processes, or fewer GPUs than processes.
        ValueError: as :func:`garevla.utils.devices.pick_device`.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or not dist.is_torchelastic_launched():
        yield Processes(), pick_device(device_name)
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
        raise ConfigError(
            f"run.device {name} is one GPU for several processes: cuda gives each its own"
        )
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"there are {torch.cuda.device_count()} GPUs on this machine for more processes"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
