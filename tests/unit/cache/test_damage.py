"""Pods whose files went bad are told, once each, whoever found it."""

from __future__ import annotations

import threading

import msgspec
import pytest

from modelmount.cache import quarantine
from modelmount.cache.census import Reader
from modelmount.cache.damage import Damage
from modelmount.cache.scrub import Scrubber
from modelmount.config import Cache
from modelmount.kube.notes import Note, Pod
from modelmount.oci.digest import Digest
from modelmount.system import host, mount
from modelmount.volumes.leases import Lease

from .shelf import Made, Shelf, content

POD = Pod("prod", "llm-0", "pod")


def shown(shelf: Shelf, made: Made, volume: str, **said: object) -> Lease:
    """A publication of the model in this boot, as after a mount."""
    identity = mount.identity(made.tree.root)
    lease = msgspec.structs.replace(
        shelf.lease(made, volume),
        boot_id=host.boot_id(),
        device=identity.device,
        inode=identity.inode,
        **{"namespace": "prod", "pod": "llm-0", **said},
    )
    shelf.leases.write(lease)
    return lease


def blob(made: Made) -> str:
    return f"blobs/sha256/{Digest.of(made.files['a']).hex}"


@pytest.fixture
def made(shelf: Shelf) -> Made:
    return shelf.put("model", {"a": content("a", 50_000)})


def test_each_pod_that_shows_it_is_told_once(shelf: Shelf, made: Made) -> None:
    notes: list[Note] = []
    damage = Damage(shelf.store, notes.append)
    first = shown(shelf, made, "one")
    shown(shelf, made, "two", pod="llm-1", pod_uid="other")
    shown(shelf, made, "nobody-knows-whose", pod="")
    shelf.lease(shelf.put("good", {"b": content("b", 1000)}), "three")
    damage.look()
    assert notes == []
    assert quarantine.put(shelf.store, blob(made), "it has other bytes") is not None  # by another process, say
    damage.look()
    damage.look()
    assert {note.pod for note in notes} == {POD, Pod("prod", "llm-1", "other")}
    assert len(notes) == 2
    assert {(note.kind, note.reason) for note in notes} == {("Warning", "ModelDamaged")}
    assert all(f"files of {first.reference} ({first.manifest}) went bad" in note.message for note in notes)
    Damage(shelf.store, notes.append).look()  # the driver was started anew
    assert len(notes) == 4
    Damage(shelf.store, None).look()


def test_the_background_scrub_tells_at_once(shelf: Shelf, made: Made) -> None:
    shown(shelf, made, "one")
    path = shelf.store.root / blob(made)
    path.chmod(0o600)
    path.write_bytes(b"a bit of rot")
    notes: list[Note] = []
    told = threading.Event()

    def tell(note: Note) -> None:
        notes.append(note)
        told.set()

    with Scrubber(shelf.store, Reader(shelf.store), Cache, tell=tell, first_seconds=0):
        assert told.wait(60)
    assert [note.pod for note in notes] == [POD]
