"""Filters of system calls (seccomp): the few calls that a process without rights may still make.

A filter is a program for the kernel's packet machine (classic BPF). It is made here for any machine in the table, so
that each can be tested everywhere. Source: Linux `Documentation/userspace-api/seccomp_filter.rst`,
`include/uapi/linux/{seccomp,bpf_common,audit}.h`.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelmount.system import syscalls

ALLOW: Final = 0x7FFF0000
KILL: Final = 0x80000000
"""Of the whole process, with SIGSYS."""
ANSWER: Final = 0x00050000
"""The call fails with the errno in the low 16 bits."""

CLONE_VM, CLONE_THREAD = 0x100, 0x10000
PROT_EXEC: Final = 4

ARCHITECTURES: Final[Mapping[str, int]] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""What the kernel calls the machine (AUDIT_ARCH): the same process may be able to make another machine's calls."""

CALLS: Final[Mapping[str, Mapping[str, int]]] = {
    "x86_64": {
        "read": 0,
        "pread64": 17,
        "preadv": 295,
        "preadv2": 327,
        "write": 1,
        "futex": 202,
        "openat": 257,
        "close": 3,
        "fchmod": 91,
        "fstatfs": 138,
        "sync_file_range": 277,
        "sendto": 44,
        "sendmsg": 46,
        "recvfrom": 45,
        "recvmsg": 47,
        "poll": 7,
        "ppoll": 271,
        "brk": 12,
        "mmap": 9,
        "mprotect": 10,
        "munmap": 11,
        "mremap": 25,
        "madvise": 28,
        "clone": 56,
        "clone3": 435,
        "set_robust_list": 273,
        "rseq": 334,
        "gettid": 186,
        "getpid": 39,
        "sched_yield": 24,
        "sched_getaffinity": 204,
        "clock_gettime": 228,
        "clock_nanosleep": 230,
        "getrandom": 318,
        "rt_sigaction": 13,
        "rt_sigprocmask": 14,
        "rt_sigreturn": 15,
        "sigaltstack": 131,
        "restart_syscall": 219,
        "prctl": 157,
        "exit": 60,
        "exit_group": 231,
    },
    "aarch64": {
        "read": 63,
        "pread64": 67,
        "preadv": 69,
        "preadv2": 286,
        "write": 64,
        "futex": 98,
        "openat": 56,
        "close": 57,
        "fchmod": 52,
        "fstatfs": 44,
        "sync_file_range": 84,
        "sendto": 206,
        "sendmsg": 211,
        "recvfrom": 207,
        "recvmsg": 212,
        "ppoll": 73,
        "brk": 214,
        "mmap": 222,
        "mprotect": 226,
        "munmap": 215,
        "mremap": 216,
        "madvise": 233,
        "clone": 220,
        "clone3": 435,
        "set_robust_list": 99,
        "rseq": 293,
        "gettid": 178,
        "getpid": 172,
        "sched_yield": 124,
        "sched_getaffinity": 123,
        "clock_gettime": 113,
        "clock_nanosleep": 115,
        "getrandom": 278,
        "rt_sigaction": 134,
        "rt_sigprocmask": 135,
        "rt_sigreturn": 139,
        "sigaltstack": 132,
        "restart_syscall": 128,
        "prctl": 167,
        "exit": 93,
        "exit_group": 94,
    },
}
"""System call numbers by machine, as in `syscalls.NUMBERS`; aarch64 has no poll."""

_PR_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2
_X32_BIT: Final = 0x40000000
"""Calls of x86_64's second, 32-bit set of numbers have it."""
_DATA: Final = struct.Struct("=iIQ6Q")
"""What a filter looks at: number, architecture, instruction pointer, arguments (`struct seccomp_data`)."""
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_INSTRUCTION: Final = struct.Struct("=HBBI")
_LOAD, _AND, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
"""`ld [k]`, `and k`, `jeq k`, `jge k`, `ret k`. Words are 32 bits: of an argument the low half is looked at."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What one call gets: `answer` where its argument number `argument`, masked, is `value`, and KILL else. Without a
    mask the answer is always the same.
    """

    name: str
    answer: int = ALLOW
    argument: int = 0
    mask: int = 0
    value: int = 0


def program(rules: Sequence[Rule], machine: str) -> bytes:
    """The filter for this machine: every call without a rule kills. Rules for calls that the machine doesn't have are
    left out; often used ones should come first.
    """
    numbers = CALLS[machine]
    head = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_IF_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_IF_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, KILL),
    ]
    body = [one for rule in rules if rule.name in numbers for one in _instructions(rule, numbers[rule.name])]
    return b"".join(_INSTRUCTION.pack(*one) for one in (*head, *body, (_RETURN, 0, 0, KILL)))


def _instructions(rule: Rule, number: int) -> Iterator[tuple[int, int, int, int]]:
    if not rule.mask:
        yield from ((_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, rule.answer))
        return
    yield (_IF_EQUAL, 0, 5, number)
    yield (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * rule.argument)  # both machines are little-endian: the low half is first
    yield (_AND, 0, 0, rule.mask)
    yield (_IF_EQUAL, 0, 1, rule.value)
    yield (_RETURN, 0, 0, rule.answer)
    yield (_RETURN, 0, 0, KILL)


def is_available() -> bool:
    """Whether this kernel has filters and this program a table for the machine."""
    try:
        syscalls.prctl(_PR_SET_SECCOMP, _MODE_FILTER, 0)
    except OSError as e:
        return e.errno == errno.EFAULT and platform.machine() in CALLS  # it looked for a program at address 0
    return False


def install(instructions: bytes) -> None:
    """From now on this thread, and what it starts, makes the calls of this `program` and no others. It must have given
    up new privileges (PR_SET_NO_NEW_PRIVS). There is no way back. Raises OSError.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    # struct sock_fprog: the count, padding, the address
    header = struct.pack("HxxxxxxQ", len(instructions) // _INSTRUCTION.size, ctypes.addressof(code))
    filter_ = ctypes.create_string_buffer(header, len(header))
    syscalls.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(filter_))
