"""Clips to search with: received, and decoded in processes that may crash or never end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import numpy as np
from fastapi import Request
from starlette.exceptions import HTTPException

from garevla.data.decoding_processes import DecodingPool
from garevla.data.frame_sampling import Sampling
from garevla.data.resizing import Resizing
from garevla.serve.decoding import frames_file
from garevla.serve.searches import BusyError
from garevla.serve.settings import ServeConfig

# Clips that may be on their way, and that are decoded at once.
_UPLOADS = 4
_PROCESSES = 2


class Clips:
    """Receives and decodes clips; to be closed.

    Args:
        config: the bounds.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.most_bytes = int(config.upload_megabytes * 1e6)
        self._seconds = config.upload_seconds
        self._pool = DecodingPool("garevla.serve.decoding:decode", None, config.decode_seconds)
        # A thread keeps its process.
        self._threads = ThreadPoolExecutor(_PROCESSES)
        self._folder = tempfile.TemporaryDirectory(prefix="garevla-serve-")
        self._on_their_way = 0

    def close(self) -> None:
        """End the processes and remove what was received."""
        self._pool.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._folder.cleanup()

    async def frames(self, request: Request, sampling: Sampling, resizing: Resizing) -> np.ndarray:
        """The frames of the clip that is a request's body.

        Args:
            request: nothing of its body has been read.
            sampling, resizing: as the model takes them.

        Returns:
            uint8 (n, H, W, 3).

        Raises:
            BusyError: too many at once.
            HTTPException: it is too large, too slow, empty, or cannot be decoded.
        """
        if self._on_their_way >= _UPLOADS:
            raise BusyError("too many clips at once: try again in a few seconds")
        self._on_their_way += 1
        try:
            async with self._file() as path:
                await self._receive(request, path)
                question = {
                    "path": str(path),
                    "sampling": sampling.as_settings(),
                    "resizing": resizing.as_settings(),
                }
                loop = asyncio.get_running_loop()
                answer = await loop.run_in_executor(self._threads, self._pool.ask, question)
                reason = answer if isinstance(answer, str) else answer["reason"]
                if reason is not None:
                    raise HTTPException(422, f"the clip cannot be used: {reason}")
                frames: np.ndarray = np.load(frames_file(path))
                return frames
        finally:
            self._on_their_way -= 1

    @contextlib.asynccontextmanager
    async def _file(self) -> AsyncIterator[Path]:
        handle, name = tempfile.mkstemp(dir=self._folder.name)
        os.close(handle)
        path = Path(name)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
            frames_file(path).unlink(missing_ok=True)

    async def _receive(self, request: Request, path: Path) -> None:
        too_large = HTTPException(413, f"a clip has at most {self.most_bytes:,} bytes")
        if int(request.headers.get("content-length", 0)) > self.most_bytes:
            raise too_large
        received = 0
        try:
            with anyio.fail_after(self._seconds):
                async with await anyio.open_file(path, "wb") as file:
                    async for chunk in request.stream():
                        received += len(chunk)
                        if received > self.most_bytes:
                            raise too_large
                        await file.write(chunk)
        except TimeoutError as error:
            raise HTTPException(408, "the clip took too long to arrive") from error
        if not received:
            raise HTTPException(422, "the clip is empty: it is to be the body of the request")
