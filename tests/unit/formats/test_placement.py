"""From layers and members to the tree, the same on every node."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from modelmount import formats
from modelmount.errors import BadArtifact
from modelmount.formats import placement
from modelmount.formats.base import Encoding, File, Layer, Layout, Member, Naming, Placement
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest


def blob(content: bytes) -> Descriptor:
    return Descriptor("application/x", Digest.of(content), len(content))


def raw(path: str | None, content: bytes = b"x") -> Layer:
    return Layer(blob(content), Encoding.RAW, path)


def archive(content: bytes = b"t", path: str | None = None, naming: Naming = Naming.ROOT) -> Layer:
    return Layer(blob(content), Encoding.TAR, path, naming)


def members(*entries: tuple[str, bytes | None]) -> list[Member]:
    return [
        Member(
            n,
            path,
            content is None,
            len(content or b""),
            "" if content is None else hashlib.sha256(content).hexdigest(),
        )
        for n, (path, content) in enumerate(entries)
    ]


def place(
    *layers: Layer, unpacked: Sequence[Sequence[Member]] = (), rules: int = 3, lift: str | None = None
) -> Placement:
    """`unpacked` in the order of the layers that aren't raw."""
    digests = [layer.descriptor.digest for layer in layers if layer.encoding is not Encoding.RAW]
    found = dict(zip(digests, unpacked, strict=True))
    return formats.place(Layout("test", layers, lift=lift), found, dict.fromkeys(found, rules))


def test_a_raw_blob_is_a_file_by_its_digest() -> None:
    found = place(raw("a/model.bin", b"weights"))
    assert found.files == (File("a/model.bin", Digest.of(b"weights").hex, 7),)
    assert found.directories == ("a",)


def test_a_member_is_a_file_by_layer_rules_and_ordinal() -> None:
    found = place(archive(), unpacked=[members(("d", None), ("d/x", b"123"))])
    assert found.files == (File("d/x", f"{Digest.of(b't').hex}/3/1", 3),)
    assert found.directories == ("d",)


def test_each_layer_has_the_rules_it_was_unpacked_under() -> None:
    old, new = archive(b"old"), archive(b"new")
    unpacked = {old.descriptor.digest: members(("a", b"1")), new.descriptor.digest: members(("b", b"2"))}
    rules = {old.descriptor.digest: 1, new.descriptor.digest: 2}
    found = formats.place(Layout("test", (old, new)), unpacked, rules)
    assert [file.source.split("/")[1] for file in found.files] == ["1", "2"]


def test_files_and_directories_are_sorted_and_every_parent_is_there() -> None:
    found = place(raw("b"), raw("a/z/1"), archive(), raw("a-b"), unpacked=[members(("e/f/g", None), ("c/d", b"1"))])
    assert [file.path for file in found.files] == ["a-b", "a/z/1", "b", "c/d"]
    assert found.directories == ("a", "a/z", "c", "e", "e/f", "e/f/g")


def test_the_order_of_layers_makes_no_difference() -> None:
    layers = [raw("b", b"1"), raw("a", b"2"), raw("c/d", b"3")]
    assert place(*layers) == place(*reversed(layers))


def test_one_blob_under_two_names_is_two_files_of_one_source() -> None:
    found = place(raw("a"), raw("b"))
    assert len({file.source for file in found.files}) == 1
    assert [file.path for file in found.files] == ["a", "b"]


def test_equal_bytes_at_one_path_are_one_file() -> None:
    assert len(place(raw("a", b"x"), archive(), unpacked=[members(("a", b"x"))]).files) == 1


def test_different_bytes_at_one_path_are_refused_with_both_digests() -> None:
    """M19."""
    with pytest.raises(BadArtifact) as caught:
        place(raw("a", b"1"), raw("a", b"2"))
    assert str(Digest.of(b"1")) in caught.value.message
    assert str(Digest.of(b"2")) in caught.value.message


def test_different_bytes_are_refused_before_anything_is_downloaded() -> None:
    with pytest.raises(BadArtifact, match="different bytes"):
        placement.refuse_collisions(Layout("test", (raw("a", b"1"), archive(), raw("a", b"2"))))
    with pytest.raises(BadArtifact, match="both a file and a directory"):
        placement.refuse_collisions(Layout("test", (raw("a", b"1"), raw("a/b", b"2"))))


def test_a_compressed_file_goes_to_its_layers_path() -> None:
    layer = Layer(blob(b"z"), Encoding.RAW_ZSTD, "m/model.bin")
    found = place(layer, unpacked=[members(("", b"weights"))])
    assert found.files == (File("m/model.bin", f"{Digest.of(b'z').hex}/3/0", 7),)


@pytest.mark.parametrize(
    ("path", "entries", "expected"),
    [
        pytest.param("sub/model.bin", [("model.bin", b"w")], ["sub/model.bin"], id="base-name-of-a-nested-path"),
        pytest.param("sub/model.bin", [("sub/model.bin", b"w")], ["sub/model.bin"], id="whole-path"),
        pytest.param("sub/model.bin", [("other.bin", b"w")], ["other.bin"], id="another-name"),
        pytest.param("sub/a", [("a", b"w"), ("b", b"w")], ["a", "b"], id="two-files"),
        pytest.param("sub/a", [("a", None), ("a/b", b"w")], ["a/b"], id="a-directory"),
        pytest.param("config", [("config", b"w")], ["config"], id="no-directory-in-the-path"),
        pytest.param(None, [("a", b"w")], ["a"], id="no-path"),
    ],
)
def test_a_hint_places_a_lone_file_with_its_base_name_only(
    path: str | None, entries: list[tuple[str, bytes | None]], expected: list[str]
) -> None:
    found = place(archive(path=path, naming=Naming.HINTED), unpacked=[members(*entries)])
    assert [file.path for file in found.files] == expected


def test_entries_of_a_directory_lie_in_it() -> None:
    layer = archive(path="a/tok", naming=Naming.WITHIN)
    found = place(layer, unpacked=[members(("a/tok", None), ("a/tok/x", b"1"))])
    assert [file.path for file in found.files] == ["a/tok/x"]
    for outside in ("a/tokens", "a", "x", "tok/x"):
        with pytest.raises(BadArtifact, match="outside of it"):
            place(layer, unpacked=[members((outside, b"1"))])


def test_names_of_members_are_checked_again() -> None:
    with pytest.raises(BadArtifact, match="component"):
        place(archive(), unpacked=[members(("../x", b"1"))])


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["models/a", "models/b/c"], ["a", "b/c"]),
        (["models/a", "README.md"], ["README.md", "models/a"]),
        (["models", "x"], ["models", "x"]),
        (["modelsx/a"], ["modelsx/a"]),
    ],
)
def test_a_directory_is_lifted_when_every_file_lies_in_it(paths: list[str], expected: list[str]) -> None:
    found = place(*(raw(path) for path in paths), lift="models")
    assert [file.path for file in found.files] == expected


def test_lifting_takes_directories_along() -> None:
    entries = members(("models", None), ("models/empty", None), ("models/a", b"1"), ("etc", None))
    assert place(archive(), unpacked=[entries], lift="models").directories == ("empty",)


def test_a_tree_without_files_is_refused() -> None:
    with pytest.raises(BadArtifact, match="only directories"):
        place(archive(), unpacked=[members(("a", None))])


def test_members_nobody_gave_are_a_fault_of_the_caller() -> None:
    layer = archive()
    with pytest.raises(KeyError):
        formats.place(Layout("test", (layer,)), {}, {})
    with pytest.raises(KeyError):
        formats.place(Layout("test", (layer,)), {layer.descriptor.digest: members(("a", b"1"))}, {})


def test_names_that_differ_in_case_only_are_a_warning_of_the_placement() -> None:
    assert place(raw("A"), raw("a")).warnings
