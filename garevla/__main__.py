"""``python -m garevla`` is the ``garevla`` command."""

from __future__ import annotations

import sys

from garevla.cli import main

if __name__ == "__main__":
    sys.exit(main())
