"""Which manifest of an index is the model (OCI image-spec, image-index.md).

Indexes are written for container images, by platform. A model is the same on every platform, so that one entry without
a platform is the usual case, and a ModelPack manifest between images for several platforms is what was meant.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelmount.errors import BadArtifact
from modelmount.formats import layers, modelpack, paths
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.manifest import INDEXES, MANIFESTS, Index

_REFERENCE_TYPE, _ATTESTATION = "vnd.docker.reference.type", "attestation-manifest"
"""How BuildKit marks what it says about the other entries."""
_UNKNOWN = "unknown"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""As the kernel calls them, and as Go and so OCI does."""
_DEFAULT_VARIANTS = {"": 0, "v8": 0}
_SHOWN_ENTRIES = 10


def choose(index: Index, architecture: str | None = None) -> Descriptor:
    """The entry to go on with, which may be an index itself. `architecture` is this machine's (`amd64` or `x86_64`),
    None where it doesn't matter: then the first Linux entry's counts.

    In this order: the only entry there is, the entry for Linux on this architecture, the only entry for no platform.
    ModelPack manifests push aside all others; attestations and types that no reader knows don't count. Raises
    BadArtifact listing the choices where none of that decides.
    """
    entries = _candidates(index)
    if not entries:
        raise BadArtifact("the index names no manifest that could be a model; push the model again")
    entries = [entry for entry in entries if modelpack.declared_by(entry)] or entries
    if len(entries) == 1:
        return entries[0]
    found = _for_machine(entries, architecture) or [entry for entry in entries if _is_for_any_platform(entry)]
    if len(found) != 1:
        raise BadArtifact(
            f"the index has several models and none is the one for this node: {_listing(entries)}; name one by its "
            "digest (repository@sha256:…)"
        )
    return found[0]


def _candidates(index: Index) -> list[Descriptor]:
    """Each digest once, the first time it comes."""
    found: dict[str, Descriptor] = {}
    for entry in index.manifests:
        known = layers.media(entry.media_type) in MANIFESTS + INDEXES
        if known and entry.annotations.get(_REFERENCE_TYPE) != _ATTESTATION:
            found.setdefault(str(entry.digest), entry)
    return list(found.values())


def _for_machine(entries: Sequence[Descriptor], architecture: str | None) -> list[Descriptor]:
    """Entries for Linux on `architecture`, of the variant that runs on most machines: that one alone where its variant
    is unique.
    """
    platforms = [(entry, entry.platform) for entry in entries if entry.platform and entry.platform.os == "linux"]
    if not platforms:
        return []
    wanted = platforms[0][1].architecture if architecture is None else _ARCHITECTURES.get(architecture, architecture)
    matching = [(platform.variant, entry) for entry, platform in platforms if platform.architecture == wanted]
    if not matching:
        return []
    variant = min((variant for variant, _ in matching), key=lambda name: (_DEFAULT_VARIANTS.get(name, 1), name))
    return [entry for found, entry in matching if found == variant]


def _is_for_any_platform(entry: Descriptor) -> bool:
    return entry.platform is None or entry.platform.os in {"", _UNKNOWN}


def _listing(entries: Sequence[Descriptor]) -> str:
    shown = [
        " ".join(
            part
            for part in (
                str(entry.digest),
                f"for {paths.show(str(entry.platform))}" if entry.platform and not _is_for_any_platform(entry) else "",
                f"of type {paths.show(entry.artifact_type)}" if entry.artifact_type else "",
            )
            if part
        )
        for entry in entries[:_SHOWN_ENTRIES]
    ]
    more = len(entries) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
