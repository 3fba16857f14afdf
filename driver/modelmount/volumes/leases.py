"""Leases: `volumes/<sha256(volume id)>-<sha256(target)>.json`, one per publication, there before its mount
and removed after it.

A lease says what a volume shows and holds its tree; it answers a kubelet that publishes everything again after a
restart or a reboot, without any network. Callers hold the target's lock; `write` is called under the shared store lock,
so that a tree can't go between look and lease.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from modelmount.content.store import Store
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.pull.resolver import Model
from modelmount.system import atomic, host
from modelmount.system.lock import LockTimeout

Owner = Literal["csi", "cli"]
"""Whose publication it is: a pod's, or one made by hand on the command line."""

UNSETTLED_SECONDS = 600
"""What was written this long ago is on the disk: the kernel writes back after 30 s (vm.dirty_expire_centisecs)."""

NAMELESS = "adopted-"
"""Begins the id in the lease of a mount that neither a lease nor the kubelet has a name for."""

log = logging.getLogger(__name__)


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """One publication. `device` and `inode` are the tree root's and are believed only in the boot that wrote them.

    `target` is the one spelling of the path that `TargetRoots.locate` gives; `attributes` are the significant ones.
    """

    volume_id: str
    target: str
    attributes: dict[str, str]
    reference: str
    registry: str
    repository: str
    manifest: str
    pod_uid: str
    namespace: str = ""
    """The pod's; empty where nobody says."""
    pod: str = ""
    """Its name, likewise."""
    owner: Owner
    tree: str = ""
    bytes: int = 0
    files: int = 0
    boot_id: str = ""
    mount_namespace: int = 0
    device: int = 0
    inode: int = 0
    made_directory: bool = False
    """The target didn't exist before. CSI wants it removed either way; what a person made stays."""
    adopted: bool = False
    """Written for a mount that was found without a lease: what it shows is known, what was asked for isn't."""
    written_at: float = 0.0

    @property
    def model(self) -> Model:
        """The pinned model; not for adopted leases."""
        return Model(Repository(self.registry, self.repository), Digest.parse(self.manifest))

    @property
    def is_nameless(self) -> bool:
        """Whether nobody knows whose volume this is: then it is that of whoever names the target."""
        return self.adopted and self.volume_id.startswith(NAMELESS)

    @property
    def in_this_boot(self) -> bool:
        """Whether device and inode mean anything."""
        return self.boot_id == host.boot_id()


KnownLeases = dict[str, tuple[tuple[int, int], Lease | None]]
"""What the last look saw of the leases, to spare the next one."""


class Leases:
    """The leases of one store. Stateless; every call reads the disk, and raises OSError where that fails."""

    def __init__(self, store: Store) -> None:
        """Reads nothing."""
        self._store = store
        self._volumes = str(store.root / "volumes")  # joined as text below: this is on the path of every publish

    def read(self, volume_id: str, target: str) -> Lease | None:
        """The publication's lease. An unreadable one is treated as absent: the mount, if any, is then adopted."""
        return _read(self._path(volume_id, target))

    @contextmanager
    def writing(self, lease: Lease) -> Iterator[None]:
        """Show the lease to whoever looks at the beginning of the block, and make it durable by the end, while the disk
        and the block work side by side.

        After an OSError it may or may not stand. A new one is torn at worst if the power goes meanwhile, and counts as
        absent: nobody was told of it yet. One that stood keeps standing, as it was or as it is to be, and is durable
        before the block begins.
        """
        path = self._path(lease.volume_id, lease.target)
        data = msgspec.json.encode(msgspec.structs.replace(lease, written_at=time.time()))
        atomic.failpoint("volumes.lease.before_write")
        if os.path.lexists(path):
            atomic.write_file(path, data)
            yield
        else:
            with atomic.creating_file(path, data):
                yield
        atomic.failpoint("volumes.lease.after_write")

    def write(self, lease: Lease) -> None:
        """Make the lease durable, like `writing`."""
        with self.writing(lease):
            pass

    def settle(self, lease: Lease) -> None:
        """Make a lease durable that a killed process may have shown and not yet synced, unless it is so old that the
        disk has it by now. Raises OSError.
        """
        if abs(time.time() - lease.written_at) < UNSETTLED_SECONDS:
            atomic.settle_file(self._path(lease.volume_id, lease.target))

    def remove(self, volume_id: str, target: str) -> None:
        """Forget the publication, durably."""
        path = self._path(volume_id, target)
        atomic.failpoint("volumes.lease.before_remove")
        try:
            os.unlink(path)
            atomic.fsync_directory(self._volumes)
        except FileNotFoundError:
            return

    def clear_torn(self) -> int:
        """Remove what can't be read and counts as absent anyway; how many there were. It takes their targets' locks
        itself, and leaves what somebody works on: that is written anew.
        """
        return sum(
            self._clear(path) for path in self._paths("[0-9a-f]*.json") if path.is_file() and _read(path) is None
        )

    def _clear(self, torn: Path) -> bool:
        try:
            held = self._store.lock(_lock_name(torn.stem.rpartition("-")[2])).acquire(timeout=0)
        except LockTimeout:
            return False
        with held:
            if not torn.exists() or _read(torn) is not None:
                return False
            torn.unlink()
            return True

    def of_volume(self, volume_id: str) -> list[Lease]:
        """All publications of one volume on this node."""
        return self._matching(f"{_hash(volume_id)}-*.json")

    def of_target(self, target: str) -> list[Lease]:
        """Whatever volume is recorded at `target`; a scan, for rare paths only."""
        return self._matching(f"*-{_hash(target)}.json")

    def tree_root(self, lease: Lease) -> Path:
        """Where the lease's tree lies, unless it was moved to quarantine."""
        return self._store.root / "trees" / lease.tree / "root"

    def walk(self) -> Iterator[Lease]:
        """Every readable lease."""
        yield from self._matching("[0-9a-f]*.json")

    def walk_again(self, known: KnownLeases) -> list[Lease]:
        """Like `walk`, for who does it often: `known` is what the last walk left there, and only what changed since is
        read.
        """
        found: KnownLeases = {}
        with os.scandir(self._volumes) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.name.endswith(".json"):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                # A lease is replaced by a rename, never written in place.
                mark = (status.st_ino, status.st_mtime_ns)
                before = known.get(entry.name)
                found[entry.name] = before if before and before[0] == mark else (mark, _read(Path(entry.path)))
        known.clear()
        known.update(found)
        return [lease for _, lease in found.values() if lease is not None]

    def _matching(self, pattern: str) -> list[Lease]:
        return [lease for path in self._paths(pattern) if (lease := _read(path)) is not None]

    def _paths(self, pattern: str) -> list[Path]:
        return sorted((self._store.root / "volumes").glob(pattern))

    def _path(self, volume_id: str, target: str) -> str:
        return f"{self._volumes}/{_hash(volume_id)}-{_hash(target)}.json"


def target_lock_name(target: str) -> str:
    """Name of the lock that orders everything done to one target; hold one at a time.

    Targets come and go for ever, and making a file costs more than all the rest of taking a lock (0.3 to 0.9 ms on a
    busy ext4). So 256 files serve them all and stay; two targets that share one meet for milliseconds at most.
    `prepare_locks` makes them.
    """
    return _lock_name(_hash(target))


def _lock_name(target_hash: str) -> str:
    return f"target-{target_hash[:2]}"


def prepare_locks(store: Store) -> None:
    """Make the files of `target_lock_name`, so that no publish has to. Raises OSError."""
    for number in range(256):
        store.lock(f"target-{number:02x}").make()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _read(path: str | Path) -> Lease | None:
    try:
        return msgspec.json.decode(atomic.read_file(path), type=Lease)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as e:
        log.error("the lease %s is unreadable and counts as absent: %s", path, e)
        return None
