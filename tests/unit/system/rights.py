"""What takes a capability, each deed done by a process that keeps all of a driver's but some: `python -m … deed
place kept…` prints the outcome.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from modelmount.system import confine, mount, privilege

LIMITS = confine.Limits(memory_bytes=1 << 30, cpu_seconds=60, file_bytes=1 << 20, descriptors=64)


def _in_a_child(deed: Callable[[], None]) -> None:
    """Raises OSError with the errno of the child."""
    pid = os.fork()
    if not pid:
        code = 0
        try:
            deed()
        except OSError as e:
            code = e.errno or 1
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


def show_a_tree(place: Path) -> None:
    for name in ("tree", "target"):
        (place / name).mkdir()
    mount.clone_readonly(place / "tree", place / "target", frozenset(mount.FLAGS))
    mount.unmount(place / "target")


def remove_a_tree(place: Path) -> None:
    """Its directories have mode 0555."""
    (place / "tree" / "below").mkdir(parents=True)
    (place / "tree" / "below" / "file").touch()
    for directory in (place / "tree" / "below", place / "tree"):
        directory.chmod(0o555)
    shutil.rmtree(place / "tree")


def confine_a_worker(place: Path) -> None:
    parent = os.getpid()
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    _in_a_child(lambda: confine.enter(directory, LIMITS, parent))


def end_a_worker(place: Path) -> None:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        confine.enter(directory, LIMITS, os.getppid())
        theirs.send(b"confined")
        theirs.recv(1)
        os._exit(0)
    theirs.close()
    ours.recv(8)
    try:
        os.kill(pid, signal.SIGKILL)
    finally:
        ours.close()
        os.waitpid(pid, 0)


def see_mounts_of_others(place: Path) -> None:
    """Of a process of root's with all its capabilities, as a container runtime is one."""
    Path(f"/proc/{os.getppid()}/ns/mnt").stat()


DEEDS: dict[str, Callable[[Path], None]] = {
    deed.__name__: deed for deed in (show_a_tree, remove_a_tree, confine_a_worker, end_a_worker, see_mounts_of_others)
}


def outcome(deed: str, place: Path, kept: frozenset[str]) -> str:
    """`done`, or the name of the error, of this deed by a process that keeps these. `place` is an empty directory."""
    command = [sys.executable, "-m", __name__, deed, str(place), *sorted(kept)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _main(deed: str, place: str, *kept: str) -> None:
    privilege.keep(kept)
    try:
        DEEDS[deed](Path(place))
        print("done")
    except OSError as e:
        print(errno.errorcode.get(e.errno or 0, str(e)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
