"""A containerd of a test's own, and containers in it: Debian's containerd and runc, without Kubernetes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster import images
from tests.fakes import mounts

IMAGE = "localhost/busybox:test"
PROGRAMS = ("sh", "cat", "find", "sort", "xargs", "sha256sum", "touch", "true")
USERS = "0:100000:65536"
"""A container's root and other users, and who they are outside."""
PATIENCE_SECONDS = 120.0
_LOOK_SECONDS = 0.05
_UNUSED = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
)


class Containerd:
    """All that it has is below `directory`, which must be short, for its sockets, and open to all, for containers that
    are somebody else. Use as a context manager; at its end nothing of it runs, and no control group of it is left. The
    image has busybox with PROGRAMS.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._socket = directory / "c.sock"
        self._namespace = f"mm-{os.getpid()}-{time.monotonic_ns():x}"
        self._log = directory / "containerd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir()
        config = self.directory / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{self.directory}/root"\nstate = "{self.directory}/run"\n'
            f"disabled_plugins = {list(_UNUSED)!r}\n"
            f'[grpc]\naddress = "{self._socket}"\n[ttrpc]\naddress = "{self._socket}.ttrpc"\n'
        )
        program = shutil.which("containerd")
        assert program is not None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([program, "--config", str(config)], stdout=log, stderr=log)
        try:
            self._wait()
            archive = self.directory / "busybox.tar"
            images.program(archive, IMAGE, Path("/bin/busybox"), self.directory / "image", links=PROGRAMS)
            self._ctr("images", "import", str(archive))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(self, name: str, source: Path, *command: str, own_users: bool = False) -> subprocess.CompletedProcess[str]:
        """A container that sees `source` at /model, as a pod's does: bound, read-only; to its end. With `own_users` it
        has a user namespace, in which its root is nobody of this machine.
        """
        line = self._container(name, source, command, ("--uidmap", USERS, "--gidmap", USERS) if own_users else ())
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)

    @contextlib.contextmanager
    def running(self, name: str, source: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
        """Such a container while the block runs; its standard input and output are pipes."""
        line = self._container(name, source, command)
        process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            if process.poll() is None:
                subprocess.run(self._line("tasks", "kill", "--signal", "SIGKILL", name), check=False)
            process.communicate(timeout=PATIENCE_SECONDS)

    def _container(self, name: str, source: Path, command: Sequence[str], options: Sequence[str] = ()) -> list[str]:
        mount = f"type=bind,src={source},dst=/model,options=rbind:ro"
        return self._line("run", "--rm", *options, "--mount", mount, IMAGE, name, *command)

    def _line(self, *arguments: str) -> list[str]:
        return ["ctr", "--address", str(self._socket), "--namespace", self._namespace, *arguments]

    def _ctr(self, *arguments: str) -> None:
        done = subprocess.run(self._line(*arguments), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"ctr {' '.join(arguments)}: {done.stderr}")

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while subprocess.run(self._line("version"), capture_output=True, check=False).returncode != 0:
            if time.monotonic() >= deadline or (self._process is not None and self._process.poll() is not None):
                raise RuntimeError(f"containerd does not answer: {self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(_LOOK_SECONDS)

    def _end(self) -> None:
        for shim in self._shims():
            with contextlib.suppress(ProcessLookupError):
                os.kill(shim, signal.SIGKILL)
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        mounts.detach_below(self.directory)
        groups = Path("/sys/fs/cgroup")  # one tree, or one for each controller
        for group in (groups / self._namespace, *groups.glob(f"*/{self._namespace}")):
            for path in (*group.glob("*/"), group):
                with contextlib.suppress(OSError):
                    path.rmdir()

    def _shims(self) -> list[int]:
        """The processes between containerd and its containers. There are none once all containers have ended."""
        found = []
        for directory in Path("/proc").iterdir():
            if directory.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (directory / "cmdline").read_bytes().split(b"\0")
                    if b"-address" in words and os.fsencode(self._socket) in words:
                        found.append(int(directory.name))
        return found
