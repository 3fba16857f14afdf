"""A source of blobs that are files of a directory, with faults on command: what a pull does about them is its own
business, and no registry is needed to see it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from modelmount import errors
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest

MEDIA_TYPE = "application/octet-stream"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one open. `cut` ends the stream after so many bytes, `flip` damages the byte at a position
    of the blob, `extra` sends bytes behind the end, `from_start` ignores the offset, `error` is raised instead.
    """

    cut: int | None = None
    flip: int | None = None
    extra: bytes = b""
    from_start: bool = False
    error: errors.ModelMountError | None = None


class MemorySource:
    """Blobs by digest. `opens` records digest and offset of each open; `faults` are used up one an open.

    `open_now` are open, `most_open` were at once, by those who close what they open.
    `gate` is called before each read with the digest and the position, so that a test can hold a download there.
    """

    def __init__(self, *contents: bytes, name: str = "registry.example.com") -> None:
        self.name = name
        self.blobs = {Digest.of(content): content for content in contents}
        self.opens: list[tuple[Digest, int]] = []
        self.faults: deque[Fault] = deque()
        self.gate: Callable[[Digest, int], None] = lambda digest, position: None
        self.open_now = self.most_open = 0
        self._lock = threading.Lock()

    def put(self, content: bytes) -> Descriptor:
        """Add a blob; its descriptor."""
        digest = Digest.of(content)
        self.blobs[digest] = content
        return Descriptor(MEDIA_TYPE, digest, len(content))

    @property
    def origin(self) -> Self:
        """Itself."""
        return self

    @property
    def elsewhere(self) -> Mapping[str, int]:
        return {}

    def blame(self, descriptor: Descriptor, reason: str) -> bool:
        """There is but this one."""
        return False

    def open(self, descriptor: Descriptor, offset: int, end: int | None = None) -> Stream:
        """Serve from `offset` to `end`, or as the next fault says."""
        with self._lock:
            self.opens.append((descriptor.digest, offset))
            fault = self.faults.popleft() if self.faults else Fault()
        if fault.error is not None:
            raise fault.error
        if descriptor.digest not in self.blobs:
            raise errors.NotFound(f"{descriptor.digest} is not here")
        content = bytearray(self.blobs[descriptor.digest])
        if fault.flip is not None:
            content[fault.flip] ^= 1
        start = 0 if fault.from_start else offset
        data = bytes(content[start : None if fault.from_start else end]) + fault.extra
        with self._lock:
            self.open_now += 1
            self.most_open = max(self.most_open, self.open_now)
        data = data if fault.cut is None else data[: fault.cut]
        return Stream(start, data, descriptor.digest, self.gate, self._closed)

    def _closed(self) -> None:
        with self._lock:
            self.open_now -= 1


class Stream:
    """One open blob."""

    def __init__(
        self,
        offset: int,
        data: bytes,
        digest: Digest,
        gate: Callable[[Digest, int], None],
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self.offset = offset
        self._closed: Callable[[], None] | None = closed
        self._data = data
        self._digest = digest
        self._gate = gate
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def readinto(self, view: memoryview) -> int:
        """The next bytes; 0 at the end."""
        self._gate(self._digest, self.offset + self._position)
        part = self._data[self._position : self._position + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def interrupt(self) -> None:
        """Nothing is waited for."""

    def close(self) -> None:
        """Let go of it."""
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()
