"""Filters of system calls, for each machine in the table: decided as the kernel does, by a packet machine of ours."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from modelmount.system import confine, seccomp, syscalls
from modelmount.system.seccomp import ALLOW, ANSWER, ARCHITECTURES, CALLS, KILL, Rule

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
MACHINES = sorted(CALLS)


def run(program: bytes, machine: str, number: int, *arguments: int) -> int:
    """What the kernel does with a call, by Linux `net/core/filter.c`, as far as these programs go."""
    data = struct.pack("=iIQ6Q", number, ARCHITECTURES[machine], 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = position = 0
    while True:
        operation, if_true, if_false, value = code[position]
        position += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                position += if_true if accumulator == value else if_false
            case 0x35:
                position += if_true if accumulator >= value else if_false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"instruction {operation:#x}")


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_those_of_the_installed_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not installed (linux-libc-dev)")
    text = HEADERS[machine].read_text()
    found = {
        name: int(number) for name, number in re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", text, re.MULTILINE)
    }
    for name, alias in re.findall(r"^#define __NR_(\w+)\s+__NR3264_(\w+)$", text, re.MULTILINE):
        if alias in found:
            found[name] = found[alias]
    assert {name: found.get(name) for name in CALLS[machine]} == CALLS[machine]


@pytest.mark.parametrize("machine", MACHINES)
def test_what_unpacking_needs_is_allowed_and_all_else_kills(machine: str) -> None:
    program, numbers = seccomp.program(confine.MAKING, machine), CALLS[machine]
    plain = {rule.name for rule in confine.MAKING if not rule.mask and rule.answer == ALLOW}
    for name in plain & numbers.keys():
        assert run(program, machine, numbers[name]) == ALLOW, name
    known = set(numbers.values())
    for number in set(range(1000)) - known:
        assert run(program, machine, number) == KILL, number
    for number in syscalls.NUMBERS[machine].values():
        assert run(program, machine, number) == KILL, number


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_may_start_and_processes_not(machine: str) -> None:
    program, number = seccomp.program(confine.MAKING, machine), CALLS[machine]["clone"]
    thread = 0x3D0F00  # what glibc's pthread_create asks for
    assert run(program, machine, number, thread) == ALLOW
    for flags in (0, 17, 0x01200011, 0x100 | 17, 0x4000 | 0x100 | 17):
        assert run(program, machine, number, flags) == KILL, hex(flags)
    assert run(program, machine, CALLS[machine]["clone3"]) == ANSWER | errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("call", ["mmap", "mprotect"])
def test_memory_never_becomes_code(machine: str, call: str) -> None:
    program, number = seccomp.program(confine.MAKING, machine), CALLS[machine][call]
    assert run(program, machine, number, 0, 4096, 3) == ALLOW
    assert run(program, machine, number, 0, 4096, 4) == KILL
    assert run(program, machine, number, 0, 4096, 7) == KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_machine_kill(machine: str) -> None:
    program = seccomp.program(confine.MAKING, machine)
    (other,) = set(MACHINES) - {machine}
    assert run(program, other, CALLS[other]["write"]) == KILL
    assert run(program, machine, CALLS[machine]["write"] | 0x40000000) == KILL  # x32


def test_a_program_is_as_long_as_the_kernel_takes() -> None:
    for machine in MACHINES:
        assert len(seccomp.program(confine.MAKING, machine)) // 8 < 4096


def test_a_call_that_the_machine_does_not_have_is_left_out() -> None:
    assert "poll" not in CALLS["aarch64"]
    assert seccomp.program([Rule("poll")], "aarch64") == seccomp.program([], "aarch64")
