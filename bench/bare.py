"""What a durable pull of small files can't do without, and nothing else: the floor under case c."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bench import artifact
from bench.artifact import Layer
from bench.peers import Target
from bench.processes import FailedError
from bench.rounds import Sample
from modelmount.pull.smalls import GROUP_BYTES
from modelmount.system import atomic

_LENGTH: Final = re.compile(rb"\r\nContent-Length: ([0-9]+)\r\n")
_HEAD_BYTES: Final = 64 << 10


class Bare:
    """One request a file over one connection, its hash, a new file and the record that this repository had it; for each
    group of as many bytes as a pull may lose, one sync before the files get their names and one after; at last a
    directory of links, synced. In one thread of this process: no manifest, no locks, no journal, no tokens, no retries,
    and no answer that isn't nginx's.
    """

    name = "the bare steps"
    version = "Python"
    verifies = durable = True

    def __init__(self, target: Target) -> None:
        self._target = target

    def run(self) -> Sample:
        """One pull."""
        place = self._target.place
        for room in ("blobs", "scopes", "tree"):
            (place / room).mkdir(parents=True)
        host, _, port = self._target.server.host.rpartition(":")
        before, began = time.process_time(), time.monotonic()
        record = ""
        with socket.create_connection((host, int(port))) as connection:
            for group in _groups(self._target.artifact.layers):
                record = self._store(group, [self._fetch(connection, layer) for layer in group], record)
        for layer in self._target.artifact.layers:
            os.link(_blob(place, layer), place / "tree" / layer.name)
        atomic.fsync_directory(place / "tree")
        sample = Sample(time.monotonic() - began, cpu=time.process_time() - before)
        self._target.discard(place)
        return sample

    def _fetch(self, connection: socket.socket, layer: Layer) -> memoryview:
        path = f"/v2/{artifact.REPOSITORY}/blobs/{layer.digest}"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {self._target.server.host}\r\n\r\n".encode())
        buffer = bytearray(_HEAD_BYTES + layer.size)
        view, filled = memoryview(buffer), 0
        while (end := buffer.find(b"\r\n\r\n", 0, filled)) < 0 or filled < end + 4 + layer.size:
            count = connection.recv_into(view[filled:])
            if not count:
                raise FailedError("the server ended the connection")
            filled += count
        length = _LENGTH.search(buffer, 0, end + 2)
        data = view[end + 4 : filled]
        if length is None or int(length[1]) != layer.size or hashlib.sha256(data).hexdigest() != _hex(layer):
            raise FailedError(f"the server's answer for {layer.digest} is wrong")
        return data

    def _store(self, group: Sequence[Layer], contents: Sequence[memoryview], record: str) -> str:
        """Returns the file that the next records are names of."""
        place = self._target.place
        with atomic.GroupSync(place) as sync:
            for layer, data in zip(group, contents, strict=True):
                scope = f"{place}/scopes/{_hex(layer)}"
                os.mkdir(scope, 0o700)
                if record:
                    os.link(record, f"{scope}/record")
                else:
                    os.mknod(record := f"{scope}/record", 0o400 | stat.S_IFREG)
                file = os.open(f"{_blob(place, layer)}.new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
                os.write(file, data)
                atomic.seal(file)
                os.close(file)
            sync.sync(())
        for layer in group:
            os.rename(f"{_blob(place, layer)}.new", _blob(place, layer))
        atomic.fsync_directory(place / "blobs")
        return record


def _groups(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    group: list[Layer] = []
    size = 0
    for layer in layers:
        if group and size + layer.size > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(layer)
        size += layer.size
    yield group


def _hex(layer: Layer) -> str:
    return layer.digest.removeprefix("sha256:")


def _blob(place: Path, layer: Layer) -> str:
    return f"{place}/blobs/{_hex(layer)}"
