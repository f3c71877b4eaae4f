"""What a call will take, from smaller batches, and whether the time budget has room for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from benchmarks import growth

# Of the budget; kept for the cases still to come, in equal parts.
RESERVED_SHARE = 0.5
# Memory may grow a little faster than with the number of pairs, where pages are counted.
MOST_MEMORY_EXPONENT = 2.2


@dataclass
class History:
    """What an implementation took at the batch sizes so far."""

    batches: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory_batches: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)

    def record(self, batch: int, seconds: float, peak: int | None = None) -> None:
        """Add a batch, or correct the last one."""
        if self.batches and self.batches[-1] == batch:
            self.seconds[-1] = seconds
        else:
            self.batches.append(batch)
            self.seconds.append(seconds)
        if peak:
            self.memory_batches.append(batch)
            self.bytes.append(peak)

    def seconds_at(self, batch: int, exponent: float) -> float | None:
        """Seconds predicted; they grow with ``exponent`` at most. None without history."""
        return growth.predict(self.batches, self.seconds, batch, most=exponent)

    def bytes_at(self, batch: int) -> float | None:
        """Bytes predicted; None without history."""
        return growth.predict(self.memory_batches, self.bytes, batch, most=MOST_MEMORY_EXPONENT)


class Schedule:
    """A time budget of several cases, part of which is kept for those still to come."""

    def __init__(self, seconds: float, cases: int) -> None:
        self._deadline = time.monotonic() + seconds
        self._reserve = RESERVED_SHARE * seconds / max(1, cases) if cases else 0.0
        self._cases_left = cases
        self._booked = 0.0

    def begin_case(self) -> None:
        """The next case is the current one."""
        self._cases_left -= 1
        self._booked = 0.0

    def book(self, seconds: float) -> None:
        """Set time aside in the current case."""
        self._booked += seconds

    def fits(self, seconds: float) -> bool:
        """Whether the current case has this much left beside what is booked."""
        end = self._deadline - max(0, self._cases_left) * self._reserve
        return time.monotonic() + self._booked + seconds <= end

    @property
    def used_up(self) -> bool:
        return time.monotonic() > self._deadline
