"""Layers of container images: what they may hold beyond plain archives, as text that reaches no disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from modelmount.errors import BadArtifact
from modelmount.formats.base import Encoding, Member
from modelmount.snapshots import tarstream
from tests.fakes.archives import COMPRESS, END, GNU, directory, extended, file, header, long_name, padded, record
from tests.unit.snapshots.archives import Directory

READINGS = [Encoding.ROOTFS_TAR, Encoding.ROOTFS_TAR_GZIP, Encoding.ROOTFS_TAR_ZSTD]


def long_link(target: bytes) -> bytes:
    return header(b"././@LongLink", len(target) + 1, b"K", magic=GNU) + padded(target + b"\0")


def found(members: Sequence[Member]) -> list[tuple[str, str, str]]:
    """(path, what it is, where it leads) of every member."""
    return [(m.path, m.special or ("directory" if m.is_directory else "file"), m.target) for m in members]


@pytest.mark.parametrize("encoding", READINGS)
def test_links_and_special_files_are_members_without_bytes(target: Directory, encoding: Encoding) -> None:
    data = b"".join(
        (
            directory(b"d/"),
            file(b"d/a", b"bytes"),
            header(b"s", kind=b"2", link=b"../../etc/passwd"),
            header(b"h", kind=b"1", link=b"./d/a"),
            header(b"c", kind=b"3"),
            header(b"b", kind=b"4"),
            header(b"p", kind=b"6"),
            END,
        )
    )
    members = target.unpack(COMPRESS[encoding](data), encoding)
    assert found(members) == [
        ("d", "directory", ""),
        ("d/a", "file", ""),
        ("s", "symlink", "../../etc/passwd"),
        ("h", "hardlink", "d/a"),
        ("c", "character device", ""),
        ("b", "block device", ""),
        ("p", "named pipe", ""),
    ]
    assert [path.name for path in target.files.iterdir()] == ["1"]
    assert target.is_contained()


def test_names_are_taken_from_the_root_and_may_come_again(target: Directory) -> None:
    names = (b"./", b"/", b"/a", b"./a", b"a//b/./c", b"/a/")
    data = b"".join(directory(name) if name.endswith(b"/") else file(name, name) for name in names) + END
    assert found(target.unpack(data, Encoding.ROOTFS_TAR)) == [
        ("a", "file", ""),
        ("a", "file", ""),
        ("a/b/c", "file", ""),
        ("a", "directory", ""),
    ]


def test_long_targets_of_both_kinds_are_read(target: Directory) -> None:
    deep = b"d/" * 60 + b"x"
    data = (
        long_link(deep)
        + header(b"gnu", kind=b"2", magic=GNU)
        + extended(record(b"linkpath", deep))
        + header(b"pax", kind=b"1")
    )
    assert found(target.unpack(data + END, Encoding.ROOTFS_TAR)) == [
        ("gnu", "symlink", deep.decode()),
        ("pax", "hardlink", deep.decode()),
    ]


def test_what_is_no_text_becomes_a_name_that_no_volume_shows(target: Directory) -> None:
    (member,) = target.unpack(file(b"a\xff") + END, Encoding.ROOTFS_TAR)
    assert member.path == "a\\xff"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(file(b"a/../../x") + END, "has the component '..'", id="T1"),
        pytest.param(header(b"x", kind=b"1", link=b"../x") + END, "has the component '..'", id="T1-hard-link"),
        pytest.param(directory(b"..") + END, "has the component '..'", id="T1-directory"),
        pytest.param(file(b"a/", b"data") + END, "named like a directory", id="T12"),
        pytest.param(file(b"/") + END, "named like a directory", id="T12-root"),
        pytest.param(header(b"h", 3, b"1", link=b"a") + padded(b"abc") + END, "is no file and has data", id="T2"),
        pytest.param(header(b"d", 3, b"5") + padded(b"abc") + END, "is no file and has data", id="directory-with-data"),
        pytest.param(header(b"a", kind=b"S", magic=GNU) + END, "is a sparse file", id="T13"),
        pytest.param(extended(record(b"GNU.sparse.major", b"1")) + file(b"a") + END, "sparse", id="T13-records"),
        pytest.param(header(b"a", kind=b"V") + END, "of an unknown type", id="T9-unknown"),
        pytest.param(long_name(b"a" * 1025) + file(b"x") + END, "longer than 1024 bytes", id="P3-long"),
        pytest.param(long_link(b"a" * 1025) + header(b"x", kind=b"2") + END, "longer than 1024", id="P3-long-target"),
        pytest.param(long_name(b"a/" * 129 + b"b") + file(b"x") + END, "128 levels deep", id="P3-deep"),
        pytest.param(long_link(b"a") + long_link(b"b") + file(b"x") + END, "of one kind precede", id="two-targets"),
        pytest.param(
            long_link(b"a") + extended(record(b"linkpath", b"b")) + header(b"x", kind=b"2") + END,
            "target of one link twice",
            id="T14-two-kinds-of-targets",
        ),
        pytest.param(long_link(b"a") + END, "between an extended header and its entry", id="T11"),
        pytest.param(file(b"a") + END + file(b"b") + END, "something follows its end", id="T15"),
        pytest.param(file(b"a", b"x" * 2000)[:1024], "is cut off", id="T11-data"),
    ],
)
def test_what_no_image_needs_is_refused(target: Directory, data: bytes, reason: str) -> None:
    with pytest.raises(BadArtifact, match=reason):
        target.unpack(data, Encoding.ROOTFS_TAR)
    assert target.is_contained()


def test_the_names_of_one_layer_are_bounded(target: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarstream, "MAX_ROOTFS_NAMES", 1000)
    long = long_name(b"a" * 200) + file(b"x")
    assert len(target.unpack(long * 5 + END, Encoding.ROOTFS_TAR)) == 5
    with pytest.raises(BadArtifact, match="names take more than 1000"):
        Directory(tmp_path / "other").unpack(long * 6 + END, Encoding.ROOTFS_TAR)
