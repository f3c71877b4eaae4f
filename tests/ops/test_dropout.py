"""Masks from a counter: known answers, the published files' masks, and where seeds come from."""

from __future__ import annotations

import pytest
import torch

import garevla
from garevla.ops import dropout
from tests.helpers import GOLDEN, Golden

# Of Random123's kat_vectors: counter, key, result of Philox4x32-10.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]):
    words = dropout._philox([torch.tensor(word) for word in counter], key)
    assert tuple(int(word) for word in words) == answer


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("hidden_dropout*.npz")), ids=lambda p: p.stem)
def test_golden_masks(path):
    golden = Golden(path)
    meta = golden.meta
    keep = dropout.keep_mask(
        meta["seed"],
        meta["dropout"],
        torch.arange(meta["A"]).unsqueeze(1),
        torch.arange(meta["B"]),
        meta["H"],
    )
    assert torch.equal(keep.double(), golden["keep"])


def test_a_part_of_a_mask_is_the_masks_part():
    texts, videos = torch.arange(9).unsqueeze(1), torch.arange(7)
    whole = dropout.keep_mask(5, 0.4, texts, videos, 13)
    assert torch.equal(dropout.keep_mask(5, 0.4, texts[4:], videos[2:5], 13), whole[4:, 2:5])
    assert torch.equal(dropout.keep_mask(5, 0.4, texts, videos, 6), whole[..., :6])
    assert not torch.equal(dropout.keep_mask(6, 0.4, texts, videos, 13), whole)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.99])
def test_the_share_that_is_dropped(probability: float):
    texts, videos = torch.arange(40).unsqueeze(1), torch.arange(50)
    dropped = 1 - dropout.keep_mask(3, probability, texts, videos, 64).double().mean()
    deviation = (probability * (1 - probability) / (40 * 50 * 64)) ** 0.5
    assert abs(float(dropped) - probability) <= 5 * deviation


def test_seeds_come_from_torchs_generator_or_are_given():
    torch.manual_seed(3)
    first, second = int(dropout.draw_seed()), int(dropout.draw_seed())
    assert first != second
    torch.manual_seed(3)
    assert int(dropout.draw_seed()) == first
    with garevla.dropout_seed(2**63 - 1):
        assert int(dropout.draw_seed()) == 2**63 - 1
        with garevla.dropout_seed(0):
            assert int(dropout.draw_seed()) == 0
    # A given seed takes nothing from the generator.
    assert int(dropout.draw_seed()) == second


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_range(seed: int):
    with pytest.raises(ValueError, match="seed must be in"), garevla.dropout_seed(seed):
        pass


def test_a_compiled_function_draws_anew():
    compiled = torch.compile(dropout.draw_seed, fullgraph=True, backend="aot_eager")
    assert int(compiled()) != int(compiled())
    with garevla.dropout_seed(11):
        assert int(compiled()) == 11
    torch.library.opcheck(torch.ops.garevla_dropout.draw_seed.default, ())
