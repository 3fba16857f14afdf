"""The machine and this process's place on it."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from modelmount.cli.examinations.finding import Finding, fail, ok, warn
from modelmount.config import Settings
from modelmount.pull.progress import human_bytes
from modelmount.system import confine, host, mount, process

WRITTEN_IN = 2025
"""This program is not older; a clock that says otherwise is wrong, and TLS certificates don't hold yet."""
SMALL_MEMORY_BYTES = 512 << 20
FEW_FILES = 1024


def rights(settings: Settings) -> Iterator[Finding]:
    """Root and CAP_SYS_ADMIN."""
    missing = process.missing_rights()
    if not missing:
        yield ok("rights", "root with CAP_SYS_ADMIN: may mount")
    elif settings.mode == "controller":
        yield ok("rights", f"{missing}; a controller needs no more")
    else:
        remedy = "run it as root, in Kubernetes with securityContext.privileged: true"
        yield fail("rights", f"{missing}: cannot mount, nor use a store of root's", remedy)


def kernel(settings: Settings) -> Iterator[Finding]:
    """The calls that mounts are made with."""
    release, calls = host.kernel_release(), mount.probe()
    if calls.detached_mounts:
        yield ok("kernel", f"{release}; mounts are read-only from the instant they appear")
    elif process.missing_rights():
        yield warn("kernel", f"{release}; its mount calls can't be tried without rights", "run as root")
    else:
        text = f"{release} doesn't let us use open_tree and mount_setattr ({calls.problem}): the older way is taken"
        yield warn("kernel", text, "upgrade to Linux 5.12 or later, or allow these calls in the seccomp profile")
    for name, present, since in (
        ("openat2", calls.openat2, "5.6"),
        ("statx's mount-root flag", calls.mount_root_attribute, "5.8"),
    ):
        if not present:
            remedy = f"upgrade to Linux {since} or later, or allow it in the seccomp profile"
            yield warn("kernel", f"{name} is missing: a slower way is taken", remedy)


def confinement(settings: Settings) -> Iterator[Finding]:
    """Security modules that can forbid what we do, or pods to read it."""
    found = host.security()
    modules = ", ".join(found.modules) or "none that can be seen"
    if found.selinux_enforcing:
        remedy = f"label {settings.root} container_file_t:s0, and always set readOnly: true on the pod's volume"
        yield warn("security", "SELinux is enforcing: pods read a model only where its label lets them", remedy)
    else:
        profile = f", this process under {found.profile}" if found.profile else ""
        yield ok("security", f"security modules: {modules}{profile}")


def unpacking(settings: Settings) -> Iterator[Finding]:
    """What confines the processes that unpack archives."""
    lacking = confine.missing()
    if lacking:
        text = f"archives are unpacked by processes of their own, but here without {', '.join(lacking)}"
        yield warn(
            "unpacking", text, "run the driver as root, on a kernel that has these; the rest confines them still"
        )
    else:
        abi = host.security().landlock_abi
        text = f"archives are unpacked by processes without rights: an own user, Landlock (ABI {abi}), seccomp"
        yield ok("unpacking", text)


def memory(settings: Settings) -> Iterator[Finding]:
    """Limits of this process's cgroup and of its descriptors."""
    limit = _memory_limit()
    if limit is not None and limit < SMALL_MEMORY_BYTES:
        text = f"the memory limit is {human_bytes(limit)}, and a pull's page cache counts against it: pulls are slow"
        yield warn("memory", text, "give the driver no memory limit")
    else:
        yield ok("memory", "no memory limit" if limit is None else f"memory limit {human_bytes(limit)}")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FEW_FILES:
        yield warn("files", f"only {files} files may be open", f"raise the limit to at least {FEW_FILES} (ulimit -n)")


def clock(settings: Settings) -> Iterator[Finding]:
    """Whether the time can be true."""
    now = datetime.fromtimestamp(time.time(), UTC)
    said = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if now.year < WRITTEN_IN:
        yield fail("clock", f"{said} is in the past: no certificate holds", "set the clock, best by NTP")
    else:
        yield ok("clock", said)


def _memory_limit() -> int | None:
    """The limit of the own cgroup (version 2); None without one."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("0::")[2].strip()
        text = Path(f"/sys/fs/cgroup{own}/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
