"""An engine's process, and what a client says to it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import urllib3

SERVER = Path(__file__).with_name("llama_server.py")
PROMPT = "The capital of France is"
TOKENS = 6
PATIENCE_SECONDS = 240.0
"""For an answer; nothing is measured by it."""


class Llama:
    """llama.cpp's server on `model`, a GGUF. Use as a context manager; it serves from then on. Raises RuntimeError with
    what it said when it doesn't.
    """

    def __init__(self, python: Path, model: Path, log: Path) -> None:
        self._command = [str(python), str(SERVER), str(model), "127.0.0.1", "0"]
        self._log = log
        self.address = ""

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        if not self.address:
            self._end()
            raise RuntimeError(f"llama.cpp does not serve: {self._log.read_text(errors='replace')[-2000:]}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        """The process that has the model's file mapped."""
        return self._process.pid

    def first_token(self) -> str:
        """Ask, and return as soon as there is one token."""
        return first_token(self.address)

    def complete(self) -> str:
        """What the model says after PROMPT; the same each time."""
        return complete(self.address)


def first_token(address: str) -> str:
    """The first token after PROMPT, as it comes in the stream of the server at `address`."""
    body = {"prompt": PROMPT, "n_predict": 1, "temperature": 0, "stream": True}
    answer = urllib3.request(
        "POST", f"{address}/completion", json=body, preload_content=False, retries=False, timeout=PATIENCE_SECONDS
    )
    try:
        assert answer.status == 200
        line = answer.readline()
        return str(json.loads(line.removeprefix(b"data: "))["content"])
    finally:
        answer.close()


def complete(address: str) -> str:
    """The completion of PROMPT, by the interface that OpenAI's clients speak."""
    body = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    answer = urllib3.request("POST", f"{address}/v1/completions", json=body, retries=False, timeout=PATIENCE_SECONDS)
    assert answer.status == 200, answer.data
    return str(json.loads(answer.data)["choices"][0]["text"])
