"""Which files of an artifact a volume shows, and where: decided before anything is pulled as far as names are known by
then, and again over the whole tree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from modelmount.errors import InvalidRequest
from modelmount.formats import paths
from modelmount.formats.base import File, Layer, Layout, Unpack
from modelmount.formats.patterns import Patterns
from modelmount.formats.stack import MODELS

Files = Literal["all", "vllm"]

_OTHER_WEIGHTS = Patterns(
    (
        "*.bin",
        "*.bin.index.json",
        "*.pt",
        "*.pth",
        "*.ckpt",
        "*.h5",
        "*.msgpack",
        "*.ot",
        "*.onnx",
        "*.onnx_data",
        "*.gguf",
    )
)
"""Weights that vLLM leaves alone where safetensors lie in the same directory."""
_OTHER_COPIES = Patterns(("/original/", "/onnx/", "/openvino/", "/coreml/", "/metal/"))
"""Directories at the root that hold the same model once more, as repositories of Hugging Face have them."""
_SHOWN_NAMES = 10
MOST_LOOKS = 1 << 25
"""Most comparisons of a pattern's component with a path's that choosing may take: some ten seconds, and a hundred
thousand files with a hundred usual patterns.
"""


@dataclass(frozen=True, slots=True)
class Selection:
    """What of an artifact, in which shape. Two equal ones show the same; `EVERYTHING` is the default."""

    path: str = ""
    """A directory of the artifact that becomes the root; in a container image one of the image, `/` its own root."""
    include: tuple[str, ...] = ()
    """Only what these patterns mean, below `path`; everything where there are none."""
    exclude: tuple[str, ...] = ()
    files: Files = "all"
    """For which engine: what it wouldn't read is left out."""
    unpack: Unpack = "auto"
    """Whether archives among plain files are unpacked: as they are marked, all or none."""
    sub_dir: str = ""
    """Where in the volume all of it is shown."""
    hf_repo: str = ""
    """Shown as the cache of Hugging Face's hub has this repository."""

    @property
    def key(self) -> str:
        """Canonical text, empty for everything; part of the names of jobs and views."""
        chosen = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        return json.dumps(chosen, sort_keys=True, separators=(",", ":")) if chosen else ""

    @property
    def chooses(self) -> bool:
        """Whether anything may be left out."""
        return bool(self.path.strip("/") or self.include or self.exclude or self.files != "all")


EVERYTHING = Selection()
"""All files of an artifact, as its format has them."""


def needed(layout: Layout, selection: Selection) -> Layout:
    """The layout without the layers that hold nothing of what is selected, as far as that can be known from the
    manifest. Raises InvalidRequest where no layer is left.
    """
    if not selection.chooses or layout.lift is not None:
        return layout
    start = f"{MODELS}/" if layout.is_image and not selection.path else _start(selection)
    known = [layer.path for layer in layout.layers if _is_file(layer) and layer.path is not None]
    kept, warnings = _chosen([name[len(start) :] for name in known if name.startswith(start)], selection)
    found = tuple(
        layer
        for layer in layout.layers
        if (
            layer.path is not None and layer.path.startswith(start) and layer.path[len(start) :] in kept
            if _is_file(layer)
            else _may_hold(layer, start, selection)
        )
    )
    # The other layers of an image can't say what they hold, but without any of these it would be another one.
    lost = layout.is_image and known and not any(_is_file(layer) or layer.within for layer in found)
    if not found or lost:
        raise _nothing_left(known, selection)
    return replace(layout, layers=found, warnings=(*layout.warnings, *warnings))


def selected(
    files: Sequence[File], directories: Collection[str], selection: Selection
) -> tuple[list[File], set[str], tuple[str, ...]]:
    """What is left of a tree, by paths below the selection's `path`, with warnings. Raises InvalidRequest where no file
    is left.
    """
    start = _start(selection)
    below = [replace(file, path=file.path[len(start) :]) for file in files if file.path.startswith(start)]
    if not selection.chooses:
        return below, set(directories), ()
    kept, warnings = _chosen([file.path for file in below], selection)
    if not kept:
        raise _nothing_left([file.path for file in files], selection)
    exclude = Patterns(selection.exclude)
    empty = [name[len(start) :] for name in directories if name.startswith(start) and not selection.include]
    _bound(exclude.components, empty)
    left = {name for name in empty if not exclude.matches(name, directory=True)}
    return [file for file in below if file.path in kept], left, warnings


def shaped(
    files: Sequence[File], directories: Iterable[str], selection: Selection, revision: str
) -> tuple[list[File], set[str]]:
    """All of it at the place in the volume where the selection wants it."""
    prefix = selection.sub_dir + "/" if selection.sub_dir else ""
    more = [
        File(prefix + path, hashlib.sha256(content).hexdigest(), len(content))
        for path, content in documents(selection, revision).items()
    ]
    if selection.hf_repo:
        prefix += f"{_cached(selection.hf_repo)}/snapshots/{revision}/"
    found = [replace(file, path=prefix + file.path) for file in files]
    return found + more, {prefix + directory for directory in directories}


def documents(selection: Selection, revision: str) -> dict[str, bytes]:
    """Files that are no layer but belong to the shape, by path. Their blobs have to be put into the store."""
    return {f"{_cached(selection.hf_repo)}/refs/main": revision.encode()} if selection.hf_repo else {}


def _cached(repository: str) -> str:
    """The directory of a repository (huggingface_hub, "Understand caching")."""
    return "models--" + repository.replace("/", "--")


def _start(selection: Selection) -> str:
    path = selection.path.strip("/")
    return path + "/" if path else ""


def _chosen(names: Sequence[str], selection: Selection) -> tuple[set[str], tuple[str, ...]]:
    """Which of these paths are shown. Warns of what nobody named and is left out all the same."""
    include, exclude = Patterns(selection.include), Patterns(selection.exclude)
    _bound(include.components + exclude.components, names)
    named = [name for name in names if (not include or include.matches(name)) and not exclude.matches(name)]
    duplicates = _duplicates(named) if selection.files == "vllm" else set()
    if not duplicates:
        return set(named), ()
    warning = (
        f"files that vLLM doesn't read beside safetensors were left out: {len(duplicates)}, for example "
        f"{paths.show(min(duplicates))}"
    )
    return set(named) - duplicates, (warning,)


def _bound(components: int, names: Collection[str]) -> None:
    """Raise InvalidRequest where trying patterns of so many components on all these would take too long."""
    if components * sum(name.count("/") + 1 for name in names) > MOST_LOOKS:
        raise InvalidRequest(
            f"include and exclude have more patterns than can be tried on {len(names)} names; use fewer or shorter ones"
        )


def _duplicates(names: Sequence[str]) -> set[str]:
    """The same model in formats that vLLM leaves alone when it finds safetensors."""
    beside = {name.rpartition("/")[0] for name in names if name.endswith(".safetensors")}
    found = set()
    for name in names:
        directory, _, last = name.rpartition("/")
        if (directory in beside and _OTHER_WEIGHTS.matches(last)) or ("" in beside and _OTHER_COPIES.matches(name)):
            found.add(name)
    return found


def _is_file(layer: Layer) -> bool:
    """Whether the layer is one file, at its path."""
    return layer.is_single or not layer.encoding.is_archive


def _may_hold(layer: Layer, start: str, selection: Selection) -> bool:
    """Whether an archive may have a file that is shown. Where only its entries tell, it may."""
    if layer.within is None:
        return True
    inside = layer.within + "/"
    if not inside.startswith(start):
        return start.startswith(inside)
    relative = layer.within[len(start) :]
    return not relative or not Patterns(selection.exclude).matches(relative, directory=True)


def _nothing_left(known: Collection[str], selection: Selection) -> InvalidRequest:
    start = _start(selection)
    below = sorted(name for name in known if name.startswith(start))
    if start and not below:
        tops = sorted({name.partition("/")[0] for name in known})
        problem, names = f"the artifact has no directory {paths.show(selection.path)} (path)", tops
    else:
        told = " and ".join(name for name in ("path", "include", "exclude") if getattr(selection, name))
        problem, names = f"nothing of the artifact is left to show by {told}", below
    shown = ", ".join(paths.show(name) for name in names[:_SHOWN_NAMES])
    more = ", …" if len(names) > _SHOWN_NAMES else ""
    return InvalidRequest(problem + (f"; it has {shown}{more}" if shown else ""))
