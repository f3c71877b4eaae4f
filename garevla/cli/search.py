"""``garevla search``."""

from __future__ import annotations

import json

SUMMARY = "find the parts of indexed videos that a text describes"


def run(arguments: list[str]) -> int:
    """Search an index and print what is found."""
    from garevla.cli.flags import parse
    from garevla.search.settings import SearchConfig

    config = parse("search", SUMMARY, SearchConfig, arguments, positional=("library", "text"))
    from garevla.search.library import Library
    from garevla.search.results import LITTLE_CONFIDENCE

    library = Library.open(
        config.library, model=config.model, device=config.device, precision=config.precision
    )
    if config.like is not None:
        results = library.like(config.like, config.top, candidates=config.candidates)
    else:
        assert config.text is not None  # SearchConfig has seen to it
        results = library.search(
            config.text, config.top, candidates=config.candidates, exact=config.exact
        )
    if config.contact_sheet is not None:
        from garevla.search.picture import contact_sheet

        contact_sheet(config.contact_sheet, config.text or str(config.like), results)
    if config.json:
        print(json.dumps([result.as_dict() for result in results], indent=2))
        return 0
    for place, result in enumerate(results, start=1):
        print(f"{place:3}.  {result.line()}")
    best = results[0].confidence if results else 0.0
    if best is not None and best < LITTLE_CONFIDENCE:
        print(f"Nothing here is much like it: confidence {best:.2f}")
    return 0
