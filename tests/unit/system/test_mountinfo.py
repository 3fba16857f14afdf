"""mountinfo is read back exactly, whatever bytes the names have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmount.system import host, mount
from modelmount.system.mountinfo import MountEntry, parse_mountinfo

from .processes import mounted

BYTES = st.binary(min_size=1, max_size=30).filter(lambda b: b"\0" not in b)
PATHS = BYTES.map(lambda b: os.fsdecode(b"/" + b))
WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789=:_", min_size=1, max_size=12)
ENTRIES = st.builds(
    MountEntry,
    mount_id=st.integers(0, 2**31),
    parent_id=st.integers(0, 2**31),
    device=st.tuples(st.integers(0, 4095), st.integers(0, 2**20)),
    root=PATHS,
    mount_point=PATHS,
    options=st.frozensets(WORDS, min_size=1),
    propagation=st.lists(st.from_regex(r"(shared|master|propagate_from):[0-9]{1,4}|unbindable", fullmatch=True)).map(
        tuple
    ),
    fstype=WORDS,
    source=st.one_of(st.just(""), st.just("-"), BYTES.map(os.fsdecode)),
    super_options=st.frozensets(WORDS, min_size=1),
)


def escape(name: str) -> bytes:
    """As the kernel does (fs/proc_namespace.c, mangle_path): space, tab, newline, backslash, and # in some fields."""
    return b"".join(b"\\%03o" % c if c in b" \t\n\\#" else bytes([c]) for c in os.fsencode(name))


def render(entry: MountEntry) -> bytes:
    fields = [
        b"%d %d %d:%d" % (entry.mount_id, entry.parent_id, *entry.device),
        escape(entry.root),
        escape(entry.mount_point),
        ",".join(sorted(entry.options)).encode(),
        *(tag.encode() for tag in entry.propagation),
        b"-",
        escape(entry.fstype),
        escape(entry.source),
        ",".join(sorted(entry.super_options)).encode(),
    ]
    return b" ".join(fields) + b"\n"


@given(st.lists(ENTRIES, max_size=4))
def test_what_the_kernel_writes_is_read_back(entries: list[MountEntry]) -> None:
    assert parse_mountinfo(b"".join(render(e) for e in entries)) == entries


@given(st.binary(max_size=200))
def test_any_other_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        parse_mountinfo(data)
    except ValueError as e:
        assert str(e).startswith("not a line of mountinfo")


def test_a_line_of_the_manual_page() -> None:
    line = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
    assert parse_mountinfo(line) == [
        MountEntry(
            mount_id=36,
            parent_id=35,
            device=(98, 0),
            root="/mnt1",
            mount_point="/mnt 2",
            options=frozenset({"rw", "noatime"}),
            propagation=("master:1",),
            fstype="ext3",
            source="/dev/root",
            super_options=frozenset({"rw", "errors=continue"}),
        )
    ]


@pytest.mark.parametrize("kernel", [(6, 1), (5, 4)])
@pytest.mark.mount
def test_hostile_names_of_real_mounts_are_found(
    tmp_path: Path, kernel: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "kernel_version", lambda: kernel)
    name = os.fsdecode(b"a b\tc\nd\\e\\040f#\r\xff - tmpfs")
    with mounted(tmp_path / name, "tmpfs", source="so urce\\#") as path:
        found = [e for e in mount.mountinfo() if e.mount_point == str(path)]
    assert [(e.fstype, e.source, e.root) for e in found] == [("tmpfs", "so urce\\#", "/")]


def test_another_process_s_namespace_can_be_read() -> None:
    assert mount.mountinfo(os.getpid()) == mount.mountinfo()
