"""Python code in documents."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any


def snippets(document: Path) -> list[str]:
    """Every block of Python, from first to last."""
    return re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.S)


def names_of(code: str, folder: Path) -> dict[str, Any]:
    """Run a block as a file in a folder; what it defines."""
    file = folder / "snippet.py"
    file.write_text(code, encoding="utf-8")
    return runpy.run_path(str(file))
