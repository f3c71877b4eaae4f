"""Settings of ``garevla models``."""

from __future__ import annotations

from dataclasses import dataclass

from garevla.training.config import Mode


@dataclass
class ModelsConfig:
    """Which models to list; all by default."""

    mode: Mode | None = None
    """Only those that a mode takes."""
    family: str | None = None
    """Only those with this text in their names, in timm's or the tokenizer's, or in the words for
    their towers: SigLIP2, pe_core, bidirectional. May be given without its flag."""
