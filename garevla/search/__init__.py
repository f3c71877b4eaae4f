"""Searching one's own videos: an index of a folder, and what a text finds in it.

Needs ``pip install "garevla[video]"``.
"""

from typing import TYPE_CHECKING

from garevla.utils.lazy import names_of

# Imported on first use: open_clip takes seconds, and settings have no use for it.
if TYPE_CHECKING:
    from garevla.search.format import LibraryError as LibraryError
    from garevla.search.indexing import IndexReport as IndexReport
    from garevla.search.indexing import index_videos as index_videos
    from garevla.search.library import Library as Library
    from garevla.search.results import Result as Result
    from garevla.search.settings import IndexConfig as IndexConfig
    from garevla.search.settings import SearchConfig as SearchConfig
    from garevla.search.stages import FirstStage as FirstStage
else:
    __getattr__, __dir__, __all__ = names_of(
        __name__,
        {
            "FirstStage": "garevla.search.stages",
            "IndexConfig": "garevla.search.settings",
            "IndexReport": "garevla.search.indexing",
            "Library": "garevla.search.library",
            "LibraryError": "garevla.search.format",
            "Result": "garevla.search.results",
            "SearchConfig": "garevla.search.settings",
            "index_videos": "garevla.search.indexing",
        },
    )
