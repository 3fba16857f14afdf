"""The numbers must be the kernel's, on machines that these tests don't run on too."""

from __future__ import annotations

import errno
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from modelmount.system import syscalls

# Copied from Linux v6.1: arch/x86/entry/syscalls/syscall_64.tbl, and include/uapi/asm-generic/unistd.h for aarch64.
UPSTREAM = {
    "x86_64": """
        316 renameat2
        332 statx
        428 open_tree
        429 move_mount
        437 openat2
        442 mount_setattr
        444 landlock_create_ruleset
        445 landlock_add_rule
        446 landlock_restrict_self
        125 capget
        126 capset
    """,
    "aarch64": """
        276 renameat2
        291 statx
        428 open_tree
        429 move_mount
        437 openat2
        442 mount_setattr
        444 landlock_create_ruleset
        445 landlock_add_rule
        446 landlock_restrict_self
        90 capget
        91 capset
    """,
}
# Debian's linux-libc-dev; asm-generic is the table that aarch64 uses.
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def upstream(machine: str) -> dict[str, int]:
    return {name: int(number) for number, name in (row.split() for row in UPSTREAM[machine].strip().splitlines())}


def differences(ours: Mapping[str, int], theirs: Mapping[str, int]) -> list[str]:
    return [
        f"{name}: {number} is not {theirs.get(name)}" for name, number in ours.items() if number != theirs.get(name)
    ]


@pytest.mark.parametrize("machine", sorted(UPSTREAM))
def test_the_numbers_are_those_of_the_kernel_sources(machine: str) -> None:
    assert differences(syscalls.NUMBERS[machine], upstream(machine)) == []


@pytest.mark.parametrize("machine", sorted(HEADERS))
def test_the_numbers_are_those_of_the_installed_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not installed (linux-libc-dev)")
    defined = re.findall(r"^#define __NR_(\w+)\s+(\d+)$", HEADERS[machine].read_text(), re.MULTILINE)
    assert len(defined) > 200
    assert differences(syscalls.NUMBERS[machine], {name: int(number) for name, number in defined}) == []


def test_a_wrong_number_is_noticed() -> None:
    wrong = {**syscalls.NUMBERS["aarch64"], "statx": 332, "invented": 7}
    assert differences(wrong, upstream("aarch64")) == ["statx: 332 is not 291", "invented: 7 is not None"]


def test_every_machine_has_every_call() -> None:
    names = {frozenset(table) for table in syscalls.NUMBERS.values()}
    assert len(names) == 1
    assert platform.machine() in syscalls.NUMBERS


def test_a_machine_without_a_row_answers_like_a_kernel_without_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "_doors", {})
    with pytest.raises(OSError) as caught:
        syscalls.call("statx", syscalls.AT_FDCWD, b"/", 0, 0, None)
    assert caught.value.errno == errno.ENOSYS


def test_errno_becomes_the_exception_and_names_the_call(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing").encode()
    with pytest.raises(FileNotFoundError, match="open_tree"):
        syscalls.call("open_tree", syscalls.AT_FDCWD, missing, 0)
    with pytest.raises(FileNotFoundError, match="umount2"):
        syscalls.umount2(missing, 0)
    with pytest.raises(FileNotFoundError, match="mount"):
        syscalls.mount(missing, missing, None, 4096)
    with pytest.raises(OSError, match="syncfs") as caught:
        syscalls.syncfs(-1)
    assert caught.value.errno == errno.EBADF


def test_a_nul_byte_never_shortens_a_path() -> None:
    for attempt in (
        lambda: syscalls.umount2(b"/tmp\0/x", 0),
        lambda: syscalls.mount(None, b"/tmp\0/x", None, 0),
        lambda: syscalls.call("open_tree", syscalls.AT_FDCWD, b"/tmp\0/x", 0),
    ):
        with pytest.raises(ValueError, match="NUL"):
            attempt()
