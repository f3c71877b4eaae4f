"""Batches in which no video occurs twice, in an order that can be taken up again at any step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class UniqueVideoBatchSampler(Sampler[list[int]]):
    """Batches of (caption, video) pairs, no pair twice in an epoch, no video twice in a batch.

    Two captions of one video in a batch would each count the other's video, their own, as wrong.

    Batches are of equal size, to within one pair, rather than full ones and a small rest: the
    contrastive loss depends on the number of negatives. For every pair to be in an epoch, there
    have to be as many batches as a video has captions, so that a few videos with many would leave
    next to nothing for each batch. There are therefore as many batches as give an epoch the most
    negatives; with fewer than a video has captions, each epoch leaves out other, random ones of
    them. The order depends on ``seed`` and the epoch alone.

    Args:
        video_ids: the video of each pair.
        batch_size: pairs in a batch, at most; at least 2, since a pair alone has no negative.
        seed: of the order.
        drop_last: make every batch exactly ``batch_size`` long; each epoch leaves out other,
            random pairs, as few as possible.

    Raises:
        ValueError: pairs of fewer than two videos, a batch size below 2, a negative seed, or
            (``drop_last``) fewer videos than ``batch_size``.

    Attributes:
        pairs_per_epoch: pairs in each epoch; the others of ``video_ids`` are left out of it.
        pairs_per_batch: pairs in the smallest and in the largest batch.
    """

    def __init__(
        self,
        video_ids: Sequence[str],
        batch_size: int,
        *,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        pairs: dict[str, list[int]] = {}
        for index, video_id in enumerate(video_ids):
            pairs.setdefault(video_id, []).append(index)
        if len(pairs) < 2:
            raise ValueError(f"video_ids must be of two videos at least, got {len(pairs)}")
        self._pairs_of_videos = [np.array(indices) for indices in pairs.values()]
        self.batch_size = batch_size
        self.seed = seed
        self._length, self.pairs_per_epoch = self._plan(drop_last)
        smallest, rest = divmod(self.pairs_per_epoch, self._length)
        self.pairs_per_batch = (smallest, smallest + (rest > 0))
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch, and the batch of it with which the next iteration begins.

        Raises:
            ValueError: a negative epoch, or a step outside 0..len(self).
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        if not 0 <= start_step <= len(self):
            raise ValueError(f"start_step must be in 0..{len(self)}, got {start_step}")
        self.epoch = epoch
        self.start_step = start_step

    def __len__(self) -> int:
        """Batches of a whole epoch, the same in every epoch and whatever ``start_step``."""
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        yield from self._batches()[self.start_step :]

    def _plan(self, drop_last: bool) -> tuple[int, int]:
        """Batches and pairs of an epoch."""
        counts = np.array([len(indices) for indices in self._pairs_of_videos])
        total = int(counts.sum())
        # n batches can use n captions of a video at most.
        numbers = np.arange(1, max(-(-total // self.batch_size), int(counts.max())) + 1)
        videos_with_at_least = np.bincount(counts, minlength=len(numbers) + 1)[::-1].cumsum()[::-1]
        usable = videos_with_at_least[1:].cumsum()
        possible = (usable <= numbers * self.batch_size) & (usable >= 2 * numbers)
        if not drop_last and possible.any():
            negatives = np.where(possible, usable * (usable / numbers - 1), 0.0)
            best = len(numbers) - 1 - int(negatives[::-1].argmax())
            return int(numbers[best]), int(usable[best])
        full = numbers[usable >= numbers * self.batch_size]
        if not len(full):
            raise ValueError(
                f"batch_size {self.batch_size} with drop_last needs as many videos, "
                f"there are {len(counts)}"
            )
        return int(full[-1]), int(full[-1]) * self.batch_size

    def _batches(self) -> list[list[int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        number = self._length
        videos = [generator.permutation(indices)[:number] for indices in self._pairs_of_videos]
        if self.pairs_per_epoch < sum(len(indices) for indices in videos):
            videos = _thinned(videos, self.pairs_per_epoch, generator)
        # Batches are dealt out in rounds, each a random order of all; a video's pairs get
        # successive ones. Where its pairs span two rounds, the batches it has had go last.
        batches: list[list[int]] = [[] for _ in range(number)]
        round_ = generator.permutation(number)
        position = 0
        for video in generator.permutation(len(videos)):
            indices = videos[video]
            taken = round_[position : position + len(indices)]
            position += len(indices)
            if position > number:
                fresh = generator.permutation(number)
                had = np.isin(fresh, taken)
                round_ = np.concatenate([fresh[~had], fresh[had]])
                position -= number
                taken = np.concatenate([taken, round_[:position]])
            for index, batch in zip(indices, taken, strict=True):
                batches[batch].append(int(index))
        return batches


class ShardedBatchSampler(Sampler[list[int]]):
    """One process's part of each batch: neighbours, as many as the others have to within one.

    Args:
        batches: of all processes.
        rank: of this process.
        count: of processes; 1 leaves the batches whole.
    """

    def __init__(self, batches: UniqueVideoBatchSampler, rank: int = 0, count: int = 1) -> None:
        self.batches, self.rank, self.count = batches, rank, count

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """As :meth:`UniqueVideoBatchSampler.set_epoch`."""
        self.batches.set_epoch(epoch, start_step)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield [int(index) for index in np.array_split(batch, self.count)[self.rank]]


def _thinned(
    videos: list[np.ndarray], total: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Drop random pairs so that ``total`` are left."""
    lengths = [len(indices) for indices in videos]
    kept = np.zeros(sum(lengths), dtype=bool)
    kept[generator.choice(len(kept), total, replace=False)] = True
    parts = np.split(kept, np.cumsum(lengths)[:-1])
    return [indices[part] for indices, part in zip(videos, parts, strict=True)]
