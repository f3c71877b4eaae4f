"""Answers that say what is wrong, all in one form."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from garevla.search.format import LibraryError
from garevla.serve.media import readable
from garevla.serve.schemas import Problem
from garevla.serve.searches import BusyError, NoSuchClipError

_log = logging.getLogger(__name__)

# For the API's description.
DESCRIBED: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem} for code in (401, 403, 404, 413, 421, 422, 500, 503)
}


def problem(status: int, error: str, headers: dict[str, str] | None = None) -> Response:
    """The answer with a status and a message."""
    return JSONResponse({"error": readable(error)}, status, headers)


def add_to(app: Any) -> None:
    """Let an application answer so to all errors."""
    for error, handle in (
        (RequestValidationError, _invalid),
        (HTTPException, _http_error),
        (BusyError, _busy),
        (NoSuchClipError, _no_such_clip),
        (LibraryError, _broken),
        (OSError, _broken),
        (ClientDisconnect, _unfinished),
        (Exception, _failed),
    ):
        app.add_exception_handler(error, handle)


def _invalid(request: Request, error: Any) -> Response:
    return problem(422, "; ".join(map(_what, error.errors())))


def _what(error: dict[str, Any]) -> str:
    # "body", "query" or "path", then the name; of malformed JSON, the position.
    place = error["loc"][1:]
    if error["type"] == "json_invalid":
        return f"the body is no JSON, at character {place[0]}: {error['ctx']['error']}"
    if error["loc"] == ("body",):
        return "the body must be a JSON object, with content-type: application/json"
    return f"{'.'.join(map(str, place))}: {error['msg']}"


def _http_error(request: Request, error: Any) -> Response:
    return problem(error.status_code, str(error.detail), error.headers)


def _busy(request: Request, error: Exception) -> Response:
    return problem(503, str(error), {"retry-after": "5"})


def _no_such_clip(request: Request, error: Exception) -> Response:
    return problem(404, "the clip is not known any more: send it again")


def _broken(request: Request, error: Exception) -> Response:
    _log.error("%s", error)
    return problem(500, str(error))


def _unfinished(request: Request, error: Exception) -> Response:
    return problem(400, "the request was not finished")


def _failed(request: Request, error: Exception) -> Response:
    return problem(500, "an error of the server's: its output says more")
