"""What is in a store, read from its names alone: no network, no lock, nothing written.

Others may add and remove while we look; whatever vanishes in between is left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelmount.cache.census import Census, Group
from modelmount.content import pins
from modelmount.content.pins import Pin
from modelmount.content.store import Store
from modelmount.oci.digest import Digest
from modelmount.pull import resolver, verdicts
from modelmount.snapshots import tree as trees
from modelmount.volumes.leases import Lease


@dataclass(frozen=True, slots=True)
class Entry:
    """One manifest that was pulled here, or whose pull began. `files` and `tree` are None while it isn't complete;
    `size` is then the declared one. `used_at` is wall-clock seconds.
    """

    digest: str
    references: tuple[str, ...]
    format: str
    size: int
    files: int | None
    tree: Path | None
    used_at: float
    leases: tuple[Lease, ...] = field(default=())
    pins: tuple[Pin, ...] = field(default=())
    sources: Mapping[str, int] = field(default_factory=dict)
    """Bytes that its pulls received, by who sent them; what was here for other models isn't among them."""


def sizes(census: Census, groups: Iterable[Group]) -> dict[str, tuple[int, int]]:
    """What each model takes of the disk, by its hex digits: bytes for it alone, and bytes that others need too. The
    groups are the census' own.
    """
    alone, shared = Counter[str](), Counter[str]()
    for group in groups:
        counted = alone if len(group.users) == 1 else shared
        for user in group.users:
            counted[user] += group.bytes
    return {hex_digits: (alone[hex_digits], shared[hex_digits]) for hex_digits in census.models}


def entries(store: Store, leases: Iterable[Lease]) -> list[Entry]:
    """Every model of the store, the one used last first."""
    held: defaultdict[str, list[Lease]] = defaultdict(list)
    for lease in leases:
        # An adopted mount's manifest isn't known, its tree is. What a person mounted by hand ended with its boot.
        if lease.owner == "csi" or lease.in_this_boot:
            held[lease.manifest or lease.tree].append(lease)
    pinned: defaultdict[str, list[Pin]] = defaultdict(list)
    for pin in pins.walk(store):
        if pin.stands:
            pinned[pin.manifest].append(pin)
    named: defaultdict[str, set[str]] = defaultdict(set)
    for _, known in resolver.references(store):
        named[known.manifest].add(known.reference)
    scopes: defaultdict[str, list[str]] = defaultdict(list)
    for view in trees.views(store):
        scopes[view.path.name].append(view.path.parent.name)
    found = [
        entry
        for directory in (store.root / "models").iterdir()
        if (entry := _entry(store, directory, named, held, pinned, scopes)) is not None
    ]
    return sorted(found, key=lambda entry: entry.used_at, reverse=True)


def _entry(
    store: Store,
    directory: Path,
    named: Mapping[str, set[str]],
    held: Mapping[str, list[Lease]],
    pinned: Mapping[str, list[Pin]],
    scopes: Mapping[str, list[str]],
) -> Entry | None:
    digest = Digest("sha512" if len(directory.name) == 128 else "sha256", directory.name)
    facts = verdicts.read_facts(store, digest)
    if facts is None:
        return None
    tree = _tree(store, digest, scopes)
    return Entry(
        digest=facts.digest,
        references=tuple(sorted(named.get(facts.digest, ()))),
        format=facts.format,
        size=facts.declared_bytes if tree is None else tree.bytes,
        files=None if tree is None else tree.files,
        tree=None if tree is None else tree.root,
        used_at=directory.stat().st_mtime,
        leases=(*held.get(facts.digest, ()), *(held.get(tree.id, ()) if tree is not None else ())),
        pins=tuple(pinned.get(facts.digest, ())),
        sources=verdicts.sources(store, digest.hex),
    )


def _tree(store: Store, manifest: Digest, scopes: Mapping[str, list[str]]) -> trees.Tree | None:
    """The tree that any scope has of this manifest: the same one for all of them. `scopes` are those with a view, by
    its name.
    """
    for scope in scopes.get(trees.view_key(manifest, ""), ()):
        tree = trees.find(store, scope, manifest, "")
        if tree is not None:
            return tree
    return None
