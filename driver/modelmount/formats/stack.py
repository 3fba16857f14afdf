"""The file system of a container image, worked out on names: layer upon layer, whiteouts, links and all, never on a
disk.

Source: OCI image-spec, layer.md. What tools leave open is decided as containerd's applier does it: the last of two
entries with one name counts, a directory on a directory keeps what is in it, links in the middle of a name are followed
below the image's root. Links become what they lead to, so that a volume has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from modelmount.errors import BadArtifact, InvalidRequest
from modelmount.formats import paths
from modelmount.formats.base import HARDLINK, SYMLINK, File, Member

MODELS = "models"
"""Where modelcars have their model (KServe, "Modelcars")."""
MAX_ENTRIES = 300_000
"""Most entries that all layers of an image may have together; three times what large ones have."""
MAX_LINKED = 10_000
"""Most files and directories that may be seen through links: as many as a manifest may have layers."""
MAX_STEPS = 16_000_000
"""Components of names, and of what links say in their place, that may be looked up in one image: each of its entries
may lie behind links, of which each may have a thousand. Some ten seconds; those of large images are a few millions.
"""
MAX_HOPS = 40
"""Links followed on one way, as Linux does (path_resolution(7), MAXSYMLINKS)."""

_WHITEOUT, _OPAQUE, _AUFS = ".wh.", ".wh..wh..opq", ".wh..wh."
_LAZY_PULL = frozenset({"stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark"})
"""What eStargz adds to the root of a layer for its own use."""
_SYSTEM = frozenset({"bin", "sbin", "usr", "lib", "lib64", "etc", "proc", "dev", "var"})
"""A root that has one of these is an operating system's and not a model's."""
_SHOWN_NAMES = 12

Place = tuple[str, ...]
"""A path below the image's root, by components."""


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A file, or what stands in its place: a link, or a kind that isn't read."""

    source: str
    size: int
    special: str = ""
    target: str = ""


@dataclass(slots=True)
class _Directory:
    children: dict[str, _Node] = field(default_factory=dict)


_Node = _Leaf | _Directory


class Stack:
    """An image's file system. `apply` its layers from the lowest to the highest, then ask for what it `shows`."""

    def __init__(self) -> None:
        """An empty root."""
        self._root = _Directory()
        self._entries = self._steps = 0

    def apply(self, members: Sequence[Member], source: str) -> None:
        """Put a layer on top; file `n` of it lies at `<source>/n`. Raises BadArtifact for an image with too many
        entries, or a whiteout of nothing.
        """
        self._entries += len(members)
        if self._entries > MAX_ENTRIES:
            raise BadArtifact(
                f"the image has more than {MAX_ENTRIES} entries in its layers; put the model into one without an "
                "operating system"
            )
        # Whiteouts mean the layers below only, wherever they come in their own.
        for member in members:
            self._whiteout(member)
        for member in members:
            *above, name = member.path.split("/")
            if name.startswith(_WHITEOUT) or (not above and name in _LAZY_PULL):
                continue
            self._add(tuple(above), name, member, source)

    def shows(self, path: str = "") -> tuple[list[File], set[str], tuple[str, ...]]:
        """The files and directories of the volume, and warnings: what lies in `path`; without one in /models, or the
        whole image when it is nothing but the model. Raises InvalidRequest where `path` is no directory, BadArtifact
        where it is needed, and for devices and pipes.
        """
        found = self.walk((), tuple((path or MODELS).split("/")))
        if found is not None and isinstance(found[0], _Directory):
            return _Listing(self).of(*found)
        if path:
            raise InvalidRequest(
                f"the container image has no directory {paths.show(path)} (path); at its root are {self._names()}"
            )
        if _SYSTEM & self._root.children.keys():
            raise BadArtifact(
                f"the container image has no directory /{MODELS}, and holds an operating system, so that its model "
                f"could be anywhere; name the directory with the attribute `path`; at its root are {self._names()}"
            )
        return _Listing(self).of(self._root, ())

    def _names(self) -> str:
        return ", ".join(paths.show(name) for name in sorted(self._root.children)[:_SHOWN_NAMES])

    # -- building

    def _whiteout(self, member: Member) -> None:
        *above, name = member.path.split("/")
        if not name.startswith(_WHITEOUT) or (name.startswith(_AUFS) and name != _OPAQUE):
            return
        if name == _WHITEOUT:
            raise BadArtifact(f"the whiteout {paths.show(member.path)} in the image names nothing; build it again")
        directory: _Node | None = self._root
        for component in above:
            directory = directory.children.get(component) if isinstance(directory, _Directory) else None
        if not isinstance(directory, _Directory):
            return
        if name == _OPAQUE:
            directory.children.clear()
        else:
            directory.children.pop(name.removeprefix(_WHITEOUT), None)

    def _add(self, above: Place, name: str, member: Member, source: str) -> None:
        directory = self._make(above)
        if member.is_directory:
            if not isinstance(directory.children.get(name), _Directory):
                directory.children[name] = _Directory()
        elif member.special == HARDLINK:
            directory.children[name] = self._hard_link(member)
        else:
            directory.children[name] = _Leaf(f"{source}/{member.number}", member.size, member.special, member.target)

    def _make(self, place: Place) -> _Directory:
        """The directory at `place`, made where it is missing, and put in the place of a file."""
        found = self.walk((), place, make=True)
        if found is None or not isinstance(found[0], _Directory):
            raise BadArtifact(f"the image has something in {paths.show('/'.join(place))}, where links go round")
        return found[0]

    def _hard_link(self, member: Member) -> _Leaf:
        *above, name = member.target.split("/")
        found = self.walk((), tuple(above))
        node = found[0].children.get(name) if found is not None and isinstance(found[0], _Directory) else None
        return node if isinstance(node, _Leaf) else _Leaf("", 0, "hard link to nothing")

    # -- looking

    def walk(self, start: Place, way: Place, *, make: bool = False) -> tuple[_Node, Place] | None:
        """What lies at the end of `way` from `start`, and its real place; links are followed, and none leads above the
        root. None where nothing is, or the links go round. `make` makes directories for what is missing or a file.
        """
        place: list[str] = []
        nodes: list[_Node] = [self._root]
        pending = [*reversed(way), *reversed(start)]
        hops = 0
        while pending:
            component = pending.pop()
            self._steps += 1
            if component in {"", "."}:
                continue
            if component == "..":
                if place:
                    place.pop()
                    nodes.pop()
                continue
            directory = nodes[-1]
            if not isinstance(directory, _Directory):
                return None
            node = directory.children.get(component)
            if isinstance(node, _Leaf) and node.special == SYMLINK:
                hops += 1
                if hops > MAX_HOPS:
                    return None
                if self._steps > MAX_STEPS:
                    raise BadArtifact(f"the image's links lead on for more than {MAX_STEPS} names; build it with fewer")
                if node.target.startswith("/"):
                    place.clear()
                    del nodes[1:]
                pending += reversed(node.target.split("/"))
                continue
            if make and not isinstance(node, _Directory):
                node = directory.children[component] = _Directory()
            if node is None:
                return None
            place.append(component)
            nodes.append(node)
        return nodes[-1], tuple(place)


class _Listing:
    """One directory of the image, as a volume shows it."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._files: list[File] = []
        self._directories: set[str] = set()
        self._lost: list[str] = []
        self._sources: set[str] = set()
        self._linked = 0

    def of(self, directory: _Node, place: Place) -> tuple[list[File], set[str], tuple[str, ...]]:
        if isinstance(directory, _Directory):
            self._list(directory, place, "", (place,), linked=False)
        return self._files, self._directories, tuple(_lost(self._lost))

    def _list(self, directory: _Directory, place: Place, shown: str, above: tuple[Place, ...], *, linked: bool) -> None:
        """`place` is where the directory really is, `shown` where it is seen, `above` the real places on the way."""
        for name, node in sorted(directory.children.items()):
            path = f"{shown}/{name}" if shown else name
            if isinstance(node, _Leaf) and node.special == SYMLINK:
                self._show(path, self._stack.walk(place, (name,)), above, linked=True)
            else:
                self._show(path, (node, (*place, name)), above, linked=linked)

    def _show(self, path: str, found: tuple[_Node, Place] | None, above: tuple[Place, ...], *, linked: bool) -> None:
        node, real = found or (None, ())
        if node is None or (isinstance(node, _Directory) and any(real == one[: len(real)] for one in above)):
            self._lost.append(path)
        elif isinstance(node, _Directory):
            self._count(again=linked)
            self._directories.add(paths.check(path))
            self._list(node, real, path, (*above, real), linked=linked)
        elif node.special:
            raise BadArtifact(
                f"{paths.show(path)} in the image is a {node.special}; only files, directories and links are read"
            )
        else:
            self._count(again=linked or node.source in self._sources)
            self._sources.add(node.source)
            self._files.append(File(paths.check(path), node.source, node.size))

    def _count(self, *, again: bool) -> None:
        """A few entries can be a great many files: a link to a directory shows all of it again."""
        self._linked += again
        if self._linked > MAX_LINKED:
            raise BadArtifact(f"the image shows files more than {MAX_LINKED} times through links; build it with fewer")


def _lost(lost: Iterable[str]) -> Iterator[str]:
    names = list(lost)
    if names:
        yield f"links to nowhere or to themselves were left out: {len(names)}, for example {paths.show(names[0])}"
