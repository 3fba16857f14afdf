"""A process that gives up all it may, but for the descriptors that it holds and making files in one directory.

What a machine can't do is left out: without Landlock or seccomp the rest still applies, and who isn't root keeps its
user. `missing` says what that is here.
"""

from __future__ import annotations

import errno
import functools
import os
import platform
import resource
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelmount.system import landlock, privilege, seccomp, syscalls
from modelmount.system.seccomp import CLONE_THREAD, CLONE_VM, PROT_EXEC, Rule

FIRST_USER: Final = 0x7000_0000
"""Users of ours are this plus a process id. Nobody else's are there: above what systemd and container runtimes give to
containers, below 2^31, which some programs take for negative (systemd, "Users, Groups, UIDs and GIDs").
"""
NOBODY: Final = 65534
"""Where this user namespace doesn't know the user above."""
THREADS: Final = 16

_PR_SET_PDEATHSIG: Final = 1
_SIGNALS_OF_LIMITS: Final = 2
"""CPU seconds between the signal at the soft limit and the kill at the hard one."""

READING: Final = (
    # Archives are read with preadv. libc counts processors with it where it may open /sys, and lives without.
    Rule("read", answer=seccomp.ANSWER | errno.EPERM),
    Rule("preadv"),
    Rule("preadv2"),
    Rule("pread64"),
    Rule("futex"),
    Rule("clock_gettime"),
    Rule("close"),
    Rule("sendto"),
    Rule("recvfrom"),
    Rule("sendmsg"),
    Rule("recvmsg"),
    Rule("poll"),
    Rule("ppoll"),
    Rule("brk"),
    Rule("mmap", argument=2, mask=PROT_EXEC),  # memory never becomes code
    Rule("mprotect", argument=2, mask=PROT_EXEC),
    Rule("munmap"),
    Rule("mremap"),
    Rule("madvise"),
    Rule("set_robust_list"),
    Rule("rseq"),
    Rule("gettid"),
    Rule("getpid"),
    Rule("sched_yield"),
    Rule("sched_getaffinity"),
    Rule("clock_nanosleep"),
    Rule("getrandom"),
    Rule("rt_sigaction"),
    Rule("rt_sigprocmask"),
    Rule("rt_sigreturn"),
    Rule("sigaltstack"),
    Rule("restart_syscall"),
    Rule("prctl", answer=seccomp.ANSWER | errno.EPERM),  # libc names memory with it and lives without
    Rule("exit"),
    Rule("exit_group"),
)
MAKING: Final = (
    *READING,
    Rule("write"),
    Rule("openat"),
    Rule("fchmod"),
    Rule("fstatfs"),
    Rule("sync_file_range"),
    Rule("clone", argument=0, mask=CLONE_VM | CLONE_THREAD, value=CLONE_VM | CLONE_THREAD),  # threads, no processes
    Rule("clone3", answer=seccomp.ANSWER | errno.ENOSYS),  # its flags can't be seen; libc then takes clone
)
"""For who makes files, and decompresses with threads."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one process: bytes of address space beyond what it has, seconds of processor time, bytes of one file that it
    writes, and open descriptors.
    """

    memory_bytes: int
    cpu_seconds: int
    file_bytes: int
    descriptors: int


def missing() -> list[str]:
    """What confines nobody on this machine, each as the name of a thing that isn't there; empty where all is."""
    found = []
    if os.geteuid() != 0:
        found.append("a user of its own (this process isn't root)")
    if not landlock.abi():
        found.append("Landlock (Linux 5.13, and `landlock` among the kernel's security modules)")
    if not seccomp.is_available():
        found.append("a filter of system calls (seccomp, on x86_64 or aarch64)")
    return found


def prepare() -> None:
    """In a process that forks many to be confined: what then needn't be done in each."""
    if seccomp.is_available():
        for rules in (READING, MAKING):
            _filter(rules)
    _address_space()


def user_of(pid: int) -> int:
    """The user that a confined process with this id has, where its parent was root."""
    return FIRST_USER + pid


def enter(directory: int | None, limits: Limits, parent: int) -> None:
    """Confine this process, which has one thread, for ever. Files may then be made in the directory of this descriptor
    only, which becomes its user's; without one nowhere, and no thread can be started. It is killed when the process
    `parent`, its own, ends.

    Raises OSError where something fails that this machine can do, and ProcessLookupError when `parent` has ended; then
    the process should end too.
    """
    _limit(limits)
    if os.geteuid() == 0:
        privilege.bound(())
        if _become(directory, user_of(os.getpid())) != NOBODY:
            _set(resource.RLIMIT_NPROC, THREADS, THREADS)  # of this user; another one has processes that aren't ours
    privilege.keep(())
    syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user forgets it
    if os.getppid() != parent:
        raise ProcessLookupError(errno.ESRCH, "the parent has ended")
    landlock.confine(directory)
    if seccomp.is_available():
        seccomp.install(_filter(READING if directory is None else MAKING))


@functools.cache
def _filter(rules: tuple[Rule, ...]) -> bytes:
    return seccomp.program(rules, platform.machine())


@functools.cache
def _address_space() -> int:
    """Bytes that this process has, or had when it was asked first: who is forked has no more."""
    return int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()


def _limit(limits: Limits) -> None:
    memory = _address_space() + limits.memory_bytes
    _set(resource.RLIMIT_AS, memory, memory)
    _set(resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + _SIGNALS_OF_LIMITS)
    _set(resource.RLIMIT_FSIZE, limits.file_bytes, limits.file_bytes)
    _set(resource.RLIMIT_NOFILE, limits.descriptors, limits.descriptors)
    _set(resource.RLIMIT_CORE, 0, 0)


def _set(what: int, soft: int, hard: int) -> None:
    """As low as that, or as what is set already where that is lower."""
    _, most = resource.getrlimit(what)
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(what, (soft, hard))


def _become(directory: int | None, user: int) -> int:
    """Give up root for this user and the group of the same number; which user that is now."""
    os.setgroups([])
    try:
        os.setresgid(user, user, user)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        user = NOBODY
        os.setresgid(user, user, user)
    if directory is not None:
        os.fchown(directory, user, user)
    os.setresuid(user, user, user)
    return user
