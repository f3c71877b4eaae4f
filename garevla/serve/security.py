"""Who is answered at all, before anything else looks at a request."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException

from garevla.serve.problems import problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# A query is a few hundred bytes.
_MOST_BODY = 1 << 16
_OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; media-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

_NO_TOKEN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>garevla</title>
<h1>This page needs its token</h1>
<p>Open the address that <code>garevla serve</code> has printed, with the token at its end.</p>"""


class Guard:
    """ASGI middleware: own host name, token, no requests of other sites, small bodies, headers.

    Args:
        app: the application.
        hosts: names that a request may call this server by, without a port; None takes any. On a
            machine's own address, a page of another site could else reach it under a name of its
            own (DNS rebinding).
        token: None asks for none.
        large: paths whose handlers bound their bodies themselves.
    """

    def __init__(
        self, app: Any, hosts: frozenset[str] | None, token: str | None, large: frozenset[str]
    ) -> None:
        self.app = app
        self.hosts = hosts
        self.large = large
        self.token = token
        # No more than this machine needs to know a browser again is kept there.
        digest = hashlib.sha256(f"garevla {token}".encode()).hexdigest()
        self.cookie, self.cookie_name = digest[:48], f"garevla_{digest[48:]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        if scope["path"] not in self.large:
            receive = _bounded(receive)
        await self.app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and _without_port(host) not in self.hosts:
            return problem(421, "this server is asked by a name that is not its own")
        if self.token is not None and (refusal := self._without_token(scope, headers)):
            return refusal
        if scope["path"].startswith("/api/") and _is_of_another_site(headers, host):
            return problem(403, "requests of other sites are not answered")
        if scope["path"] not in self.large and _length(headers) > _MOST_BODY:
            return problem(413, f"a request has at most {_MOST_BODY:,} bytes")
        return None

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a request that does not know the token, or that has brought it in the
        page's address, where it is not to stay."""
        given = QueryParams(scope["query_string"]).get("token")
        if scope["path"] == "/" and given is not None and _same(given, self.token or ""):
            is_encrypted = scope.get("scheme") == "https"
            answer = RedirectResponse("/", 303, headers={"cache-control": "no-store"})
            # Strict would refuse the page where a link of another site has led to this address.
            answer.set_cookie(
                self.cookie_name, self.cookie, httponly=True, samesite="lax", secure=is_encrypted
            )
            return answer
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(bearer.strip(), self.token or ""):
            return None
        if any(_same(value, self.cookie) for value in _cookies(headers, self.cookie_name)):
            return None
        challenge = {"www-authenticate": "Bearer", "cache-control": "no-store"}
        if scope["path"] == "/":
            return HTMLResponse(_NO_TOKEN, 401, challenge)
        return problem(401, "the token is missing or wrong", challenge)


def own_names(host: str) -> frozenset[str]:
    """The names of a server that only its own machine can reach, at an address."""
    return frozenset({*_OWN_NAMES, f"[{host}]" if ":" in host else host})


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _cookies(headers: Headers, name: str) -> list[str]:
    pairs = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
    return [value for found, _, value in pairs if found == name]


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _is_of_another_site(headers: Headers, host: str) -> bool:
    # Browsers tell it where the connection is one that they trust, also by a tunnel or a proxy.
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != host


def _length(headers: Headers) -> int:
    length = headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() else 0


def _bounded(receive: Receive) -> Receive:
    """Receive no more of a body than a request may have, whatever length it has claimed."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > _MOST_BODY:
            raise HTTPException(413, f"a request has at most {_MOST_BODY:,} bytes")
        return message

    return bounded


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message["headers"] = [*message.get("headers", ()), *added]
        await send(message)

    return with_headers
