"""The attributes that choose: which files of a model, in which shape, and which entry of an index."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar, get_args

from modelmount.errors import BadArtifact, InvalidRequest
from modelmount.formats import Choice, paths
from modelmount.formats.base import Unpack
from modelmount.formats.patterns import MAX_PATTERNS, Patterns, cleaned
from modelmount.formats.selection import Files, Selection
from modelmount.oci import jsontext
from modelmount.oci.descriptor import Platform

KEYS: Final = (
    "include", "exclude", "path", "subDir", "files", "layout", "hfRepo", "platform", "select", "unpack",
)  # fmt: skip
_HF_CACHE: Final = "hf-cache"
_LAYOUTS: Final = ("flat", _HF_CACHE)
_HF_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_HF_REPOSITORY: Final = re.compile(rf"(?:{_HF_NAME}/)?{_HF_NAME}")
_HF_CHARACTERS: Final = 96
"""Most that a repository's name has (huggingface_hub, `validate_repo_id`)."""
_PLATFORM: Final = re.compile(r"[a-z0-9]+/[a-z0-9_]+(?:/[a-z0-9.]+)?")
_SHOWN_CHARACTERS: Final = 64

Word = TypeVar("Word", bound=str)


def selection(attributes: Mapping[str, str]) -> Selection:
    """Which files, and how. Raises InvalidRequest naming the key."""
    return Selection(
        path=_path(attributes),
        include=_patterns(attributes, "include"),
        exclude=_patterns(attributes, "exclude"),
        files=_word(attributes, "files", get_args(Files)),
        unpack=_word(attributes, "unpack", get_args(Unpack)),
        sub_dir=_checked("subDir", attributes["subDir"].rstrip("/")) if attributes.get("subDir") else "",
        hf_repo=_repository(attributes),
    )


def choice(attributes: Mapping[str, str]) -> Choice:
    """Which entry of an index. Raises InvalidRequest naming the key."""
    text = attributes.get("platform", "")
    if text and not _PLATFORM.fullmatch(text):
        raise InvalidRequest(f"volume attribute 'platform' must be like linux/arm64, not {quoted(text)}")
    platform = Platform(*text.split("/")) if text else None
    selected: dict[str, str] = {}
    for line in lines(attributes, "select"):
        key, equals, value = line.partition("=")
        if not key or not equals or selected.setdefault(key, value) != value:
            raise InvalidRequest(
                f"volume attribute 'select' must have each annotation once, as annotation=value, not {quoted(line)}"
            )
    return Choice(platform, tuple(sorted(selected.items())))


def quoted(text: str) -> str:
    """Somebody else's word in a message: cut, escaped."""
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")


def _path(attributes: Mapping[str, str]) -> str:
    """Without slashes around it; `/` alone is the root of a container image."""
    text = attributes.get("path", "")
    name = text.strip("/")
    return _checked("path", name) if name else text[:1]


def _checked(key: str, text: str) -> str:
    try:
        return paths.check(text)
    except BadArtifact as e:
        problem = e.message.partition("; ")[0].partition(" in the artifact ")[2]
        raise InvalidRequest(f"volume attribute {key!r}: {quoted(text)} {problem}") from e


def _patterns(attributes: Mapping[str, str], key: str) -> tuple[str, ...]:
    found = cleaned(lines(attributes, key))
    if len(found) > MAX_PATTERNS:
        raise InvalidRequest(f"volume attribute {key!r} has {len(found)} patterns; at most {MAX_PATTERNS} are read")
    try:
        Patterns(found)
    except ValueError as e:
        raise InvalidRequest(f"volume attribute {key!r}: {e}") from e
    return found


def lines(attributes: Mapping[str, str], key: str) -> list[str]:
    """The items of an attribute: a JSON array of strings, or one item a line. Raises InvalidRequest."""
    text = attributes.get(key, "")
    if not text.lstrip().startswith("["):
        return [line for line in text.splitlines() if line.strip()]
    try:
        found = jsontext.loads(text)
    except ValueError:
        found = None
    if isinstance(found, list) and all(isinstance(item, str) for item in found):
        return found
    # `[ab].txt` is a pattern as well.
    if found is None and text.rstrip()[-1:] != "]":
        return [line for line in text.splitlines() if line.strip()]
    raise InvalidRequest(f"volume attribute {key!r} must be a JSON array of strings, or one item a line")


def _word(attributes: Mapping[str, str], key: str, known: tuple[Word, ...]) -> Word:
    """One of the known words; the first is the default."""
    text = attributes.get(key, known[0])
    for word in known:
        if text == word:
            return word
    raise InvalidRequest(f"volume attribute {key!r} must be one of {', '.join(known)}, not {quoted(text)}")


def _repository(attributes: Mapping[str, str]) -> str:
    layout, name = _word(attributes, "layout", _LAYOUTS), attributes.get("hfRepo", "")
    if layout != _HF_CACHE:
        if name:
            raise InvalidRequest("volume attribute 'hfRepo' is for `layout: hf-cache` only; add it, or remove hfRepo")
        return ""
    if not name:
        raise InvalidRequest("`layout: hf-cache` needs the volume attribute 'hfRepo', for example `hfRepo: org/name`")
    if len(name) > _HF_CHARACTERS or not _HF_REPOSITORY.fullmatch(name) or "--" in name or ".." in name:
        raise InvalidRequest(f"volume attribute 'hfRepo' must be like org/name, not {quoted(name)}")
    return name
