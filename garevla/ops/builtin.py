"""Enters the backends that come with the package into the table."""

from __future__ import annotations

import garevla.kernels.backend
import garevla.ops.eager.backend
import garevla.ops.native  # noqa: F401
