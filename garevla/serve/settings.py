"""Settings of ``garevla serve``."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from garevla.training.config import ComputeSettings, ConfigError, check_at_least

_TOKEN = re.compile(r"[!-~]{16,}")


@dataclass(kw_only=True)
class ServeConfig(ComputeSettings):
    """What to serve, and to whom."""

    library: Path
    """An index that 'garevla index' made; may be given without its flag, first."""
    host: str = "127.0.0.1"
    """Address to listen at. Any but this machine's own, such as 0.0.0.0, takes a token."""
    port: int = 8765
    """Port to listen at; 0 takes a free one."""
    token: str | None = None
    """What a browser or program must know, at least 16 letters, digits and signs. Default: the
    environment's GAREVLA_TOKEN, which other users of the machine cannot see; else none at this
    machine's own addresses, and a new one at others."""
    model: str | None = None
    """Where the checkpoint of the index is now, if it has moved."""
    candidates: int = 200
    """Segments of the first stage that are scored exactly."""
    waiting: int = 128
    """Searches that may wait for their turn; more are refused."""
    upload_megabytes: float = 200.0
    """Most megabytes of a clip to search with."""
    upload_seconds: float = 120.0
    """Most seconds that such a clip may take to arrive."""
    decode_seconds: float = 60.0
    """Most seconds that it may take to decode."""

    def __post_init__(self) -> None:
        check_at_least("port", self.port, 0)
        if self.port > 65535:
            raise ConfigError(f"port must be at most 65535, got {self.port}")
        check_at_least("candidates", self.candidates, 1)
        check_at_least("waiting", self.waiting, 1)
        for name in ("upload_megabytes", "upload_seconds", "decode_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            # Not repeated here: it may get into a log.
            raise ConfigError(
                "token must be at least 16 letters, digits and signs of ASCII, no spaces"
            )

    @property
    def is_local(self) -> bool:
        """Whether no other machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
