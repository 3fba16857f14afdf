"""Which files of a directory go, and that what is read is what was listed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from modelmount.errors import BadArtifact, Cancelled, InvalidRequest, Precondition
from modelmount.oci.digest import Digest
from modelmount.packaging import folder
from modelmount.packaging.files import PIECE_BYTES, Wanted
from tests.unit.packaging.samples import files

NOBODY = threading.Event()


def write(top: Path, *names: str) -> None:
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)


def listed(top: Path, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> list[str]:
    return [file.path for file in folder.files(top, Wanted(include, exclude))]


def test_files_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    write(tmp_path, "b", "a/z", "a/b/c", "B", ".hidden")
    assert listed(tmp_path) == [".hidden", "B", "a/b/c", "a/z", "b"]


def test_patterns_choose_as_in_a_volume(tmp_path: Path) -> None:
    write(tmp_path, "config.json", "model.bin", "original/model.bin", "keep.bin")
    assert listed(tmp_path, include=("*.bin",)) == ["keep.bin", "model.bin", "original/model.bin"]
    assert listed(tmp_path, exclude=("original/", "*.bin", "!keep.bin")) == ["config.json", "keep.bin"]


def test_what_tools_leave_beside_a_model_stays_unless_it_is_taken_back(tmp_path: Path) -> None:
    write(tmp_path, "a", ".git/config", ".cache/huggingface/x", "code/__pycache__/m.pyc", ".gitattributes")
    assert listed(tmp_path) == [".gitattributes", "a"]
    assert ".cache/huggingface/x" in listed(tmp_path, exclude=("!.cache/",))


def test_one_file_is_a_model_too(tmp_path: Path) -> None:
    write(tmp_path, "model.gguf")
    assert listed(tmp_path / "model.gguf") == ["model.gguf"]


def test_links_to_files_are_the_files(tmp_path: Path) -> None:
    """So does the Hugging Face cache keep them: snapshots/<revision>/config.json -> ../../blobs/<digest>."""
    write(tmp_path, "blobs/0123", "snapshots/main/README.md")
    (tmp_path / "snapshots/main/config.json").symlink_to("../../blobs/0123")
    (_, config) = sorted(files(tmp_path / "snapshots/main"), key=lambda file: file.path)
    assert (config.path, config.size) == ("config.json", len("blobs/0123"))
    assert b"".join(config.pieces(NOBODY)) == b"blobs/0123"
    assert config.digest(NOBODY) == Digest.of(b"blobs/0123")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, "top/a", "elsewhere/b")
    (tmp_path / "top/link").symlink_to("../elsewhere")
    with pytest.raises(InvalidRequest, match="top/link is a link to a directory; leave it out with --exclude"):
        listed(tmp_path / "top")
    assert listed(tmp_path / "top", exclude=("link",)) == ["a"]
    (tmp_path / "top/link").unlink()
    os.mkfifo(tmp_path / "top/pipe")
    with pytest.raises(InvalidRequest, match="top/pipe is neither a file nor a directory"):
        listed(tmp_path / "top")
    (tmp_path / "top/pipe").unlink()
    (tmp_path / "top/gone").symlink_to("nowhere")
    with pytest.raises(InvalidRequest, match="top/gone doesn't exist, or is a link to nowhere"):
        listed(tmp_path / "top")


def test_nothing_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="nothing to push"):
        listed(tmp_path)
    with pytest.raises(InvalidRequest, match="doesn't exist"):
        listed(tmp_path / "absent")


@pytest.mark.parametrize("name", ["a\nb", "a\\b", ".modelmount-x", "\udcff"])
def test_names_that_no_volume_can_show_are_refused_before_anything_is_sent(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(BadArtifact, match="the file name"):
        listed(tmp_path)


def test_a_bad_pattern_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="three stars"):
        Wanted(include=["***"])


@pytest.mark.parametrize("change", [b"longer than it was" * PIECE_BYTES, b""])
def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path, change: bytes) -> None:
    write(tmp_path, "a")
    (only,) = files(tmp_path)
    (tmp_path / "a").write_bytes(change)
    with pytest.raises(Precondition, match="a changes while it is read"):
        only.digest(NOBODY)


def test_reading_ends_when_nobody_wants_it_any_more(tmp_path: Path) -> None:
    write(tmp_path, "a")
    (only,) = files(tmp_path)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        only.digest(cancelled)
