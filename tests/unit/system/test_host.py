"""Facts about the host are the kernel's own."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from modelmount.system import host

from .processes import line, start, stop

OTHER_NAMESPACE = """
from modelmount.system import host, syscalls
assert syscalls._libc.unshare(0x20000) == 0
print(host.mount_namespace(), host.boot_id(), flush=True)
"""


def test_the_boot_id_is_a_uuid() -> None:
    assert str(uuid.UUID(host.boot_id())) == host.boot_id()


@pytest.mark.mount
def test_another_mount_namespace_has_another_number_and_the_same_boot_id() -> None:
    process = start(OTHER_NAMESPACE)
    try:
        namespace, boot_id = line(process).split()
    finally:
        stop(process)
    assert int(namespace) != host.mount_namespace()
    assert boot_id == host.boot_id()


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.1.0-18-amd64", (6, 1)),
        ("5.10.209+", (5, 10)),
        ("4.18.0-553.el8.x86_64", (4, 18)),
        ("odd", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_versions_are_read_from_release_strings(
    release: str, version: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "kernel_release", lambda: release)
    assert host.kernel_version.__wrapped__() == version


def test_hostname_and_security_are_answered_everywhere() -> None:
    assert host.hostname() == Path("/proc/sys/kernel/hostname").read_text().strip()
    security = host.security()
    assert security.landlock_abi >= 0
    assert (security.selinux_enforcing is not None) == Path("/sys/fs/selinux/enforce").exists()
