"""The name map against a file system: the same layers, put on a disk as a container runtime would, look the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from modelmount.errors import BadArtifact
from modelmount.formats.base import HARDLINK, SYMLINK, Member
from modelmount.formats.stack import Stack

NAMES = st.sampled_from(["a", "b"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
WHITEOUTS = st.tuples(NAMES, st.sampled_from([".wh.a", ".wh.b", ".wh..wh..opq", ".wh..wh..opq"])).map("/".join)


@st.composite
def members(draw: st.DrawFn) -> list[Member]:
    """One layer. Links are to names below the root: out of it they would leave the test's own directory."""
    found = []
    for ordinal in range(draw(st.integers(2, 6))):
        kind = draw(st.sampled_from(["file", "file", "file", "directory", SYMLINK, HARDLINK, "whiteout", "whiteout"]))
        path = draw(WHITEOUTS if kind == "whiteout" else PATHS)
        target = ""
        if kind == SYMLINK:
            target = draw(PATHS.map(lambda name: f"/{name}") | NAMES)
        elif kind == HARDLINK:
            target = draw(PATHS)
        special = kind if kind in {SYMLINK, HARDLINK} else ""
        found.append(Member(ordinal, path, kind == "directory", 0, "", special, target))
    return found


class Disk:
    """Layers applied in place, in the order of the specification: whiteouts of the lower layers, then the entries."""

    def __init__(self, root: Path) -> None:
        self.root, self.aside = root / "root", root / "aside"
        self.root.mkdir()
        self.links_go_round = False

    def apply(self, layer: Sequence[Member], number: int) -> None:
        for member in layer:
            above, _, name = member.path.rpartition("/")
            directory = self.root / above
            if name.startswith(".wh.") and self._is_plain(directory):
                if name == ".wh..wh..opq":
                    for path in directory.iterdir():
                        remove(path)
                else:
                    remove(directory / name.removeprefix(".wh."))
        for member in layer:
            if not member.path.rpartition("/")[2].startswith(".wh."):
                self._add(member, f"{number}/{member.number}")

    def _is_plain(self, directory: Path) -> bool:
        return directory.is_dir() and Path(os.path.realpath(directory)) == directory

    def _add(self, member: Member, source: str) -> None:
        above, _, name = member.path.rpartition("/")
        directory = self._make(above)
        if directory is None:
            return
        path = directory / name
        if member.is_directory:
            if path.is_symlink() or not path.is_dir():
                remove(path)
                path.mkdir()
        elif member.special == SYMLINK:
            remove(path)
            absolute = member.target.startswith("/")
            path.symlink_to(f"{self.root}{member.target}" if absolute else member.target)
        elif member.special == HARDLINK:
            there, _, last = member.target.rpartition("/")
            found = Path(os.path.realpath(self.root / there)) / last
            if os.path.lexists(found) and (found.is_symlink() or not found.is_dir()):
                if found != path:
                    os.link(found, self.aside, follow_symlinks=False)
                    remove(path)  # which may be a directory that the found one lies in
                    self.aside.rename(path)
            else:
                remove(path)
                path.write_text("broken")
        else:
            remove(path)
            path.write_text(source)

    def _make(self, above: str) -> Path | None:
        """The parent, through links, with whatever is missing or no directory made one."""
        directory = self.root
        for component in above.split("/") if above else []:
            path = Path(os.path.realpath(directory / component))
            if path.is_symlink() or any(parent.is_symlink() for parent in path.parents):
                self.links_go_round = True
                return None
            for part in (*reversed(path.relative_to(self.root).parents), path.relative_to(self.root)):
                here = self.root / part
                if not here.is_dir():
                    remove(here)
                    here.mkdir()
            directory = path
        return directory

    def shows(self) -> dict[str, str]:
        """Content by path, directories as such; what leads nowhere or up isn't there."""
        found: dict[str, str] = {}
        self._list(self.root, "", (self.root,), found)
        return found

    def _list(self, directory: Path, shown: str, above: tuple[Path, ...], found: dict[str, str]) -> None:
        for path in sorted(directory.iterdir()):
            name = f"{shown}{path.name}"
            real = Path(os.path.realpath(path))
            if real.is_dir():
                if not any(one.is_relative_to(real) for one in above):
                    found[name] = "directory"
                    self._list(real, f"{name}/", (*above, real), found)
            elif real.is_file():
                found[name] = real.read_text()


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


@settings(max_examples=100)
@given(st.lists(members(), min_size=1, max_size=4))
def test_layers_look_as_they_do_on_a_disk(layers: list[list[Member]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        disk = Disk(Path(os.path.realpath(name)))
        for number, layer in enumerate(layers):
            disk.apply(layer, number)
        expected = disk.shows()
    stack = Stack()
    try:
        for number, layer in enumerate(layers):
            stack.apply(layer, str(number))
        files, directories, _ = stack.shows("/")
    except BadArtifact as e:
        assert disk.links_go_round or ("broken" in expected.values() and "hard link to nothing" in e.message)
        return
    assert not disk.links_go_round
    assert {file.path: file.source for file in files} | dict.fromkeys(directories, "directory") == expected
