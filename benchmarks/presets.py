"""Which cases are measured: presets by device, and what the command line changes in them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from itertools import product

from benchmarks.cases import CROSS_ATTENTION, PSIS, Case
from benchmarks.implementations import BACKENDS, CHUNKED, COMPILED, NAMES
from benchmarks.peers import PEER_NAMES

# (workload, passes, direction)
Kind = tuple[str, str, str]

BOTH = "forward+backward"
LOSS_EXACT: Kind = ("loss", BOTH, "exact")
LOSS_OFF: Kind = ("loss", BOTH, "off")
LOSS_SAMPLED: Kind = ("loss", BOTH, "sampled")
SCORES: Kind = ("similarity", "forward", "off")
INFO_NCE: Kind = ("info_nce", BOTH, "off")
EVERY_KIND: tuple[Kind, ...] = (
    SCORES,
    ("similarity", BOTH, "off"),
    ("loss", "forward", "off"),
    LOSS_OFF,
    ("loss", "forward", "exact"),
    LOSS_EXACT,
    LOSS_SAMPLED,
)


@dataclass(frozen=True)
class Plan:
    """What to measure and for how long.

    Attributes:
        shapes: (F, D, dtype).
        call_limit: a call predicted to take more seconds is reported, not run.
        budget: seconds for everything; what does not fit is reported, not run.
        row_seconds: how long one implementation is timed in one case, if its calls are short.
        compile_exact: also compile the published loss with direction, a minute's work on a CPU.
        compiled_batches: batch sizes at which the published formulas are compiled; None: all.
    """

    kinds: tuple[Kind, ...]
    batches: tuple[int, ...]
    shapes: tuple[tuple[int, int, str], ...] = ((12, 512, "float32"),)
    names: tuple[str, ...] = NAMES
    call_limit: float = 5.0
    budget: float = 165.0
    row_seconds: float = 0.5
    compile_exact: bool = True
    compiled_batches: tuple[int, ...] | None = None
    psi: str = CROSS_ATTENTION
    padding: float = 0.0

    def cases(self) -> list[Case]:
        """Small batches first, so that a stopped run has some of everything."""
        if not self.names:
            return []
        return [
            Case(*kind, batch, *shape, self.psi, self.padding)
            for batch, shape, kind in product(sorted(self.batches), self.shapes, self.kinds)
        ]


_SHAPES = ((12, 512, "float32"), (12, 512, "bfloat16"), (64, 512, "float32"), (12, 768, "float32"))
# On a CPU chunks cost as much again, and compiling half a minute for each shape.
_QUICK_NAMES = tuple(name for name in NAMES if name != CHUNKED)
_UNCOMPILED_NAMES = tuple(name for name in NAMES if name != COMPILED)
_EXACT_NAMES = tuple(name for name in _QUICK_NAMES if name != COMPILED)
_FIRST_KINDS = (LOSS_EXACT, LOSS_OFF, SCORES)
_GROWING_KINDS = (LOSS_OFF, LOSS_SAMPLED, LOSS_EXACT, SCORES)

_PLANS: dict[str, dict[str, tuple[Plan, ...]]] = {
    "cpu": {
        "quick": (
            Plan(
                _FIRST_KINDS,
                (32, 64, 128, 256),
                names=_QUICK_NAMES,
                compile_exact=False,
                compiled_batches=(128,),
            ),
        ),
        "paper": (
            Plan(EVERY_KIND, (64, 128, 256), _SHAPES, call_limit=60, budget=3600, row_seconds=3),
        ),
        "scaling": (
            Plan(
                (LOSS_OFF,),
                (64, 128, 256, 512, 1024, 2048),
                names=_UNCOMPILED_NAMES,
                call_limit=60,
                budget=205,
            ),
            Plan((LOSS_EXACT,), (64, 128, 256, 512), names=_EXACT_NAMES, call_limit=40, budget=110),
            Plan((LOSS_SAMPLED,), (256, 1024, 4096), names=BACKENDS, call_limit=60, budget=100),
        ),
    },
    "cuda": {
        "quick": (
            Plan(
                _FIRST_KINDS,
                (128, 256, 512, 1024, 2048, 4096),
                budget=270,
                compile_exact=False,
                compiled_batches=(512,),
            ),
        ),
        "paper": (Plan(EVERY_KIND, (128, 256, 512, 1024), _SHAPES, call_limit=30, budget=1800),),
        "scaling": (
            Plan(
                _GROWING_KINDS,
                tuple(2**n for n in range(7, 17)),
                names=_UNCOMPILED_NAMES,
                call_limit=20,
                budget=900,
            ),
        ),
    },
}
# With a hidden vector for every pair calls are longer, and memory grows with A·B where it is kept.
_HIDDEN_PLANS: dict[str, dict[str, tuple[Plan, ...]]] = {
    "cpu": {
        "quick": (
            Plan(
                (LOSS_EXACT, SCORES),
                (64, 128, 256),
                call_limit=60,
                budget=900,
                compile_exact=False,
                compiled_batches=(128,),
            ),
            Plan(
                (LOSS_OFF,),
                (64, 128, 256, 512, 1024),
                call_limit=90,
                budget=1200,
                compiled_batches=(128, 256),
            ),
        ),
        "paper": (
            Plan(EVERY_KIND, (64, 128, 256), _SHAPES, call_limit=90, budget=7200, row_seconds=3),
        ),
        "scaling": (
            Plan(
                (LOSS_OFF,),
                (64, 128, 256, 512, 1024),
                names=_UNCOMPILED_NAMES,
                call_limit=90,
                budget=900,
            ),
            Plan((LOSS_SAMPLED,), (128, 256, 512), names=BACKENDS, call_limit=60, budget=200),
        ),
    },
    "cuda": {
        **_PLANS["cuda"],
        "quick": (
            Plan(
                _FIRST_KINDS,
                (128, 256, 512, 1024),
                budget=270,
                compile_exact=False,
                compiled_batches=(512,),
            ),
        ),
    },
}
PRESETS = ("quick", "paper", "scaling", "all")
# InfoNCE alone by everyone, and the whole loss beside it, in both formats that CLIP is trained in.
_PEER_DTYPES = ("float32", "bfloat16")
_PEER_BATCHES = {
    "cpu": (128, 512, 2048, 4096),
    "cuda": (256, 1024, 4096, 16384, 65536),
}


def plans(preset: str, device_type: str, psi: str = CROSS_ATTENTION) -> tuple[Plan, ...]:
    """The plans of a preset; another device than a CPU or GPU is treated as a CPU."""
    devices = _PLANS if psi == CROSS_ATTENTION else _HIDDEN_PLANS
    known = devices.get(device_type, devices["cpu"])
    parts = known.values() if preset == "all" else (known[preset],)
    return tuple(replace(plan, psi=psi) for part in parts for plan in part)


def peer_plans(device_type: str) -> tuple[Plan, ...]:
    """Of ``--peers``."""
    batches = _PEER_BATCHES.get(device_type, _PEER_BATCHES["cpu"])

    def shapes(frames: int) -> tuple[tuple[int, int, str], ...]:
        return tuple((frames, 512, dtype) for dtype in _PEER_DTYPES)

    return (
        Plan((INFO_NCE,), batches, shapes(1), PEER_NAMES, call_limit=10, budget=240),
        Plan((LOSS_OFF,), batches, shapes(12), BACKENDS, call_limit=10, budget=60),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that choose a preset and change it."""
    parser.add_argument(
        "--psi",
        choices=PSIS,
        default=CROSS_ATTENTION,
        help="the increment network; it changes the preset's sizes; default: %(default)s",
    )
    parser.add_argument("--preset", choices=PRESETS, default="quick", help="default: %(default)s")
    parser.add_argument(
        "--peers",
        action="store_true",
        help="InfoNCE alone, by garevla, plain PyTorch and packages for it, instead of a preset",
    )
    parser.add_argument("--batch", type=int, nargs="+", help="batch sizes instead of the preset's")
    parser.add_argument("--frames", type=int, nargs="+", help="F")
    parser.add_argument(
        "--padding", type=float, help="mean share of padded frames, at most 0.5; default: 0"
    )
    parser.add_argument("--dim", type=int, nargs="+", help="D")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "float64", "bfloat16", "float16"))
    parser.add_argument("--workload", nargs="+", choices=("similarity", "loss", "info_nce"))
    parser.add_argument("--passes", nargs="+", choices=("forward", BOTH))
    parser.add_argument("--direction", nargs="+", choices=("off", "exact", "sampled"))
    parser.add_argument(
        "--implementations",
        nargs="+",
        choices=NAMES + PEER_NAMES,
        metavar="NAME",
        help=f"{NAMES}, and with --peers {PEER_NAMES}",
    )
    parser.add_argument("--limit", type=float, help="longest call that is run, seconds")
    parser.add_argument("--budget", type=float, help="seconds for everything")
    parser.add_argument("--row-seconds", type=float, help="timing of one implementation and case")


def chosen_plans(args: argparse.Namespace, device_type: str) -> tuple[Plan, ...]:
    """The preset's plans with the changes asked for.

    Raises:
        ValueError: no case is left.
    """
    if args.peers and args.psi != CROSS_ATTENTION:
        raise ValueError("--peers measures InfoNCE alone: --psi changes nothing there")
    if not 0 <= (args.padding or 0.0) <= 0.5:
        raise ValueError(f"--padding must be in [0, 0.5], got {args.padding}")
    chosen = peer_plans(device_type) if args.peers else plans(args.preset, device_type, args.psi)
    found = _with_kinds(chosen, args)
    changed = tuple(_changed(plan, args) for plan in found)
    if not any(plan.cases() for plan in changed):
        raise ValueError("nothing is left to measure: these choices exclude each other")
    return changed


def _with_kinds(found: tuple[Plan, ...], args: argparse.Namespace) -> tuple[Plan, ...]:
    """Only the kinds asked for; whoever asks for one gets it, whether or not the preset has it."""
    asked = (args.workload, args.passes, args.direction)

    def fits(kind: Kind) -> bool:
        return all(not values or value in values for value, values in zip(kind, asked, strict=True))

    chosen = tuple(
        replace(plan, kinds=tuple(kind for kind in plan.kinds if fits(kind))) for plan in found
    )
    kept = [kind for plan in chosen for kind in plan.kinds]
    if all(set(values or ()) <= {kind[i] for kind in kept} for i, values in enumerate(asked)):
        return chosen
    usual = {kind[1] for plan in found for kind in plan.kinds}
    kinds = (kind for kind in EVERY_KIND if fits(kind) and (args.passes or kind[1] in usual))
    return (replace(found[0], kinds=tuple(kinds)),)


def _changed(plan: Plan, args: argparse.Namespace) -> Plan:
    if args.frames or args.dim or args.dtype:
        frames, dim, dtype = ([shape[i] for shape in plan.shapes] for i in range(3))
        # InfoNCE alone has one vector a video.
        asked = args.frames if plan.kinds != (INFO_NCE,) else None
        axes = (asked or frames, args.dim or dim, args.dtype or dtype)
        plan = replace(plan, shapes=tuple(dict.fromkeys(product(*axes))))
    if args.batch:
        plan = replace(plan, compiled_batches=None)
    changes = {
        "batches": tuple(args.batch) if args.batch else None,
        "names": _fitting(plan, args.implementations) if args.implementations else None,
        "padding": args.padding,
        "call_limit": args.limit,
        "budget": args.budget,
        "row_seconds": args.row_seconds,
    }
    return replace(plan, **{name: value for name, value in changes.items() if value is not None})


def _fitting(plan: Plan, names: list[str]) -> tuple[str, ...]:
    """Of the names asked for, those that compute what the plan is about."""
    alone = plan.kinds == (INFO_NCE,)
    return tuple(name for name in names if (name in PEER_NAMES) == alone)
