"""Which manifest of an index is the model (OCI image-spec, image-index.md).

Indexes are written for container images, by platform. A model is the same on every platform, so that one entry without
a platform is the usual case, and a ModelPack manifest between images for several platforms is what was meant.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from modelmount.errors import BadArtifact, InvalidRequest
from modelmount.formats import layers, modelkit, modelpack, paths
from modelmount.oci.descriptor import Descriptor, Platform
from modelmount.oci.manifest import INDEXES, MANIFESTS, Index

_REFERENCE_TYPE, _ATTESTATION = "vnd.docker.reference.type", "attestation-manifest"
"""How BuildKit marks what it says about the other entries."""
_UNKNOWN = "unknown"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""As the kernel calls them, and as Go and so OCI does."""
_DEFAULT_VARIANTS = {"": 0, "v8": 0}
_SHOWN_ENTRIES = 10
_SHOWN_ANNOTATIONS = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """What a volume wants of an index; `ANY` leaves it to the index and the machine."""

    platform: Platform | None = None
    select: tuple[tuple[str, str], ...] = ()
    """Annotations that the entry must have, with their values."""

    @property
    def key(self) -> str:
        """Canonical text, empty for any; part of what a reference means."""
        platform = None if self.platform is None else str(self.platform)
        return "" if self == ANY else json.dumps([platform, self.select])


ANY = Choice()


def choose(index: Index, architecture: str | None = None, choice: Choice = ANY) -> Descriptor:
    """The entry to go on with, which may be an index itself. `architecture` is this machine's (`amd64` or `x86_64`),
    None where it doesn't matter: then the first Linux entry's counts.

    Of the entries that the choice allows, in this order: the only one there is, the one for Linux on this architecture,
    the only one for no platform. Manifests of models push aside those of container images, unless a platform is chosen;
    attestations and types that no reader knows don't count. Raises BadArtifact listing the choices where none of that
    decides, InvalidRequest where nothing is as chosen.
    """
    entries = _candidates(index)
    if not entries:
        raise BadArtifact("the index names no manifest that could be a model; push the model again")
    allowed = [entry for entry in entries if _is_allowed(entry, choice)]
    if not allowed:
        if len(entries) == 1 and layers.media(entries[0].media_type) in INDEXES:
            return entries[0]
        raise InvalidRequest(f"the index has no entry as chosen by {_told(choice)}; it has {_listing(entries)}")
    if choice.platform is None:
        allowed = [entry for entry in allowed if _is_model(entry)] or allowed
    if len(allowed) == 1:
        return allowed[0]
    found = _for_machine(allowed, architecture) or [entry for entry in allowed if _is_for_any_platform(entry)]
    if choice.platform is not None:
        found = _best_variant([(entry.platform.variant, entry) for entry in allowed if entry.platform])
    if len(found) != 1:
        raise BadArtifact(
            f"the index has several models and none is the one for this node: {_listing(allowed)}; choose one by the "
            "attributes `platform` or `select`, or name it by its digest (repository@sha256:…)"
        )
    return found[0]


def _is_allowed(entry: Descriptor, choice: Choice) -> bool:
    wanted, found = choice.platform, entry.platform
    if wanted is not None and (
        found is None
        or (found.os, found.architecture) != (wanted.os, wanted.architecture)
        or (wanted.variant and found.variant != wanted.variant)
    ):
        return False
    return all(entry.annotations.get(key) == value for key, value in choice.select)


def _told(choice: Choice) -> str:
    return " and ".join(["platform"] * (choice.platform is not None) + ["select"] * bool(choice.select))


def _is_model(entry: Descriptor) -> bool:
    return modelpack.declared_by(entry) or layers.media(entry.artifact_type or "").startswith(modelkit.PREFIX)


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
    return _best_variant(matching)


def _best_variant(entries: Sequence[tuple[str, Descriptor]]) -> list[Descriptor]:
    """Those of the variant that runs on most machines."""
    variant = min((variant for variant, _ in entries), key=lambda name: (_DEFAULT_VARIANTS.get(name, 1), name))
    return [entry for found, entry in entries if found == variant]


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
                _annotated(entry),
            )
            if part
        )
        for entry in entries[:_SHOWN_ENTRIES]
    ]
    more = len(entries) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _annotated(entry: Descriptor) -> str:
    shown = [paths.show(f"{key}={value}") for key, value in sorted(entry.annotations.items())[:_SHOWN_ANNOTATIONS]]
    return f"with {' '.join(shown)}" if shown else ""
