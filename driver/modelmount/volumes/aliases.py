"""Keys of another driver, taken where they mean what a key of ours means: model-csi-driver's (`pkg/config/config.go`,
`pkg/service/model.go` there), so that its volumes need our driver's name and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from modelmount.errors import InvalidRequest
from modelmount.formats.patterns import cleaned
from modelmount.oci import jsontext
from modelmount.oci.reference import Reference
from modelmount.volumes import choices
from modelmount.volumes.choices import quoted

PREFIX: Final = "model.csi.modelpack.org/"
"""Its keys begin with its name. Who gave it another name there has other keys, which nobody knows here."""
REFERENCE: Final = PREFIX + "reference"
TYPE: Final = PREFIX + "type"
WEIGHTS: Final = PREFIX + "exclude-model-weights"
PATTERNS: Final = PREFIX + "exclude-file-patterns"
QUOTA: Final = PREFIX + "check-disk-quota"
KEYS: Final = (REFERENCE, TYPE, WEIGHTS, PATTERNS, QUOTA)
MOUNT_ID: Final = PREFIX + "mount-id"
"""Of models that a pod mounts at run time over a socket of its own. Here is nothing like that."""
_WEIGHTS: Final = ("*.safetensors", "/model.safetensors.index.json")
"""What it takes for weights (`isWeightLayer`)."""
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
"""Go's `strconv.ParseBool`, which reads its values."""


def own(attributes: Mapping[str, str]) -> dict[str, str]:
    """The attributes with our keys in the place of aliases; as they are where there are none. Raises InvalidRequest
    naming the key: for a value that the other driver would refuse as well or that means something else here, and for an
    alias beside a key of ours that says something else.
    """
    found = {key: value for key, value in attributes.items() if key not in KEYS}
    if MOUNT_ID in found:
        raise InvalidRequest(
            f"volume attribute {MOUNT_ID!r}: here nothing is mounted at run time; give each model a volume of its own"
        )
    if len(found) == len(attributes):
        return found
    if attributes.get(TYPE, "image").strip() != "image":
        raise InvalidRequest(f"volume attribute {TYPE!r} must be image, not {quoted(attributes[TYPE])}")
    _switch(attributes, QUOTA)  # either way: every pull reserves its space
    if REFERENCE in attributes:
        reference = attributes[REFERENCE].strip()
        if "model" in found and Reference.parse(found["model"]) != Reference.parse(reference):
            raise _both("model", found["model"], REFERENCE, reference)
        found.setdefault("model", reference)
    # The last pattern that matches decides; there, patterns come before weights.
    weights = _WEIGHTS if _switch(attributes, WEIGHTS) else ()
    if patterns := [*weights, *_patterns(attributes)]:
        exclude = json.dumps(patterns)
        if "exclude" in found and list(cleaned(choices.lines(found, "exclude"))) != patterns:
            raise _both("exclude", found["exclude"], PATTERNS if PATTERNS in attributes else WEIGHTS, exclude)
        found.setdefault("exclude", exclude)
    return found


def model(attributes: Mapping[str, str]) -> str | None:
    """The model as the volume's author wrote it, for records of what was refused."""
    return attributes.get("model", attributes.get(REFERENCE))


def _patterns(attributes: Mapping[str, str]) -> list[str]:
    text = attributes.get(PATTERNS, "").strip()
    if not text:
        return []
    try:
        found = jsontext.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise InvalidRequest(f"volume attribute {PATTERNS!r} must be a JSON array of strings, not {quoted(text)}")
    for pattern in found:
        if "/" in pattern:
            raise InvalidRequest(
                f"volume attribute {PATTERNS!r}: {quoted(pattern)} has a slash, and model-csi-driver compares names "
                "without directories; write it as 'exclude', where it means a path"
            )
    return list(cleaned(found))


def _switch(attributes: Mapping[str, str], key: str) -> bool:
    text = attributes.get(key, "").strip()
    if text not in {"", *_TRUE, *_FALSE}:
        raise InvalidRequest(f"volume attribute {key!r} must be true or false, not {quoted(text)}")
    return text in _TRUE


def _both(key: str, value: str, alias: str, other: str) -> InvalidRequest:
    return InvalidRequest(
        f"volume attributes {key!r} ({quoted(value)}) and {alias!r} ({quoted(other)}) say different things; remove one"
    )
