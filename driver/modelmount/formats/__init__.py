"""Formats: what a manifest means, which blob becomes which path of the volume.

Rule of this room: no I/O, no clock, no machine. The same manifest (and the members of its archives) gives the same tree
on every node, or the same refusal. Names out of artifacts pass `paths.check` before anything else sees them. A format
is one file with a class as `base.Format` has it and one line in `FORMATS`; formats don't know each other.
"""

from __future__ import annotations

from modelmount.errors import BadArtifact
from modelmount.formats import description, layers, paths, placement, unsupported
from modelmount.formats.base import Encoding, Format, Layout
from modelmount.formats.choice import ANY, Choice, choose
from modelmount.formats.dockermodel import DockerModel
from modelmount.formats.files import Files
from modelmount.formats.image import ContainerImage
from modelmount.formats.modelkit import ModelKit
from modelmount.formats.modelpack import ModelPack
from modelmount.formats.ollama import Ollama
from modelmount.formats.placement import place
from modelmount.formats.selection import EVERYTHING, Selection, documents, needed
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Manifest

__all__ = ["ANY", "FORMATS", "Choice", "choose", "decide", "describe", "documents", "name", "place", "reads_config"]

FORMATS: tuple[Format, ...] = (ContainerImage(), ModelKit(), Ollama(), DockerModel(), ModelPack(), Files())
"""The most specific first: the first that matches decides."""


_SUPPORTED = "ModelPack, KitOps ModelKits, Docker Model Runner, Ollama, container images and ORAS files"


def decide(manifest: Manifest, config: bytes | None, selection: Selection = EVERYTHING) -> Layout:
    """What the artifact is and what of it is needed. `config` is the config blob, needed only where the matching format
    `reads_config`.

    Raises BadArtifact for kinds that aren't read, names that can't be used, names that collide as far as that is known
    before a download, and artifacts without files; InvalidRequest where the selection leaves none.
    """
    unsupported.refuse(manifest)
    layout = _format(manifest).layout(manifest, config, selection.unpack)
    if not layout.layers:
        raise BadArtifact(
            f"an artifact of type {paths.show(layers.kind(manifest) or 'unknown')} is no model that can be mounted: "
            f"none of its layers ({len(manifest.layers)}) is a file with a name; supported are {_SUPPORTED}"
        )
    layout = needed(layout, selection)
    _refuse_two_readings(layout)
    placement.refuse_collisions(layout)
    return layout


def describe(manifest: Manifest, config: bytes | None) -> dict[str, str]:
    """What the artifact says of its model, by name of the fact. Raises BadArtifact for kinds that aren't read."""
    unsupported.refuse(manifest)
    return description.describe(manifest, config, _format(manifest).facts)


def name(manifest: Manifest) -> str:
    """What its format is called. Raises BadArtifact for kinds that aren't read."""
    unsupported.refuse(manifest)
    return _format(manifest).name


def reads_config(manifest: Manifest) -> bool:
    """Whether `decide` needs the config blob; where not, it never has to be fetched. Raises BadArtifact for kinds that
    aren't read at all.
    """
    unsupported.refuse(manifest)
    return _format(manifest).reads_config


def _format(manifest: Manifest) -> Format:
    return next(format_ for format_ in FORMATS if format_.matches(manifest))


def _refuse_two_readings(layout: Layout) -> None:
    """A blob is unpacked once, so it can't be two kinds of archive at a time."""
    readings: dict[Digest, Encoding] = {}
    for layer in layout.layers:
        if layer.encoding is not Encoding.RAW:
            digest = layer.descriptor.digest
            if readings.setdefault(digest, layer.encoding) is not layer.encoding:
                raise BadArtifact(
                    f"the artifact lists {digest} as {readings[digest].value} and as {layer.encoding.value}; ask its "
                    "publisher to correct the media types"
                )
