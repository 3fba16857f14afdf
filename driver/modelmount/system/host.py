"""Facts about this host and this process's place on it. None changes during the process's life except where said;
nothing here raises for a missing kernel feature.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from modelmount.system import landlock

_FIRST_PID_NAMESPACE = 0xEFFFFFFC


@functools.cache
def boot_id() -> str:
    """The random id of this boot, 36 characters (man 5 proc_sys_kernel, `random/boot_id`). Inode and device numbers are
    believed within one boot only.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@functools.cache
def mount_namespace() -> int:
    """The inode number that names this process's mount namespace (man 7 namespaces). Unique among those alive; reused
    after a namespace ends.
    """
    return Path("/proc/self/ns/mnt").stat().st_ino


def sees_all_processes() -> bool:
    """Whether this process is in the machine's first pid namespace, and so sees every other one (linux/proc_ns.h,
    PROC_PID_INIT_INO). A container without hostPID isn't.
    """
    return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE


def hostname() -> str:
    """The node's name as the kernel has it; inside a pod without hostNetwork that is the pod's name."""
    return os.uname().nodename


def kernel_release() -> str:
    """The kernel's release string, such as `6.1.0-18-amd64`."""
    return os.uname().release


@functools.cache
def kernel_version() -> tuple[int, int]:
    """Major and minor number of the kernel; (0, 0) where the release string is odd, so that version tests take the
    careful branch.
    """
    match = re.match(r"([0-9]+)\.([0-9]+)", kernel_release(), re.ASCII)
    return (int(match[1]), int(match[2])) if match else (0, 0)


@dataclass(frozen=True, slots=True)
class Security:
    """What confines processes on this host, for `modelmount doctor`.

    `modules` in the kernel's order, empty where securityfs isn't mounted; `profile` is this process's own label
    (AppArmor profile or SELinux context), empty without one; `selinux_enforcing` is None without SELinux;
    `landlock_abi` is 0 without Landlock.
    """

    modules: tuple[str, ...]
    profile: str
    selinux_enforcing: bool | None
    landlock_abi: int


def security() -> Security:
    """Look at the security modules now."""
    modules = _read("/sys/kernel/security/lsm")
    enforcing = _read("/sys/fs/selinux/enforce")
    return Security(
        modules=tuple(m for m in modules.split(",") if m),
        profile=_read("/proc/self/attr/current"),
        selinux_enforcing=None if not enforcing else enforcing == "1",
        landlock_abi=landlock.abi(),
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip().rstrip("\0")
    except OSError:
        return ""
