"""A real `modelmount pull` in a process of its own, its registry behind a proxy, and what its store and the registry's
log say of it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes import push, registry
from tests.fakes.driver import Driver
from tests.fakes.proxy import Proxy
from tests.faults.scene import SECONDS, wait_for

PIECE_BYTES = 1 << 20
"""What a kill may cost a connection: the piece that wasn't journalled yet."""
BUFFERED_BYTES = 512 << 10
"""What may lie between the proxy and a process that reads."""
_ESTABLISHED, _CLOSE_WAIT = "01", "08"
OTHER_BYTES = 128 << 10
"""Headers, the manifest, small files."""


@dataclass(frozen=True)
class Ended:
    """How a pull ended."""

    code: int
    objects: list[dict[str, Any]]
    errors: str

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = self.objects[-1]["result"]
        return found

    @property
    def error(self) -> str:
        """The sentence it ended with."""
        return str(self.objects[-1]["error"]["message"])


class Node:
    """A store below `directory`, the command line on it, and a model in `real` behind `proxy`."""

    def __init__(
        self, directory: Path, store: Path, real: registry.Registry, proxy: Proxy, *, connections: int = 1
    ) -> None:
        self.directory, self.store, self.real, self.proxy = directory, store, real, proxy
        settings = {"root": str(store), "pull": {"connections": connections}, "cache": {"free_inodes": 0}}
        self.driver = Driver(directory, [proxy], settings=settings)
        self._running: list[subprocess.Popen[str]] = []

    def start(self, pushed: push.Pushed, *, under: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Begin a pull, `under` a tracer if need be."""
        self.driver.write_config()
        reference = f"{self.proxy.host}/{pushed.repository}:{pushed.tag}"
        process = subprocess.Popen(
            [*under, *self.driver.command("pull", reference, "--json")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.driver.environment(),
        )
        self._running.append(process)
        return process

    def end(self, process: subprocess.Popen[str], number: signal.Signals | None = None) -> Ended:
        """Wait for its end, after a signal if there is one."""
        if number is not None:
            process.send_signal(number)
        out, err = process.communicate(timeout=3 * SECONDS)
        return Ended(process.returncode, [json.loads(line) for line in out.splitlines() if line.strip()], err)

    def pull(self, pushed: push.Pushed, *, under: Sequence[str] = ()) -> Ended:
        """One whole pull."""
        return self.end(self.start(pushed, under=under))

    def close(self) -> None:
        """Kill what still runs."""
        for process in self._running:
            process.kill()
            process.communicate()

    def journalled(self) -> dict[tuple[Path, int], int]:
        """What the journals speak of: data file and offset to length. A line counts once it is whole."""
        found: dict[tuple[Path, int], int] = {}
        for journal in (self.store / "ingest").glob("*/journal"):
            with contextlib.suppress(FileNotFoundError):
                for line in journal.read_text().split("\n"):
                    fields = line.split(" ")
                    if len(fields) == 4 and len(fields[3]) == 8:
                        found[journal.with_name("data"), int(fields[0])] = int(fields[1])
        return found

    @property
    def had(self) -> int:
        """Bytes of layers that a successor need not fetch: committed, or journalled. A blob that was committed when its
        ingest hadn't gone yet counts once.
        """
        blobs = self.store / "blobs/sha256"
        committed = {path.name: path.stat().st_size for path in blobs.glob("[0-9a-f]*")}
        journalled = sum(
            length
            for (data, _), length in self.journalled().items()
            if data.parent.name.partition("-")[0] not in committed
        )
        return sum(size for size in committed.values() if size > OTHER_BYTES) + journalled

    def lost(self, connections: int) -> bool:
        """Whether more of what passed the proxy is lost to a kill than so many connections may lose."""
        return self.proxy.passed - self.had > connections * (PIECE_BYTES + BUFFERED_BYTES) + OTHER_BYTES

    def wait_held(self, process: subprocess.Popen[str], *, connections: int = 1) -> None:
        """Until the proxy holds everything back, and the pull has taken what came."""
        held = self.proxy.hold_at or 0
        wait_for(
            lambda: process.poll() is not None or (self.proxy.passed >= held and not self.lost(connections)),
            f"{held} bytes to arrive",
        )
        assert process.poll() is None, process.communicate()

    def let_go(self) -> None:
        """Hold nothing back any more, and count requests from here: those of processes that have ended are over."""
        self.proxy.hold_at = None
        wait_for(lambda: not connections_at(self.real.port), "the registry to see that its clients are gone")
        self.real.forget()

    def served(self, pushed: push.Pushed) -> int:
        """Bytes of its layers that the registry sent, by its own log."""
        return sum(
            request.size
            for request in self.real.requests()
            if request.method == "GET" and request.digest in pushed.layers and request.status in {200, 206}
        )


def connections_at(port: int) -> int:
    """Connections that the server at a loopback port hasn't closed: it logs a request before that."""
    here = f"0100007F:{port:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(row[1] == here and row[3] in {_ESTABLISHED, _CLOSE_WAIT} for row in rows)


@contextlib.contextmanager
def node(
    directory: Path, real: registry.Registry, *, hold_at: int, store: Path | None = None, connections: int = 1
) -> Iterator[Node]:
    """A node whose registry sends nothing more after so many bytes."""
    real.forget()
    # A configuration names sockets, whose paths have to be short.
    with Proxy(real.port, hold_at=hold_at) as proxy, tempfile.TemporaryDirectory(prefix="mm-f-") as short:
        made = Node(Path(short), store or directory / "store", real, proxy, connections=connections)
        try:
            yield made
        finally:
            made.close()
