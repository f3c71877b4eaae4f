from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from garevla.data import UniqueVideoBatchSampler


def ids_of(counts: list[int]) -> list[str]:
    """A shuffled video id for each pair, given the number of captions of each video."""
    ids = np.repeat([f"video{i}" for i in range(len(counts))], counts)
    return np.random.default_rng(0).permutation(ids).tolist()


CASES = [
    ([1] * 2, 4),
    ([1] * 7, 3),
    ([20] * 13, 8),
    ([3, 1, 2] * 11, 16),
    ([2, 3] * 40, 80),
    ([1] * 60 + [40] * 40, 128),
    ([5] * 5, 5),
    ([4] * 5, 2),
]


@pytest.mark.parametrize(("counts", "batch_size"), CASES)
def test_all_pairs_once_and_no_video_twice_in_a_batch(counts, batch_size):
    ids = ids_of(counts)
    sampler = UniqueVideoBatchSampler(ids, batch_size, seed=1)
    assert len(sampler) == max(-(-len(ids) // batch_size), max(counts))
    for epoch in range(20):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(len(ids)))
        for batch in batches:
            videos = [ids[i] for i in batch]
            assert len(set(videos)) == len(videos) <= batch_size
        sizes = [len(batch) for batch in batches]
        assert max(sizes) - min(sizes) <= 1
        assert (min(sizes), max(sizes)) == sampler.pairs_per_batch


@pytest.mark.parametrize(
    ("counts", "batch_size", "sizes"),
    [
        # One video with many captions takes no negatives from the others.
        ([1] * 999 + [1000], 128, [125] + [126] * 7),
        ([1] * 99 + [1000], 128, [100]),
        ([9, 1, 1], 4, [3]),
        ([5] + [4] * 9, 10, [10] * 4),
        # No batch of one.
        ([1] * 3, 2, [2]),
        ([1] * 9, 2, [2] * 4),
        ([3, 1], 4, [2]),
    ],
)
def test_batches_are_kept_full_by_leaving_out_other_captions_each_epoch(counts, batch_size, sizes):
    ids = ids_of(counts)
    sampler = UniqueVideoBatchSampler(ids, batch_size)
    assert sampler.pairs_per_epoch == sum(sizes) < len(ids)
    used = Counter()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(len(batch) for batch in batches) == sizes
        assert all(len({ids[i] for i in batch}) == len(batch) for batch in batches)
        epoch_pairs = [i for batch in batches for i in batch]
        assert len(set(epoch_pairs)) == len(epoch_pairs)
        used.update(epoch_pairs)
    rare = Counter(ids[i] for i in used)
    assert all(rare[f"video{v}"] >= min(count, 8) for v, count in enumerate(counts))


def test_batches_have_the_most_negatives_that_an_epoch_can_have():
    generator = np.random.default_rng(0)
    for _ in range(200):
        counts = generator.integers(1, 12, generator.integers(2, 12))
        batch_size = int(generator.integers(2, 14))
        sampler = UniqueVideoBatchSampler(ids_of(counts.tolist()), batch_size)
        sizes = [len(batch) for batch in sampler]
        assert 2 <= min(sizes) <= max(sizes) <= min(batch_size, len(counts))
        negatives = sum(size * (size - 1) for size in sizes)
        for number in range(1, counts.sum() + 1):
            usable = int(np.minimum(counts, number).sum())
            if 2 * number <= usable <= number * batch_size:
                assert negatives >= usable * (usable / number - 1) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("counts", "batch_size", "length"),
    [
        ([1] * 7, 3, 2),
        ([20] * 13, 8, 32),
        ([2, 3] * 40, 64, 3),
        ([9, 1, 1, 1], 4, 1),
        ([4, 4], 2, 4),
    ],
)
def test_drop_last_gives_full_batches_only(counts, batch_size, length):
    ids = ids_of(counts)
    sampler = UniqueVideoBatchSampler(ids, batch_size, drop_last=True)
    assert len(sampler) == length
    used = Counter()
    for epoch in range(30):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [batch_size] * length
        pairs = [i for batch in batches for i in batch]
        assert len(set(pairs)) == len(pairs)
        assert all(len({ids[i] for i in batch}) == batch_size for batch in batches)
        used.update(pairs)
    assert len(used) == len(ids), "some pairs are always the ones left out"


def test_epochs_and_seeds_give_other_orders_and_mix_videos_anew():
    ids = ids_of([3] * 40)

    def batches(seed: int, epoch: int) -> list[list[int]]:
        sampler = UniqueVideoBatchSampler(ids, 12, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(0, 0) == batches(0, 0)
    assert len({str(batches(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    together = Counter(
        frozenset((ids[a], ids[b]))
        for epoch in range(60)
        for batch in batches(0, epoch)
        for a in batch
        for b in batch
        if a < b
    )
    # All 780 pairs of videos meet, about equally often.
    assert len(together) == 40 * 39 // 2
    assert max(together.values()) < 2.2 * np.mean(list(together.values()))


@pytest.mark.parametrize("drop_last", [False, True])
def test_resuming_at_a_step_continues_the_same_epoch(drop_last):
    ids = ids_of([2, 3, 1] * 10)
    whole = UniqueVideoBatchSampler(ids, 7, seed=5, drop_last=drop_last)
    whole.set_epoch(4)
    expected = list(whole)
    resumed = UniqueVideoBatchSampler(ids, 7, seed=5, drop_last=drop_last)
    for step in range(len(whole) + 1):
        resumed.set_epoch(4, start_step=step)
        assert list(resumed) == expected[step:]
        assert len(resumed) == len(expected)
    resumed.set_epoch(4)
    assert list(resumed) == expected


SCRIPT = """
import hashlib
from garevla.data.sampler import UniqueVideoBatchSampler
from garevla.data.synthetic import draw_descriptions
ids = [f"video{i % 37}" for i in range(100)]
sampler = UniqueVideoBatchSampler(ids, 8, seed=2)
sampler.set_epoch(3)
print(list(sampler), draw_descriptions(60, 20, seed=1))
"""


def test_order_and_generated_clips_do_not_depend_on_the_hash_seed():
    def output(seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = [sys.executable, "-c", SCRIPT]
        return subprocess.run(
            run, env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert output("1") == output("2") != ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"video_ids": []}, "two videos at least, got 0"),
        ({"video_ids": ["a", "a"]}, "two videos at least, got 1"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 3, "drop_last": True}, "batch_size 3 .* there are 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        UniqueVideoBatchSampler(**{"video_ids": ["a", "b", "a", "a"], "batch_size": 2, **arguments})


def test_bad_epoch_and_step():
    sampler = UniqueVideoBatchSampler(["a", "b"] * 3, 2)
    with pytest.raises(ValueError, match="epoch"):
        sampler.set_epoch(-1)
    with pytest.raises(ValueError, match=r"0\.\.3"):
        sampler.set_epoch(0, start_step=4)
