"""S3 on a free loopback port: a moto server in a process of its own, filled over plain HTTP.

As a program it serves until its standard input ends; the first line that it prints is its port.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

END_SECONDS = 30.0


class S3:
    """Serves between `__enter__` and `__exit__`."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.s3"],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=END_SECONDS)

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to find it and to be let in."""
        return {
            "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def put(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Make the bucket, and objects in it."""
        self._put(f"/{bucket}", b"")
        for key, data in objects.items():
            self._put(f"/{bucket}/{urllib.parse.quote(key)}", data)

    def _put(self, path: str, data: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=END_SECONDS)
        connection.request("PUT", path, body=data)
        status = connection.getresponse().status
        connection.close()
        if status != 200:
            raise RuntimeError(f"the server of S3 answers {status} for {path}")


def main() -> None:
    """Serve until nobody wants it any more."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
