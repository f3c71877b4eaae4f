"""Settings of a network ψ, for what reads them without torch."""

from __future__ import annotations

from typing import Literal

DropoutMode = Literal["video", "pair"]
"""How the dropout masks are drawn."""

PsiInit = Literal["published", "small"]
"""How long the increments are before training: :mod:`garevla.increments.initialization`."""
