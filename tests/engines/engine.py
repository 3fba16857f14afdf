"""An engine's process, and what a client says to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import urllib3

SERVER = Path(__file__).with_name("llama_server.py")
PROMPT = "The capital of France is"
TOKENS = 6
PATIENCE_SECONDS = 240.0
"""For an answer; nothing is measured by it."""
START_SECONDS = 600.0
"""For an engine that imports PyTorch and compiles."""


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


class Vllm:
    """vLLM's server on a model, by path or by a name that the hub's cache has. Use as a context manager; it serves from
    then on. Raises RuntimeError with what it said when it doesn't.
    """

    def __init__(self, python: Path, model: str, log: Path, environment: Mapping[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        options = ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32"]
        limits = ["--max-model-len", "64", "--max-num-seqs", "2"]
        program = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        self._command = [*program, *options, *limits]
        self._environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
        self._log = log
        self.address = f"http://127.0.0.1:{port}"

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end()
                raise RuntimeError(f"vLLM does not serve: {self._log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def complete(self) -> str:
        """What the model says after PROMPT; the same each time."""
        return complete(self.address)

    def _serves(self) -> bool:
        try:
            return urllib3.request("GET", f"{self.address}/health", retries=False, timeout=5.0).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its workers, too
        self._process.wait()


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
