"""A part of the cluster: a child process that may be stopped and started again."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tests.fakes.tools import tool

STOP_SECONDS = 60.0
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Process:
    """A child with its log. A program that is named without its path is one of Kubernetes. `path` is where it finds
    others, before the usual places.
    """

    def __init__(self, command: Sequence[str], directory: Path, path: Sequence[Path] = ()) -> None:
        program, *arguments = command
        self.name = Path(program).name
        self.log = directory / f"{self.name}.log"
        self._command = [str(tool("kubernetes").parent / program), *arguments]
        self._environment = {"PATH": ":".join((*map(str, path), PATH)), "HOME": str(directory)}
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def start(self) -> None:
        """Start it; whether it serves is to be asked elsewhere."""
        self._output = self.log.open("ab")
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=self._environment,
        )

    def check(self) -> None:
        """Raises RuntimeError with the end of the log when it doesn't run."""
        if self._process is None or self._process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{self.name} has ended: {tail}")

    def restart(self) -> None:
        """Stop it and start it again."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """End it and wait; killed when it doesn't end by itself."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._output is not None:
            self._output.close()
            self._output = None
