"""The application: what is answered at which path."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

import garevla
from garevla.search.library import Library
from garevla.serve import media, problems
from garevla.serve.clips import Clips
from garevla.serve.schemas import (
    BadFile,
    BadFiles,
    Found,
    Skip,
    Status,
    TextQuery,
    Top,
)
from garevla.serve.searches import Hits, Searches
from garevla.serve.security import Guard, own_names
from garevla.serve.settings import ServeConfig

_PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/app.js": ("app.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_CLIP = "/api/clips"


def create_app(library: Library, config: ServeConfig, token: str | None = None) -> Any:
    """Make the ASGI application; starting it loads the model, if that has not been done.

    Args:
        library: the index, opened.
        config: where it is listened at, and the bounds.
        token: what a request must know; None for no token.
    """
    api = _Api(library, config)
    app = FastAPI(
        title="garevla",
        version=garevla.__version__,
        description="Search an index of videos.",
        # FastAPI's own pages of documentation come from other servers.
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=api.lifespan,
        responses=problems.DESCRIBED,
    )
    api.add_to(app)
    hosts = own_names(config.host) if config.is_local else None
    return Guard(app, hosts, token, large=frozenset({_CLIP}))


class _Api:
    def __init__(self, library: Library, config: ServeConfig) -> None:
        self.config = config
        self.searches = Searches(library, config.candidates, config.waiting)
        self.clips: Clips

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self.clips = Clips(self.config)
        try:
            yield
        finally:
            self.clips.close()

    def add_to(self, app: FastAPI) -> None:
        clip = {"requestBody": {"required": True, "content": {"video/*": {}}}}
        add = app.add_api_route
        add("/api/search", self.search, methods=["POST"])
        add(_CLIP, self.search_by_clip, methods=["POST"], openapi_extra=clip)
        add(f"{_CLIP}/{{clip}}", self.results_of_clip)
        add("/api/status", self.status)
        add("/api/bad-files", self.bad_files)
        add("/api/thumbnails/{segment_id}", self.thumbnail, response_class=Response)
        add("/api/videos/{video_id}", self.video, response_class=Response)
        for path, (name, media_type) in _PAGE_FILES.items():
            app.add_route(path, _page_file(_PAGE / name, media_type))
        problems.add_to(app)

    async def search(self, query: TextQuery) -> Found:
        """Find the parts of videos that a text describes."""
        if not query.text.strip():
            raise HTTPException(422, "text is empty")
        return _page(await self.searches.of_text(query.text), query.top, query.skip)

    async def search_by_clip(self, request: Request, top: Annotated[Top, Query()] = 12) -> Found:
        """Find what looks like a clip, which is the body of the request."""
        model = (await run_in_threadpool(self.searches.library)).model
        frames = await self.clips.frames(request, model.sampling, model.model.encoder.resizing)
        clip = self.searches.keep_clip(frames)
        return _page(await self.searches.of_clip(clip), top, 0, clip)

    async def results_of_clip(
        self, clip: str, top: Annotated[Top, Query()] = 12, skip: Annotated[Skip, Query()] = 0
    ) -> Found:
        """Further pages of what looks like a clip."""
        return _page(await self.searches.of_clip(clip), top, skip, clip)

    def status(self) -> Status:
        """What the index holds, and how it was made."""
        status = self.searches.library().status()
        bad = status.pop("bad")
        names = {name: media.readable(status[name]) for name in ("path", "video_dir", "model")}
        return Status(
            **{**status, **names}, bad_files=len(bad), most_clip_bytes=self.clips.most_bytes
        )

    def bad_files(
        self, top: Annotated[Top, Query()] = 100, skip: Annotated[Skip, Query()] = 0
    ) -> BadFiles:
        """Files that could not be indexed, and why."""
        bad = self.searches.library().status()["bad"]
        files = [
            BadFile(media.readable(each["path"]), media.readable(each["reason"]))
            for each in bad[skip : skip + top]
        ]
        return BadFiles(len(bad), skip, files)

    def thumbnail(self, segment_id: int, request: Request) -> Any:
        """A picture of a segment, JPEG."""
        try:
            return media.thumbnail(self.searches.library(), segment_id, request)
        except KeyError as error:
            raise HTTPException(404, f"no segment {segment_id}") from error

    def video(self, video_id: int) -> Any:
        """A video, or ranges of it."""
        try:
            return media.video(self.searches.library(), video_id)
        except KeyError as error:
            raise HTTPException(404, f"no video {video_id}") from error
        except FileNotFoundError as error:
            raise HTTPException(404, str(error)) from error


def _page(hits: Hits, top: int, skip: int, clip: str | None = None) -> Found:
    results = list(hits.items[skip : skip + top])
    return Found(len(hits.items), skip, hits.nothing_like_it, results, clip)


def _page_file(path: Path, media_type: str) -> Any:
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}

    def answer(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return answer
