"""Pods hear of files under them that went bad, whoever found that: this driver's scrub, or a `modelmount verify`."""

from __future__ import annotations

from modelmount.cache import quarantine
from modelmount.content.store import Store
from modelmount.kube.notes import Note, Pod
from modelmount.volumes.leases import Lease
from modelmount.volumes.news import Tell

REASON = "ModelDamaged"


class Damage:
    """Tells each pod once of each thing in quarantine that it shows; anew after a restart. For one thread."""

    def __init__(self, store: Store, tell: Tell | None) -> None:
        """Without `tell` nobody is told."""
        self._store, self._tell = store, tell
        self._told: set[tuple[str, str, str]] = set()

    def look(self) -> None:
        """Tell those who don't know yet. Raises OSError."""
        if self._tell is None:
            return
        found = {
            (place.name, lease.volume_id, lease.target): lease
            for place in (self._store.root / "quarantine").iterdir()
            for lease in quarantine.showing(self._store, place)
        }
        for key in sorted(found.keys() - self._told):
            note = _note(found[key])
            if note is not None:
                self._tell(note)
        self._told = set(found)


def _note(lease: Lease) -> Note | None:
    """None for what no pod's name is known of: older leases, adopted mounts, and those made by hand."""
    if not (lease.namespace and lease.pod and lease.pod_uid):
        return None
    model = lease.reference if lease.manifest in lease.reference else f"{lease.reference} ({lease.manifest})"
    what = f"files of {model} went bad on this node's disk, and may have been read so; recreate this pod"
    return Note(Pod(lease.namespace, lease.pod, lease.pod_uid), "Warning", REASON, what)
