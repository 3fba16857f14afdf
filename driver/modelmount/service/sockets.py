"""Names of listening unix sockets: bound privately, known again, removed only while they are ours.

Left to itself gRPC unlinks whatever socket is at a path before it binds, even one that another process serves, and
unlinks the path again when the server stops, even if it leads to somebody else's socket by then. So we look before,
bind through a descriptor of the directory (`/proc/self/fd/N/name`), and take that descriptor away from gRPC before it
stops.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import grpc

from modelmount import errors

PATH_BYTES = 107
"""Longest path of a unix socket (man 7 unix)."""
_CLONE_FS = 0x200
_PROBE_SECONDS = 1.0

T = TypeVar("T")


def target(path: Path) -> str:
    """`path` as a gRPC target; gRPC decodes percent signs in it."""
    return f"unix:{quote(str(path))}"


class SocketName:
    """The name of a socket that a gRPC server of this process listens on. Made by `bind`; not for concurrent use,
    except `is_ours`.

    `release`, then stop the server, then `close`.
    """

    def __init__(self, path: Path, directory: int, inode: int) -> None:
        self._path = path
        self._directory = directory
        # An open descriptor, not a number to remember: numbers of removed inodes are given out again at once.
        self._inode = inode

    @classmethod
    def bind(cls, server: grpc.Server, path: Path) -> SocketName:
        """Give `server` a socket at `path`, 0600. A dead socket there is replaced.

        Raises Precondition when something else is in the way, a living server too, or the directory is missing.
        """
        remove_stale(path)
        try:
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        except OSError as e:
            raise errors.Precondition(
                f"cannot open the directory of the socket {path}: {e.strerror}; is the kubelet's directory mounted "
                "here, and are kubelet_root and endpoint right?"
            ) from e
        try:
            address = f"unix:/proc/self/fd/{directory}/{quote(path.name)}"
            _with_private_umask(lambda: server.add_insecure_port(address))
            os.chmod(path.name, 0o600, dir_fd=directory)  # the umask left it 0700, for nobody else at any time
            return cls(path, directory, os.open(path.name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory))
        except (OSError, RuntimeError) as e:
            os.close(directory)
            raise errors.Precondition(f"cannot listen on {path}: {e}") from e

    def is_ours(self) -> bool:
        """Whether the path leads to our socket still."""
        try:
            return os.path.samestat(os.lstat(self._path), os.fstat(self._inode))
        except OSError:
            return False

    def release(self) -> None:
        """Remove the name if it is ours, and leave gRPC nothing to remove."""
        if self.is_ours():
            self._path.unlink(missing_ok=True)
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            os.dup2(null, self._directory, inheritable=False)  # gRPC's path now ends in "not a directory"
        finally:
            os.close(null)

    def close(self) -> None:
        """Let go of the descriptors, once the server has stopped."""
        os.close(self._directory)
        os.close(self._inode)


def remove_stale(path: Path) -> None:
    """Remove a socket that nobody serves. Raises Precondition for one that somebody does, and for anything that isn't a
    socket.
    """
    if len(os.fsencode(path)) > PATH_BYTES:
        raise errors.Precondition(f"{path} is longer than the {PATH_BYTES} bytes a unix socket's path may have")
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise errors.Precondition(f"{path} is in the way and isn't a socket; remove it")
        if _is_served(path):
            raise errors.Precondition(f"another process serves {path}; stop it first")
        path.unlink()
    except FileNotFoundError:
        pass
    except OSError as e:
        raise errors.Precondition(f"cannot tell whether {path} is in use: {e.strerror}") from e


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except (BlockingIOError, TimeoutError):
            return True  # alive, with a full backlog
        return True


def _with_private_umask(action: Callable[[], T]) -> T:
    """Run `action` under umask 0077, in a thread whose umask is its own: files that others make meanwhile keep their
    modes (man 2 unshare).

    Where unshare is forbidden the whole process has that umask for the moment.
    """

    def run() -> T:
        ctypes.CDLL(None).unshare(_CLONE_FS)
        before = os.umask(0o077)
        try:
            return action()
        finally:
            os.umask(before)

    with ThreadPoolExecutor(1, thread_name_prefix="bind") as thread:
        return thread.submit(run).result()
