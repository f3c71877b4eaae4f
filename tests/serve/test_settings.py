from __future__ import annotations

import socket

import pytest

from garevla.cli import main
from garevla.serve.run import _address
from garevla.serve.settings import ServeConfig
from garevla.training.config import ConfigError


def test_what_is_local():
    for host in ("localhost", "127.0.0.1", "127.0.0.2", "::1"):
        assert ServeConfig(library=".", host=host).is_local, host
    for host in ("0.0.0.0", "::", "192.168.0.1", "videos.example", "", "localhost.evil.example"):
        assert not ServeConfig(library=".", host=host).is_local, host


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65536),
        ("port", -1),
        ("candidates", 0),
        ("waiting", 0),
        ("upload_megabytes", 0.0),
        ("upload_seconds", -1.0),
        ("decode_seconds", float("nan")),
        ("token", ""),
        ("token", "short"),
        ("token", "with spaces in it, long"),
    ],
)
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(ConfigError, match=name) as info:
        ServeConfig(library=".", **{name: value})
    assert name != "token" or not value or value not in str(info.value)


def test_a_port_in_use(capsys, served):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(served.folder), "--port", port]) == 2
    assert f"cannot listen at 127.0.0.1 port {port}" in capsys.readouterr().err


def test_no_index(capsys, tmp_path):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert "no index in" in capsys.readouterr().err


def test_the_address_holds_the_token():
    config = ServeConfig(library=".", host="::1", token="0123456789abcdef")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert _address(config, listener) == f"http://[::1]:{port}/?token=0123456789abcdef"
