"""Image layouts as others write them, and as nobody should."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from modelmount.errors import BadArtifact, IntegrityError, InvalidRequest, NotFound, Unavailable
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import OCI_INDEX, OCI_MANIFEST
from modelmount.oci.reference import Repository
from modelmount.registry.credentials import Credential
from modelmount.sources.ocilayout import Layout, LayoutDocuments, LayoutSource
from tests.conformance.blob_source import descriptor, received

DOCUMENT = b'{"schemaVersion": 2, "layers": []}'
BLOB = bytes(range(256)) * 40
TAG, NAME = "org.opencontainers.image.ref.name", "io.containerd.image.name"
REPOSITORY, NOBODY = Repository("registry.example.com", "llm/tiny"), Credential.anonymous()


def entry(annotations: Mapping[str, str] | None = None, data: bytes = DOCUMENT) -> dict[str, object]:
    listed: dict[str, object] = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(data)), "size": len(data)}
    return {**listed, "annotations": annotations} if annotations else listed


def members(*entries: Mapping[str, object], blobs: tuple[bytes, ...] = (DOCUMENT, BLOB)) -> dict[str, bytes]:
    """The files of a layout by name."""
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries) or [entry()]}
    found = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode()}
    return found | {f"blobs/sha256/{Digest.of(data).hex}": data for data in blobs}


def folder(top: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    return top


def archive(path: Path, files: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT, prefix: str = "") -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            member.mtime = 1.5  # which PAX writes an extended header for
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_of_any_kind_is_read_in_place(tmp_path: Path, kind: int, prefix: str) -> None:
    layout = Layout(archive(tmp_path / "x.tar", members(), kind, prefix))
    assert layout.document(Digest.of(DOCUMENT)) == DOCUMENT
    assert received(LayoutSource(layout).open(descriptor(BLOB), 0)) == BLOB
    assert received(LayoutSource(layout).open(descriptor(BLOB), 100, 300)) == BLOB[100:300]


def test_names_longer_than_a_header_and_sizes_beyond_it(tmp_path: Path) -> None:
    """sha512 has names of 141 characters; a blob of 9 GB has no room for its size in a plain header."""
    name = "blobs/sha512/" + "ab" * 64
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = archive(tmp_path / f"{kind}.tar", {name: b"short", **members()}, kind)
        layout = Layout(path)
        assert layout.region(Digest.parse("sha512:" + "ab" * 64)).size == 5
        large = tarfile.TarInfo("blobs/sha256/" + "cd" * 32)
        large.size = 9 << 30
        with path.open("r+b") as file:
            file.seek(-tarfile.RECORDSIZE, os.SEEK_END)
            data = path.read_bytes().rstrip(b"\0")
            file.truncate(-(-len(data) // 512) * 512)
            file.seek(0, os.SEEK_END)
            file.write(large.tobuf(kind))
            file.truncate(file.tell() + large.size + 1024)
        assert Layout(path).region(Digest.parse("sha256:" + "cd" * 32)).size == 9 << 30


def test_the_only_entry_is_chosen_and_several_are_listed(tmp_path: Path) -> None:
    only = Layout(folder(tmp_path / "one", members(entry({TAG: "v1"}))))
    assert only.choose(None).digest == Digest.of(DOCUMENT)
    assert only.choose("v1") == only.choose(str(Digest.of(DOCUMENT))) == only.choose(None)
    with pytest.raises(NotFound, match="has no v2; it has v1"):
        only.choose("v2")
    named = entry({TAG: "v2", NAME: "registry.example.com/llm/tiny:v2"}, b"{}")
    several = Layout(folder(tmp_path / "two", members(entry({TAG: "v1"}), named)))
    with pytest.raises(InvalidRequest, match=r"several models; name one .*: registry.example.com/llm/tiny:v2, v1, v2"):
        several.choose(None)
    assert several.choose("registry.example.com/llm/tiny:v2").digest == Digest.of(b"{}")


def test_one_model_of_two_names_is_no_choice(tmp_path: Path) -> None:
    layout = Layout(folder(tmp_path, members(entry({TAG: "v1"}), entry({TAG: "latest"}))))
    assert layout.choose(None).digest == Digest.of(DOCUMENT)


def test_the_entry_is_whatever_tag_is_asked_for(tmp_path: Path) -> None:
    layout = Layout(folder(tmp_path, members()))
    documents = LayoutDocuments(layout, layout.choose(None))
    assert documents.resolve(REPOSITORY, "any", NOBODY) == Digest.of(DOCUMENT)
    found = documents.manifest(REPOSITORY, "any", NOBODY)
    assert (found.data, found.media_type, found.digest) == (DOCUMENT, OCI_MANIFEST, Digest.of(DOCUMENT))
    documents.exists(REPOSITORY, Digest.of(DOCUMENT), NOBODY)
    with pytest.raises(NotFound, match="export the model again"):
        documents.exists(REPOSITORY, Digest.of(b"absent"), NOBODY)


@pytest.mark.parametrize(
    ("files", "error", "text"),
    [
        ({}, InvalidRequest, "is no OCI image layout"),
        ({"oci-layout": b"{}"}, InvalidRequest, "is no OCI image layout"),
        (members() | {"index.json": b"{"}, BadArtifact, "not valid JSON"),
        (members() | {"index.json": b'{"schemaVersion": 2, "manifests": []}'}, BadArtifact, "nothing to mount"),
        (members() | {"index.json": DOCUMENT}, BadArtifact, "index.json: .* built otherwise"),
        (members() | {"index.json": b" " * (5 << 20)}, BadArtifact, "too large"),
    ],
)
def test_what_is_no_layout_is_said(tmp_path: Path, files: dict[str, bytes], error: type[Exception], text: str) -> None:
    (tmp_path / "top").mkdir()
    for path in (folder(tmp_path / "top", files), archive(tmp_path / "x.tar", files)):
        with pytest.raises(error, match=text):
            Layout(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="doesn't exist"):
        Layout(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest, match="neither a directory nor a file"):
        Layout(tmp_path / "pipe")


def test_other_bytes_in_a_document_are_refused(tmp_path: Path) -> None:
    files = members()
    files[f"blobs/sha256/{Digest.of(DOCUMENT).hex}"] = DOCUMENT.replace(b"2", b"3")
    with pytest.raises(IntegrityError, match="has other bytes"):
        Layout(folder(tmp_path, files)).document(Digest.of(DOCUMENT))


def test_links_are_not_followed(tmp_path: Path) -> None:
    """And what is wrong with a layout is never remembered of the model: no BadArtifact."""
    top = folder(tmp_path / "layout", members(blobs=(DOCUMENT,)))
    (tmp_path / "secret").write_bytes(BLOB)
    (top / "blobs/sha256" / Digest.of(BLOB).hex).symlink_to(tmp_path / "secret")
    with pytest.raises(IntegrityError, match="is a link"):
        LayoutSource(Layout(top)).open(descriptor(BLOB), 0)
    path = archive(tmp_path / "x.tar", members(blobs=(DOCUMENT,)))
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo(f"blobs/sha256/{Digest.of(BLOB).hex}")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        tar.addfile(link)
    with pytest.raises(NotFound):
        LayoutSource(Layout(path)).open(descriptor(BLOB), 0)


def test_a_blob_of_another_size_is_told_before_a_byte(tmp_path: Path) -> None:
    source = LayoutSource(Layout(folder(tmp_path, members())))
    with pytest.raises(IntegrityError, match="where the manifest says"):
        source.open(replace(descriptor(BLOB), size=len(BLOB) + 1), 0)


def test_a_file_that_shrinks_meanwhile_is_no_whole_blob(tmp_path: Path) -> None:
    top = folder(tmp_path, members())
    opened = LayoutSource(Layout(top)).open(descriptor(BLOB), 0)
    os.truncate(top / "blobs/sha256" / Digest.of(BLOB).hex, 100)
    with pytest.raises(Unavailable, match="ends after 100 bytes"):
        received(opened)


def test_an_interrupted_reader_is_told(tmp_path: Path) -> None:
    opened = LayoutSource(Layout(folder(tmp_path, members()))).open(descriptor(BLOB), 0)
    opened.interrupt()
    with pytest.raises(Unavailable):
        received(opened)


def test_a_tar_that_was_copied_in_part_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar", members())
    os.truncate(path, len(path.read_bytes().rstrip(b"\0")) - 600)
    with pytest.raises(BadArtifact, match="copied in part"):
        Layout(path)


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"\x1f\x8b" + b"x" * 1000, InvalidRequest, "is compressed .gzip."),
        (b"\x28\xb5\x2f\xfd" + b"x" * 1000, InvalidRequest, "is compressed .zstd."),
        (b"x" * 1024, BadArtifact, "is no tar"),
        (b"", InvalidRequest, "is no OCI image layout"),
    ],
)
def test_what_is_no_tar_is_said(tmp_path: Path, data: bytes, error: type[Exception], text: str) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(error, match=text):
        Layout(tmp_path / "x.tar")


def test_a_tar_with_two_files_of_one_name_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar", members())
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("./index.json")
        tar.addfile(member, io.BytesIO(b""))
    with pytest.raises(BadArtifact, match="twice"):
        Layout(path)


def test_headers_without_end_are_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 20
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + b"\0" * (2 << 20))
    with pytest.raises(BadArtifact, match="extended header of 1048576 bytes"):
        Layout(tmp_path / "x.tar")
