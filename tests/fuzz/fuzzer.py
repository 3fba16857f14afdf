"""A small fuzzer: it changes inputs that are known, and keeps what reached lines that nothing before it reached."""

from __future__ import annotations

import hashlib
import random
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.fuzz.targets import Target

DRIVER = str(Path(__file__).resolve().parents[2] / "driver/modelmount")
CORPUS = Path(__file__).resolve().parent / "corpus"
"""Inputs that earlier runs kept, a directory for each target."""
MAX_BYTES = 64 << 10
MAX_CPU_SECONDS = 10.0
"""More than any input of so few bytes may take of a processor."""


class FindingError(Exception):
    """A target did what it may not; `data` makes it do so again."""

    def __init__(self, data: bytes, cause: str) -> None:
        super().__init__(cause)
        self.data = data


class Fuzzer:
    """One target. The same `seed` makes the same inputs, unless it may `grow`: what lines threads reach is chance."""

    def __init__(self, name: str, target: Target, seed: int, *, grow: bool = True) -> None:
        self.name, self._target, self._grow = name, target, grow
        self._random = random.Random(seed)
        self.pool = list(known(name, target))
        self.kept: list[bytes] = []
        self.runs = 0
        self._lines: set[tuple[CodeType, int]] = set()

    def begin(self) -> None:
        """Run what is known. Raises FindingError."""
        for data in self.pool:
            self._run(data)

    def step(self) -> None:
        """Run a new input; keep it where it went somewhere new. Raises FindingError."""
        data = self._mutated()
        if self._run(data) and self._grow:
            self.pool.append(data)
            self.kept.append(data)

    def _run(self, data: bytes) -> bool:
        """Whether it reached a line that nothing before reached."""
        self.runs += 1
        before, began = len(self._lines), time.process_time()
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        try:
            self._target.run(data)
        except Exception as e:
            raise FindingError(data, f"{type(e).__name__}: {e}") from e
        finally:
            sys.settrace(None)
            threading.settrace(None)
        seconds = time.process_time() - began
        if seconds > MAX_CPU_SECONDS:
            raise FindingError(data, f"it took {seconds:.1f} s of a processor")
        return len(self._lines) > before

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Only lines of the driver count."""
        if not frame.f_code.co_filename.startswith(DRIVER):
            return None
        return self._trace_lines

    def _trace_lines(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self._lines.add((frame.f_code, frame.f_lineno))
        return self._trace_lines

    # -- mutation

    def _mutated(self) -> bytes:
        choose = self._random
        data = bytearray(choose.choice(self.pool))
        for _ in range(1 << choose.randrange(5)):
            at = choose.randrange(len(data) + 1)
            length = min(1 << choose.randrange(10), len(data) - at)
            match choose.randrange(9):
                case 0:
                    data[at:at] = bytes([choose.randrange(256)])
                case 1 if at < len(data):
                    data[at] ^= 1 << choose.randrange(8)
                case 2 if at < len(data):
                    data[at] = choose.choice(b'\x00\x01\x7f\x80\xff/.:@"\\[]{}09aZ\n')
                case 3:
                    del data[at : at + length]
                case 4:
                    data[at:at] = data[at : at + length]
                case 5 if self._target.words:
                    data[at:at] = choose.choice(self._target.words)
                case 6 if self._target.words:
                    word = choose.choice(self._target.words)
                    data[at : at + len(word)] = word
                case 7:
                    other = choose.choice(self.pool)
                    start = choose.randrange(len(other) + 1)
                    data[at : at + length] = other[start : start + length]
                case 8:
                    block = at - at % 512
                    if self.name in {"tar", "rootfs"} and block + 512 <= len(data):
                        _with_checksum(data, block)
        return bytes(data[:MAX_BYTES])


def known(name: str, target: Target) -> Iterator[bytes]:
    """The seeds, and what earlier runs kept."""
    yield from target.seeds
    for path in sorted((CORPUS / name).glob("*")):
        yield path.read_bytes()


def save(directory: Path, found: Iterable[bytes]) -> list[Path]:
    """Write inputs under the names of their hashes."""
    paths = []
    directory.mkdir(parents=True, exist_ok=True)
    for data in found:
        path = directory / hashlib.sha256(data).hexdigest()[:16]
        path.write_bytes(data)
        paths.append(path)
    return paths


def _with_checksum(data: bytearray, start: int) -> None:
    """Make the sum of a tar header right, so that more of it is read than its sum."""
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
