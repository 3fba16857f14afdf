"""From a layout and the members of its archives to the tree that gets mounted. Pure: the same input gives the same tree
on every node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from modelmount.errors import BadArtifact
from modelmount.formats import paths
from modelmount.formats import selection as selections
from modelmount.formats.base import Encoding, File, Layer, Layout, Member, Naming, Placement
from modelmount.formats.selection import EVERYTHING, Selection
from modelmount.formats.stack import Stack
from modelmount.oci.digest import Digest


class _Tree:
    """Collects files and directories; the same path twice is fine only with the same bytes."""

    def __init__(self, sha256_of: Callable[[str], str]) -> None:
        self.files: dict[str, File] = {}
        self.directories: set[str] = set()
        self._origin: dict[str, tuple[str, Digest]] = {}
        self._sha256_of = sha256_of

    def add(self, file: File, content: str, layer: Layer) -> None:
        """`content` says what the bytes are; empty where nobody knows yet."""
        digest = layer.descriptor.digest
        content_before, digest_before = self._origin.setdefault(file.path, (content, digest))
        before = self.files.setdefault(file.path, file)
        if before.source == file.source:
            return
        if (content_before or self._known(before)) != (content or self._known(file)):
            raise BadArtifact(
                f"two layers put different bytes at {paths.show(file.path)}: {digest_before} and {digest}; ask the "
                "artifact's publisher to keep one"
            )

    def _known(self, file: File) -> str:
        return f"sha256:{self._sha256_of(file.source)}"


def place(
    layout: Layout,
    members: Mapping[Digest, Sequence[Member]],
    rules: Mapping[Digest, int],
    selection: Selection = EVERYTHING,
    revision: str = "",
    *,
    sha256_of: Callable[[str], str] = lambda source: source,
) -> Placement:
    """Where every file of the volume comes from. `revision` names the model in layouts that want one.

    `members` has an entry for each layer that isn't RAW, and `rules` the version of the unpacking rules which that
    layer was made under: one model may mix versions. `sha256_of` hashes what is at a source; it is asked only where two
    layers have a member of the same name and nobody has hashed it yet. Raises BadArtifact when names collide, an entry
    lies outside its layer's directory, or there is no file at all; InvalidRequest when the selection leaves none;
    KeyError when a layer's members or rules are missing.
    """
    if layout.is_image:
        files, directories, warnings = _stacked(layout, members, rules, selection.path)
        selection = replace(selection, path="")
    else:
        files, directories, warnings = _side_by_side(layout, members, rules, sha256_of)
    if not files:
        raise BadArtifact(
            f"the {layout.format} artifact has no files, only directories; ask its publisher what it should contain"
        )
    files, directories, more = selections.selected(files, directories, selection)
    files, directories = selections.shaped(files, directories, selection, revision)
    warnings += more + paths.collisions((file.path for file in files), directories)
    for file in files:
        directories.update(paths.parents(file.path))
    for directory in list(directories):
        directories.update(paths.parents(directory))
    return Placement(tuple(sorted(files, key=lambda file: file.path)), tuple(sorted(directories)), warnings)


def refuse_collisions(layout: Layout) -> None:
    """What can be known before anything is downloaded: the paths of raw layers must not collide. Raises BadArtifact."""
    tree = _Tree(lambda source: source)
    for layer in layout.layers:
        if layer.encoding is Encoding.RAW:
            _place_raw(tree, layer)
    paths.collisions(tree.files)


_Gathered = tuple[list[File], set[str], tuple[str, ...]]
"""Files, directories without all of their parents, warnings."""


def _side_by_side(
    layout: Layout,
    members: Mapping[Digest, Sequence[Member]],
    rules: Mapping[Digest, int],
    sha256_of: Callable[[str], str],
) -> _Gathered:
    tree = _Tree(sha256_of)
    for layer in layout.layers:
        if layer.encoding is Encoding.RAW:
            _place_raw(tree, layer)
        else:
            digest = layer.descriptor.digest
            _place_members(tree, layer, members[digest], rules[digest])
    return *_lifted(tree, layout.lift), ()


def _stacked(
    layout: Layout, members: Mapping[Digest, Sequence[Member]], rules: Mapping[Digest, int], path: str
) -> _Gathered:
    stack = Stack()
    for layer in layout.layers:
        digest = layer.descriptor.digest
        stack.apply(members[digest], f"{digest.hex}/{rules[digest]}")
    return stack.shows(path)


def _place_raw(tree: _Tree, layer: Layer) -> None:
    if layer.path is None:
        raise BadArtifact(f"layer {layer.descriptor.digest} has no name")
    digest = layer.descriptor.digest
    tree.add(File(layer.path, digest.hex, layer.descriptor.size), str(digest), layer)


def _place_members(tree: _Tree, layer: Layer, members: Sequence[Member], rules: int) -> None:
    digest = layer.descriptor.digest
    for member, path in _named(layer, members):
        if member.is_directory:
            tree.directories.add(path)
        else:
            file = File(path, f"{digest.hex}/{rules}/{member.number}", member.size)
            tree.add(file, f"sha256:{member.sha256}" if member.sha256 else "", layer)


def _named(layer: Layer, members: Sequence[Member]) -> Iterator[tuple[Member, str]]:
    """Each member with its path in the volume, by the layer's naming."""
    path = layer.path
    if not layer.encoding.is_archive:
        if path is None:
            raise BadArtifact(f"layer {layer.descriptor.digest} has no name")
        yield from ((member, path) for member in members)
        return
    alone = members[0] if len(members) == 1 and not members[0].is_directory else None
    if layer.naming is Naming.HINTED and path and alone and "/" in path and alone.path == path.rpartition("/")[2]:
        yield alone, path
        return
    for member in members:
        name = paths.check(f"{path}/{member.path}" if layer.naming is Naming.BELOW and path else member.path)
        if layer.naming is Naming.WITHIN and path and name != path and not name.startswith(path + "/"):
            raise BadArtifact(
                f"the archive of directory {paths.show(path)} has the entry {paths.show(name)}, which lies outside of "
                "it"
            )
        yield member, name


def _lifted(tree: _Tree, lift: str | None) -> tuple[list[File], set[str]]:
    """The files and directories, with `lift` taken as the root where every file lies below it."""
    if lift is None or not all(path.startswith(lift + "/") for path in tree.files):
        return list(tree.files.values()), tree.directories
    cut = len(lift) + 1
    files = [File(file.path[cut:], file.source, file.size) for file in tree.files.values()]
    return files, {directory[cut:] for directory in tree.directories if directory.startswith(lift + "/")}
