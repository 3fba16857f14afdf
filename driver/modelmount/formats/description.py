"""What an artifact says of its model: a few words from its config, wherever the format keeps them, and from the
manifest's annotations. For people to read; nothing is decided by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from modelmount.errors import BadArtifact
from modelmount.oci.manifest import Manifest, strict_json

Ways = Mapping[str, tuple[str, ...]]
"""Names of facts, and the way through a config's JSON to each."""

_ANNOTATIONS: Final = "org.opencontainers.image."
"""Prefix of OCI image-spec, annotations.md."""
_ANNOTATED: Final = ("version", "vendor", "authors", "licenses", "created", "source", "revision", "url", "description")
_SHOWN_CHARACTERS: Final = 200


def describe(manifest: Manifest, config: bytes | None, ways: Ways) -> dict[str, str]:
    """Facts by name, as the publisher wrote them: unchecked text of bounded length. The config's word goes before the
    annotations'.
    """
    try:
        document = strict_json(config or b"")
    except BadArtifact:
        document = None
    found = {name: text for name, way in ways.items() if (text := _text(_at(document, way)))}
    for name in _ANNOTATED:
        text = _text(manifest.annotations.get(_ANNOTATIONS + name))
        if text:
            found.setdefault(name, text)
    return found


def _at(document: object, way: tuple[str, ...]) -> object:
    for key in way:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _text(value: object) -> str:
    if isinstance(value, list):
        value = ", ".join(text for item in value if (text := _text(item)))
    if isinstance(value, bool):
        value = "yes" if value else "no"
    if not isinstance(value, str | int | float):
        return ""
    text = str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
