"""What is known about a manifest: facts once, and a verdict of the bytes per rules version, so that a bad artifact is
refused without another download.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from modelmount import __version__
from modelmount.config import Limits
from modelmount.content.store import Store
from modelmount.errors import BadArtifact
from modelmount.oci.digest import Digest
from modelmount.snapshots.tree import LAYOUT_RULES
from modelmount.snapshots.unpack import RULES
from modelmount.system import atomic

log = logging.getLogger(__name__)

_SOURCES = "sources.json"


class Facts(msgspec.Struct, frozen=True):
    """True of a manifest under any rules."""

    digest: str
    media_type: str
    artifact_type: str
    format: str
    declared_bytes: int
    layers: int


def check(store: Store, manifest: Digest, limits: Limits, selection: str) -> None:
    """Raise the remembered BadArtifact, if this selection has one under the present rules, limits and program."""
    try:
        raise BadArtifact(_path(store, manifest, limits, selection).read_text())
    except FileNotFoundError:
        return


def remember(store: Store, manifest: Digest, limits: Limits, selection: str, error: BadArtifact) -> None:
    """Keep a verdict that the bytes or declared sizes decided."""
    path = _path(store, manifest, limits, selection)
    with store.locks.shared():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic.write_file(path, str(error).encode(errors="replace"))


def record_facts(store: Store, facts: Facts, namespace: str = "") -> None:
    """Write `facts.json` once; later calls only mark the model as used, by `namespace`."""
    directory = store.root / "models" / Digest.parse(facts.digest).hex
    path = directory / "facts.json"
    if not path.exists():
        with store.locks.shared():
            directory.mkdir(mode=0o700, exist_ok=True)
            atomic.write_file(path, msgspec.json.format(msgspec.json.encode(facts)))
    mark_used(store, Digest.parse(facts.digest), namespace)


def read_facts(store: Store, manifest: Digest) -> Facts | None:
    """The facts of a manifest that was pulled here."""
    try:
        return msgspec.json.decode((store.root / "models" / manifest.hex / "facts.json").read_bytes(), type=Facts)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def pulled_models(store: Store) -> Iterator[tuple[str, float]]:
    """The hex digits of each manifest that was pulled here, at least in part, and its last use in wall-clock seconds.
    Where only a verdict is known, nothing was.
    """
    for path in (store.root / "models").glob("*/facts.json"):
        found = used_at(store, path.parent.name)
        if found and len(path.parent.name) in {64, 128}:
            yield path.parent.name, found


def used_at(store: Store, hex_digits: str) -> float:
    """The last use of the manifest with these hex digits, in wall-clock seconds; 0 where none is noted."""
    try:
        return os.stat(f"{store.root}/models/{hex_digits}").st_mtime
    except FileNotFoundError:
        return 0.0


def mark_used(store: Store, manifest: Digest, namespace: str = "") -> None:
    """Last use is the mtime of the model's directory; eviction reads it, and whose use it was. An empty `namespace`
    leaves it the last one's that had a name.
    """
    directory = f"{store.root}/models/{manifest.hex}"
    try:
        if namespace and used_by(store, manifest.hex) != namespace:
            _note(directory, "namespace", namespace.encode())
        os.utime(directory)
    except FileNotFoundError:
        return


def _note(directory: str, name: str, data: bytes) -> None:
    """Of little worth: what a crash or a full disk loses is written again with the next use, or not at all, and no
    volume ends or begins later for it.
    """
    temporary = f"{directory}/.{name}.{secrets.token_hex(8)}"
    try:
        Path(temporary).write_bytes(data)
        os.replace(temporary, f"{directory}/{name}")
    except FileNotFoundError:
        return  # the model is gone
    except OSError as e:
        log.warning("cannot note the %s of %s: %s", name, directory, e.strerror)
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def note_sources(store: Store, manifest: Digest, came: Mapping[str, int]) -> None:
    """So many bytes of this model came from these sources, by their names, besides what came before. Never raises."""
    more = {name: count for name, count in came.items() if count > 0}
    if more:
        found = Counter(sources(store, manifest.hex))
        found.update(more)
        _note(f"{store.root}/models/{manifest.hex}", _SOURCES, msgspec.json.encode(found))


def sources(store: Store, hex_digits: str) -> dict[str, int]:
    """Bytes that pulls of the manifest with these hex digits received, whatever became of them, by the source's name.
    What was here for other models isn't among them; nothing where nothing is noted.
    """
    try:
        data = atomic.read_file(f"{store.root}/models/{hex_digits}/{_SOURCES}")
        return msgspec.json.decode(data, type=dict[str, int])
    except (OSError, msgspec.DecodeError):
        return {}


def used_by(store: Store, hex_digits: str) -> str:
    """The namespace that used a model last; empty where nobody said."""
    try:
        return atomic.read_file(f"{store.root}/models/{hex_digits}/namespace").decode(errors="replace")
    except FileNotFoundError:
        return ""


def _path(store: Store, manifest: Digest, limits: Limits, selection: str) -> Path:
    bounds = hashlib.sha256(msgspec.json.encode(limits) + selection.encode()).hexdigest()[:12]
    return store.root / "models" / manifest.hex / "verdicts" / f"{__version__}-{LAYOUT_RULES}.{RULES}-{bounds}"
