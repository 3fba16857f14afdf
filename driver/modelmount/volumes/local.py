"""Publications by hand, on any Linux machine: `modelmount mount REFERENCE DIRECTORY` and `modelmount umount DIRECTORY`.

The same code as for pods, with the volume's id derived from the target. Such a publication ends with its unmount, or
with the boot; its directory stays when it was there before.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelmount.config import Settings
from modelmount.content.store import Store
from modelmount.errors import InvalidRequest, NotFound, Pending
from modelmount.volumes.leases import Lease, Leases
from modelmount.volumes.ports import FindsCredentials, Pulls, Resolves
from modelmount.volumes.publisher import Publisher


@dataclass(frozen=True, slots=True)
class _Request:
    volume_id: str
    target_path: str
    attributes: Mapping[str, str]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    mount_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Call:
    cancelled: threading.Event
    deadline: float | None = None


class LocalMounts:
    """Mounts and unmounts for the person at the keyboard; beside a running driver on the same store, too."""

    def __init__(
        self, store: Store, resolver: Resolves, puller: Pulls, credentials: FindsCredentials, settings: Settings
    ) -> None:
        """Nothing is looked at yet."""
        self._store, self._settings = store, settings
        self._leases = Leases(store)
        self._publisher = Publisher(store, resolver, puller, credentials, settings, owner="cli")

    def mount(
        self,
        attributes: Mapping[str, str],
        directory: Path,
        *,
        secrets: Mapping[str, str] | None = None,
        cancelled: threading.Event | None = None,
        waiting: Callable[[str], None] | None = None,
    ) -> Lease:
        """Show the model at `directory` and return its lease. `attributes` and `secrets` as of a volume: `model`,
        `pullPolicy`; `.dockerconfigjson`.

        Waits for the pull without a limit; `waiting` gets its sentence of progress now and then, and `cancelled` ends
        the wait with Cancelled. Raises InvalidRequest for directories that belong to the kubelet or to the store, and
        everything that `Publisher.publish` does.
        """
        target = self._target(directory)
        call = _Call(cancelled or threading.Event())
        request = _Request(_volume_id(target), target, attributes, secrets or {})
        while True:
            try:
                self._publisher.publish(request, call)
                break
            except Pending as e:
                if waiting is not None:
                    waiting(e.message)
        lease = self._leases.read(request.volume_id, target)
        if lease is None:
            raise NotFound(f"{target} was unmounted again right away")
        return lease

    def unmount(self, directory: Path) -> None:
        """Take the model off `directory`. Raises NotFound where none was mounted by hand, and what
        `Publisher.unpublish` does.
        """
        target = os.path.realpath(directory)
        if self._leases.read(_volume_id(target), target) is None:
            raise NotFound(f"no model was mounted on {target} with `modelmount mount`")
        self._publisher.unpublish(_volume_id(target), target)

    def _target(self, directory: Path) -> str:
        target = os.path.realpath(directory)
        kubelet = (*self._settings.publish_roots, Path(self._settings.kubelet_root))
        for owner, roots in (("the kubelet", kubelet), ("modelmount's store", (self._store.root,))):
            for root in roots:
                if Path(target).is_relative_to(os.path.realpath(root)):
                    raise InvalidRequest(f"{target} lies in {root}, which belongs to {owner}; choose another directory")
        return target


def _volume_id(target: str) -> str:
    return f"cli-{hashlib.sha256(os.fsencode(target)).hexdigest()[:40]}"
