"""Which names an artifact may give its files. One rule set for titles, annotations and archive entries.

A name that passes is a relative path that no tool below can read in two ways: it stays inside the tree, prints without
tricks, and is within the limits of every file system a store can live on.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from modelmount.errors import BadArtifact

MAX_PATH_BYTES = 1024
MAX_COMPONENT_BYTES = 255
"""NAME_MAX of ext4 and XFS, in bytes of UTF-8."""
MAX_DEPTH = 32
RESERVED_PREFIX = ".modelmount"
"""Names that the driver keeps for itself, at every level."""

_WHITEOUT_PREFIX = ".wh."
"""OCI image-spec, layer.md "Whiteouts": such an entry deletes another one, it is no file."""
_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Control, format (bidirectional overrides, zero width), surrogate, private use, line and paragraph separators."""
_SHOWN_CHARACTERS = 120
_SHOWN_NAMES = 5


def check(path: str) -> str:
    """The path with leading `./` removed, or BadArtifact saying what is wrong with it.

    Shell and URL syntax (`$(x)`, `~root`, `%2e%2e`, `-rf`) is ordinary text here: nothing below expands or decodes it.
    """
    if len(path) > MAX_PATH_BYTES:  # first of all: what follows is only quick on short names
        raise _refused(path, f"is longer than {MAX_PATH_BYTES} bytes")
    name = path
    while name.startswith("./"):
        name = name[2:]
    if not name:
        raise _refused(path, "is empty")
    if name.startswith("/"):
        raise _refused(path, "is absolute")
    if not (name.isascii() and name.isprintable()):
        for character in name:
            if unicodedata.category(character) in _REFUSED_CATEGORIES:
                raise _refused(path, f"contains the character U+{ord(character):04X}, which is invisible or not text")
    if "\\" in name:
        raise _refused(path, "contains a backslash")
    if len(name.encode()) > MAX_PATH_BYTES:
        raise _refused(path, f"is longer than {MAX_PATH_BYTES} bytes")
    components = name.split("/")
    if len(components) > MAX_DEPTH:
        raise _refused(path, f"is more than {MAX_DEPTH} levels deep")
    for component in components:
        problem = _component_problem(component)
        if problem:
            raise _refused(path, problem)
    return name


def _component_problem(component: str) -> str | None:
    if component == "":
        return "has an empty component or ends with a slash"
    if component in {".", ".."}:
        return f"has the component {component!r}"
    if len(component) > MAX_COMPONENT_BYTES or len(component.encode()) > MAX_COMPONENT_BYTES:
        return f"has a component longer than {MAX_COMPONENT_BYTES} bytes"
    if component.startswith(_WHITEOUT_PREFIX):
        return "is a whiteout, which only container images may have"
    if component.startswith(RESERVED_PREFIX):
        return f"starts with {RESERVED_PREFIX}, which is reserved for the driver"
    return None


def collisions(files: Iterable[str], directories: Iterable[str] = ()) -> tuple[str, ...]:
    """Compare all names of an artifact with each other. Takes checked paths, each file once; parents need not be
    listed.

    Raises BadArtifact for a file named like a directory, and for names that are equal after Unicode normalisation
    (NFC): some tools would see one where others see two. Names that differ in case only are different files on Linux;
    they are returned as warnings.
    """
    names = set(files)
    above = set(directories)
    for name in list(names) + list(above):
        above.update(parents(name))
    both = names & above
    if both:
        raise BadArtifact(
            f"the artifact has both a file and a directory named {show(min(both))}; ask its publisher to rename one"
        )
    normalised: dict[str, str] = {}
    folded: dict[str, str] = {}
    warnings: list[str] = []
    for name in sorted(names | above):
        form = name if name.isascii() else unicodedata.normalize("NFC", name)
        other = normalised.setdefault(form, name)
        if other != name:
            raise BadArtifact(
                f"the artifact has two names that look the same, {show(other)} and {show(name)}, once composed and "
                "once decomposed (Unicode NFC); "
                "ask its publisher to rename one"
            )
        other = folded.setdefault(form.casefold(), name)
        if other != name and len(warnings) < _SHOWN_NAMES:
            warnings.append(f"{show(other)} and {show(name)} differ in upper and lower case only")
    return tuple(warnings)


def parents(path: str) -> list[str]:
    """Every directory above a checked path, the nearest first, without the root."""
    found = []
    while (cut := path.rfind("/")) > 0:
        path = path[:cut]
        found.append(path)
    return found


def show(path: str) -> str:
    """A name for a message: quoted, without control characters, of bounded length."""
    return ascii(path if len(path) <= _SHOWN_CHARACTERS else path[:_SHOWN_CHARACTERS] + "...")


def _refused(path: str, problem: str) -> BadArtifact:
    return BadArtifact(f"the file name {show(path)} in the artifact {problem}; ask its publisher to rename it")
