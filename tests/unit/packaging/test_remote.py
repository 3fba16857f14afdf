"""Files at URLs: of this machine, of a web server that lists them."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmount.errors import InvalidRequest, Unavailable
from modelmount.packaging import remote
from modelmount.packaging.files import Wanted

NOBODY = threading.Event()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass

    def log_error(self, *arguments: object) -> None:
        pass


@pytest.fixture
def top(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "sub dir").mkdir(parents=True)
    (made / "config.json").write_text('{"model_type": "llama"}')
    (made / "sub dir/100 %.bin").write_bytes(bytes(range(256)) * 5000)
    (made / "empty").write_bytes(b"")
    return made


@pytest.fixture
def web(top: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(top.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def read(url: str, *exclude: str) -> dict[str, bytes]:
    return {file.path: b"".join(file.pieces(NOBODY)) for file in remote.files(url, Wanted(exclude=exclude))}


def expected(top: Path) -> dict[str, bytes]:
    return {p.relative_to(top).as_posix(): p.read_bytes() for p in top.rglob("*") if p.is_file()}


@pytest.mark.parametrize("end", ["", "/"])
def test_a_directory_of_this_machine(top: Path, end: str) -> None:
    assert read(f"file://{top}{end}") == expected(top)
    assert set(read(f"file://{top}", "sub dir/")) == {"config.json", "empty"}


@pytest.mark.parametrize("end", ["", "/"])
def test_a_directory_of_a_web_server(top: Path, web: str, end: str) -> None:
    assert read(f"{web}/model{end}") == expected(top)


def test_one_file(top: Path, web: str) -> None:
    assert (
        read(f"file://{top}/config.json")
        == read(f"{web}/model/config.json")
        == {"config.json": b'{"model_type": "llama"}'}
    )


@pytest.mark.parametrize("url", ["file:///nowhere/at/all", "{web}/absent"])
def test_nothing_there(web: str, url: str) -> None:
    with pytest.raises((InvalidRequest, Unavailable), match=r"doesn't exist|can't be read"):
        read(url.format(web=web))


def test_what_nobody_can_open_is_said_without_what_may_be_secret() -> None:
    with pytest.raises(InvalidRequest, match="nosuch://host/x: fsspec doesn't know such URLs") as refused:
        read("nosuch://user:pa55word@host/x?signature=s3cret")
    assert "pa55word" not in refused.value.message
    assert "s3cret" not in refused.value.message


def test_trouble_over_there_has_no_word_of_the_url(web: str) -> None:
    with pytest.raises((InvalidRequest, Unavailable)) as refused:
        read(web.replace("http://", "http://user:pa55word@") + "/absent?signature=s3cret")
    assert "pa55word" not in refused.value.message
    assert "s3cret" not in refused.value.message


@pytest.mark.parametrize(
    ("text", "url"), [("s3://b/x", True), ("file:///x", True), ("./x", False), ("/a://b", False), ("C:x", False)]
)
def test_what_is_a_url(text: str, url: bool) -> None:
    assert remote.is_url(text) is url


def test_without_fsspec_a_url_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(InvalidRequest, match=r"needs fsspec: install modelmount\[push\]"):
        read("s3://bucket/model")


def test_nobody_loads_fsspec_before_a_url_is_named() -> None:
    """The driver is the same program, and must not need it."""
    code = "import sys, modelmount.cli; sys.exit('fsspec' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )
