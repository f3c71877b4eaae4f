"""Listening, until it is interrupted."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import replace

from garevla.data._optional import require
from garevla.search.library import Library
from garevla.serve.settings import ServeConfig

_TOKEN_VARIABLE = "GAREVLA_TOKEN"


def serve(config: ServeConfig) -> None:
    """Serve an index until SIGINT or SIGTERM.

    Raises:
        ImportError: FastAPI or uvicorn is not installed.
        OSError: the address cannot be listened at.
        ConfigError: the token of the environment is too short.
        LibraryError, FileNotFoundError, CheckpointError, PretrainedWeightsError: as
            :class:`garevla.search.Library`.
    """
    uvicorn = require("uvicorn", extra="serve")
    require("fastapi", extra="serve")
    from garevla.serve.app import create_app

    if config.token is None and (token := os.environ.get(_TOKEN_VARIABLE)):
        config = replace(config, token=token)
    if config.token is None and not config.is_local:
        config = replace(config, token=secrets.token_urlsafe(24))
    # First what may fail and takes no time.
    with _listen(config.host, config.port) as listener:
        library = Library.open(
            config.library, model=config.model, device=config.device, precision=config.precision
        )
        print("Loading the model …", flush=True)
        _ = library.model
        settings = uvicorn.Config(
            create_app(library, config, config.token),
            # Addresses may hold the token.
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        print(f"Open {_address(config, listener)} (Ctrl+C ends it)", flush=True)
        uvicorn.Server(settings).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen at {host} port {port}: {error}") from error


def _address(config: ServeConfig, listener: socket.socket) -> str:
    host = socket.gethostname() if config.host in ("0.0.0.0", "::") else config.host
    host = f"[{host}]" if ":" in host else host
    token = f"?token={config.token}" if config.token else ""
    return f"http://{host}:{listener.getsockname()[1]}/{token}"
