"""A node in mount namespaces: a "host" with a shared kubelet directory, and a "driver" in a namespace of its own that
mounts into it.

Run as `python -m tests.unit.system.node_in_namespaces DIRECTORY HOW`, HOW being `new`, `old` (the fallback) or
`classic` (bind, then remount: the order that must not be used). The host prints one JSON object. Nothing of it is
visible in the namespace of the tests.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from modelmount.system import mount, syscalls

CLONE_NEWNS = 0x20000
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = 32, 4096, 16384, 1 << 18, 1 << 20
READ_ONLY = 1


def unshare() -> None:
    """Go into a new mount namespace, which keeps the peers that the mounts had."""
    if syscalls._libc.unshare(CLONE_NEWNS) < 0:
        raise OSError("unshare failed; these tests need CAP_SYS_ADMIN")


def options(target: Path, pid: int | None = None) -> list[list[str]]:
    """The options of each mount on `target`, as the namespace of `pid` sees it."""
    return [sorted(e.options) for e in mount.mountinfo(pid) if e.mount_point == str(target)]


def write_answers(target: Path) -> str:
    """What an attempt to write says: an errno's name, or `written`."""
    try:
        os.close(os.open(target / "written", os.O_CREAT | os.O_WRONLY))
    except OSError as e:
        return errno.errorcode[e.errno or 0]
    return "written"


class Watch:
    """Looks at the target in both namespaces after every system call that the driver makes, and remembers what it ever
    saw.
    """

    def __init__(self, target: Path, host: int) -> None:
        self.seen: list[list[str]] = []
        self.leaked: list[str] = []
        self._host = host
        self._places = [(target, None), (target, host)]
        self._call, self._mount, self._umount2 = syscalls.call, syscalls.mount, syscalls.umount2

    def install(self) -> None:
        """Put the watch around the three doors to the kernel."""

        def call(name: str, *arguments: syscalls.Argument) -> int:
            result = self._call(name, *arguments)
            self._look()
            return result

        def mount_(*arguments: bytes | int | None) -> None:
            self._mount(*arguments)  # type: ignore[arg-type]
            self._look()

        def umount2(target: bytes, flags: int) -> None:
            self._umount2(target, flags)
            self._look()

        syscalls.call, syscalls.mount, syscalls.umount2 = call, mount_, umount2  # type: ignore[assignment]

    def _look(self) -> None:
        for target, pid in self._places:
            self.seen += options(target, pid)
        # The fallback's writable half must stay in the driver's namespace.
        self.leaked += [e.mount_point for e in mount.mountinfo(self._host) if e.mount_point.endswith("/bind")]


def run_driver(directory: Path, how: str, host: int) -> None:
    """Mount in an own namespace, report, and live until killed."""
    unshare()
    source, target = directory / "store" / "tree", directory / "kubelet" / "pod"
    capabilities = mount.probe()
    if how == "old":
        capabilities = mount.Capabilities(
            detached_mounts=False, mount_root_attribute=True, openat2=True, problem="as asked for"
        )
    watch = Watch(target, host)
    watch.install()
    if how == "classic":
        syscalls.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND)
        syscalls.mount(None, os.fsencode(target), None, MS_REMOUNT | MS_BIND | READ_ONLY)
    else:
        fd = os.open(target, os.O_PATH | os.O_DIRECTORY)
        mount.clone_readonly(source, fd, frozenset(mount.FLAGS), capabilities=capabilities, staging=directory / "store")
        os.close(fd)
    stages = [
        e.mount_point for pid in (None, host) for e in mount.mountinfo(pid) if "modelmount-stage" in e.mount_point
    ]
    print(
        json.dumps({"seen": watch.seen, "own": options(target), "stages": stages, "leaked": watch.leaked}), flush=True
    )
    signal.pause()


def run_host(directory: Path, how: str) -> None:
    """Be the node: share the kubelet directory, start the driver, look, kill it, look again, unmount."""
    unshare()
    syscalls.mount(None, b"/", None, MS_REC | MS_PRIVATE)
    kubelet, tree = directory / "kubelet", directory / "store" / "tree"
    target = kubelet / "pod"
    target.mkdir(parents=True)
    tree.mkdir(parents=True)
    (tree / "weights").write_bytes(b"bytes")
    for shared in (kubelet, directory / "store"):  # both, as on a host where systemd shares everything
        syscalls.mount(os.fsencode(shared), os.fsencode(shared), None, MS_BIND)
        syscalls.mount(None, os.fsencode(shared), None, MS_SHARED)
    argv = [sys.executable, "-m", __spec__.name, str(directory), how, str(os.getpid())]
    driver = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    try:
        report = json.loads(driver.stdout.readline())
        report |= {"host": options(target), "write": write_answers(target), "store": options(tree)}
    finally:
        driver.kill()
        driver.wait()
    report |= {"host_after_kill": options(target), "write_after_kill": write_answers(target)}
    report |= {"read": (target / "weights").read_text(), "unmounted": mount.unmount(target)}
    report |= {"files": sorted(p.name for p in tree.iterdir()), "staged": sorted(p.name for p in tree.parent.iterdir())}
    print(json.dumps(report))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        run_driver(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    else:
        run_host(Path(sys.argv[1]), sys.argv[2])
