from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Not to be changed."""
    return _make(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def library(served: Any) -> Any:
    library = served.open()
    _ = library.model
    return library


@pytest.fixture
def changing(tmp_path: Path) -> Any:
    """Of one video, to be changed."""
    return _make(tmp_path, videos=1)


@pytest.fixture(scope="session")
def config(served: Any) -> Any:
    return served.config()


@pytest.fixture
def listening(library: Any, config: Any) -> Iterator[Callable[..., str]]:
    """Begins to listen, with settings and a token; returns the address."""
    uvicorn = importlib.import_module("uvicorn")
    create_app = importlib.import_module("garevla.serve.app").create_app
    running: list[tuple[Any, threading.Thread]] = []

    def begin(token: str | None = None, **settings: Any) -> str:
        app = create_app(library, replace(config, **settings), token)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    yield begin
    for server, thread in running:
        server.should_exit = True
        thread.join()


def _make(folder: Path, **options: Any) -> Any:
    return importlib.import_module("tests.serve.served").make(folder, **options)
