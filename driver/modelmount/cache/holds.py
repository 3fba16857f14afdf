"""Who holds what: leases, kernel mounts, pins, live pulls. Read anew under the lock of each sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from modelmount.content import pins, pulls
from modelmount.content.store import Store
from modelmount.errors import InvalidRequest
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Reference
from modelmount.pull import resolver
from modelmount.volumes import ours
from modelmount.volumes.leases import KnownLeases, Lease, Leases

Hold = Literal["mounted", "published", "pinned", "pulled"]
"""Why something stays: the kernel shows a mount of it; a lease says that it is or will be mounted; somebody pinned it;
a live pull needs it. The first of them that applies is told.
"""


@dataclass(frozen=True, slots=True)
class Holds:
    """What must stay, by what it is known by: trees by id, models by their manifest's hex digits, content by its own
    (`digests`, in any form), downloads by name (`ingests`).
    """

    trees: dict[str, Hold] = field(default_factory=dict)
    models: dict[str, Hold] = field(default_factory=dict)
    digests: set[str] = field(default_factory=set)
    ingests: set[str] = field(default_factory=set)
    namespaces: dict[str, set[str]] = field(default_factory=dict)
    """Which namespaces hold a model, by its hex digits."""


def read(store: Store, pinned_references: Sequence[str] = (), known: KnownLeases | None = None) -> Holds:
    """Look now. Under the exclusive store lock the answer stays true until that is released.

    A lease holds whether or not this namespace sees its mount, and one of the command line until its boot is over: its
    mount may be in another namespace. `pinned_references` are the configuration's: each holds what it means here.
    Raises OSError where something can't be read: then nothing may go.
    """
    holds = Holds()
    for tree in ours.trees_in_use(store.root):
        holds.trees.setdefault(tree.name, "mounted")
    for lease in Leases(store).walk_again({} if known is None else known):
        _of_lease(lease, holds)
    for pin in pins.walk(store):
        if pin.stands:
            holds.models.setdefault(_hex(pin.manifest), "pinned")
    if pinned_references:
        wanted = {str(Reference.parse(text)) for text in pinned_references}
        for _, ref in resolver.references(store):
            if ref.reference in wanted:
                holds.models.setdefault(_hex(ref.manifest), "pinned")
    for _, claims in pulls.live_records(store):
        for claim in claims:
            if claim.form == pulls.MANIFEST:
                holds.models.setdefault(claim.hex, "pulled")
                if claim.namespace:
                    holds.namespaces.setdefault(claim.hex, set()).add(claim.namespace)
            holds.digests.add(claim.hex)
            holds.ingests.add(claim.ingest)
    return holds


def _of_lease(lease: Lease, holds: Holds) -> None:
    if lease.owner == "cli" and not lease.in_this_boot:
        return  # what a person mounted by hand ended with its boot
    if lease.tree:
        holds.trees.setdefault(lease.tree, "published")
    if lease.manifest:
        holds.models.setdefault(_hex(lease.manifest), "published")
        if lease.namespace:
            holds.namespaces.setdefault(_hex(lease.manifest), set()).add(lease.namespace)


def _hex(digest: str) -> str:
    try:
        return Digest.parse(digest).hex
    except InvalidRequest:
        return digest  # no digest, and so no model's name
