"""How the dropout masks of a network ψ are drawn."""

from __future__ import annotations

from typing import Literal

DropoutMode = Literal["video", "pair"]
