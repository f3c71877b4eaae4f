"""The table of versions in docs/building.md is the one that was measured."""

from __future__ import annotations

import json
import re

from tests import matrix


def test_the_document_shows_the_committed_table():
    text = (matrix.ROOT / "docs/building.md").read_text()
    shown = re.search(r"<!-- matrix -->\n(.*)<!-- end of matrix -->", text, re.S)[1]
    assert shown.strip() == matrix.markdown(json.loads(matrix.TABLE.read_text()))


def test_the_oldest_and_the_newest_version_were_run_and_none_failed():
    rows = json.loads(matrix.TABLE.read_text())["rows"]
    assert [row["failed"] + row["error"] for row in rows] == [0] * len(rows)
    run = [matrix._minor(row["torch"]) for row in rows]
    supported = [matrix._minor(version.torch) for version in matrix.SUPPORTED]
    assert set(run) <= set(supported)
    assert (min(run), max(run)) == (min(supported), max(supported))
