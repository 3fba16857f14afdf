"""Making and ending one publication: its lease, its directory, its mount. Every step here is short and local.

Under the target's lock: look, directory, lease (durable), mount, verify; and back: unmount, rmdir, lease. A kill
between two steps leaves an empty directory or a lease without a mount, which the next publish completes and an
unpublish ends; never a mount without a lease.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelmount.content.diskerrors import translated
from modelmount.content.store import Store
from modelmount.errors import Internal, InvalidRequest, ModelMountError, Pending, Precondition, Unavailable
from modelmount.kube.notes import Pod
from modelmount.pull import verdicts
from modelmount.pull.resolver import Model
from modelmount.snapshots import tree as trees
from modelmount.snapshots.tree import Tree
from modelmount.system import atomic, host, mount
from modelmount.system.lock import Held, LockCancelled, LockTimeout
from modelmount.system.target import TargetHandle, TargetRoots
from modelmount.volumes import ours, standing
from modelmount.volumes.attempts import Attempt, Attempts
from modelmount.volumes.leases import Lease, Leases, Owner, target_lock_name
from modelmount.volumes.standing import Standing
from modelmount.volumes.volume import VolumeSpec

log = logging.getLogger(__name__)

LOCK_SECONDS = 30.0
"""How long an unpublish waits for a target's lock: nobody holds one longer than a mount and a few fsyncs take."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a publish asks for, read and decided. `attributes` are the significant ones; `flags` what the mount gets on
    top of `ro`.
    """

    volume_id: str
    path: str
    attributes: Mapping[str, str]
    spec: VolumeSpec
    pod_uid: str
    flags: frozenset[str]
    pod: Pod | None = None
    namespace: str = ""


class Publications:
    """Publications below some target roots. Stateless but for the attempts; callable from many threads."""

    def __init__(self, store: Store, targets: TargetRoots, attempts: Attempts, *, owner: Owner) -> None:
        """`owner` is written into new leases."""
        self._store, self._targets, self._attempts, self._owner = store, targets, attempts, owner
        self._leases = Leases(store)

    def look(self, volume_id: str, path: str) -> Standing:
        """What stands now, without a lock. Raises Precondition for a symbolic link on the way to `path`, Internal."""
        with _on_this_node(path):
            return standing.look(self._leases, self._targets, volume_id, path)

    def check(self, wanted: Wanted, attempt: Attempt) -> Standing:
        """What stands, once it is sure that nothing is in the way of what is wanted: before anybody is asked for it.

        Under the target's lock, because these verdicts are final: Conflict for a lease with other attributes,
        Precondition where no mount could be made; Unavailable instead of that where a lease stands. Raises Pending or
        Cancelled when the attempt is over or the target is busy.
        """
        with self._locked(wanted.path, attempt):
            attempt.check()
            now = self.look(wanted.volume_id, wanted.path)
            standing.require_same(now.binding, wanted.attributes, wanted.spec)
            if not now.live:
                with _keeping(now.binding), _on_this_node(wanted.path):
                    self._refuse_obstacles(now)
            return now

    def require_parent(self, path: str) -> None:
        """Raise Precondition where the directory that is to hold the target is missing: before anything is pulled."""
        parent = str(Path(path).parent)
        try:
            missing = self._targets.state(parent).kind == "missing"
        except InvalidRequest:
            return  # the parent is the root itself; opening the target says whether that is missing
        if missing:
            raise Precondition(
                f"the directory above target {path!r} does not exist; the kubelet makes it before it publishes"
            )

    def make(self, wanted: Wanted, model: Model | None, attempt: Attempt) -> Lease | None:
        """Show the model at the target, or find that it is shown already; None when its tree isn't in the store.

        A lease that stands decides what is shown, else `model`. Raises Pending or Cancelled when the attempt is over or
        the target is busy, Conflict for a lease with other attributes, Precondition for obstacles, NoSpace, Internal.
        What goes wrong with a lease that stood before is Unavailable, and it stays; else nothing is left behind.
        """
        with self._locked(wanted.path, attempt):
            attempt.check()
            now = self.look(wanted.volume_id, wanted.path)
            standing.require_same(now.binding, wanted.attributes, wanted.spec)
            if now.live:
                return now.lease
            with _keeping(now.binding), _on_this_node(wanted.path):
                self._make_way(now)
                return self._lease_and_mount(wanted, model, now, attempt)

    def end(self, volume_id: str, path: str) -> None:
        """Unmount, remove the directory, forget the lease; done already is success. Publishes under way on this target
        give up.

        Without a lease of this volume it acts only on a tree of ours that nobody else recorded, and on an empty
        directory. Raises Precondition where files or somebody else's mount are in the way, Unavailable, Internal.
        """
        with self._locked(path, None):
            self._attempts.overtake(path)
            now = self.look(volume_id, path)
            with _on_this_node(path):
                if now.lease is None:
                    self._end_unrecorded(now, volume_id)
                else:
                    self._end_recorded(now, now.lease)

    # -- making

    def _refuse_obstacles(self, now: Standing) -> None:
        if now.state.kind == "mount":
            self._refuse_mount(now)
        elif now.state.kind != "missing":
            self._targets.open_target(now.path, create=False).close()

    def _refuse_mount(self, now: Standing) -> None:
        """A mount is in the way, unless it is the dead one of this publication."""
        if now.binding is None or not now.is_dead_mount:
            raise Precondition(now.obstacle())

    def _make_way(self, now: Standing) -> None:
        if now.state.kind != "mount":
            return
        self._refuse_mount(now)
        log.warning("the mount at %s is dead; it is made again", now.path)
        self._targets.unmount_target(now.path)

    def _lease_and_mount(self, wanted: Wanted, model: Model | None, now: Standing, attempt: Attempt) -> Lease | None:
        with self._store_shared(attempt):
            decided = self._decide(wanted, model, now)
            if decided is None:
                return None
            lease, tree = decided
            if not lease.adopted:
                verdicts.mark_used(self._store, lease.model.manifest, lease.namespace)
            attached = False
            try:
                # The directory first: making it right after the lease's fsync would wait for the journal.
                with self._targets.open_target(lease.target) as handle:
                    atomic.failpoint("volumes.publish.before_lease")
                    # A power cut takes the mount along, so the lease need be durable by the answer, not by the mount.
                    with self._leases.writing(lease):
                        atomic.failpoint("volumes.publish.before_mount")
                        self._attach(lease, tree, handle, wanted.flags)
                        attached = True
                        atomic.failpoint("volumes.publish.after_mount")
                        shown = handle.state()
                if not Standing(lease.target, lease, shown).live:
                    raise Internal(f"what is mounted at {wanted.path!r} is not the model; look at the node's mounts")
            except BaseException as e:
                self._undo(lease, now, e, attached=attached)
                raise
            return lease

    def _decide(self, wanted: Wanted, model: Model | None, now: Standing) -> tuple[Lease, Tree] | None:
        """The lease to write and the tree it shows; None when that isn't here. The caller holds the shared store lock.

        A lease that stands decides: its own tree while that is there, whatever the rules for linking say by now, else
        its manifest. An adopted one knows only its tree, so that after that the model decides.
        """
        lease = now.binding
        if lease is not None and (model is None or not lease.adopted):
            tree = trees.load(self._store, lease.tree) if lease.tree else None
            if tree is None and not lease.adopted:
                tree = self._find(lease.model, wanted)
            return (_located(lease, tree), tree) if tree is not None else None
        tree = self._find(model, wanted) if model is not None else None
        if model is None or tree is None:
            return None
        fresh = Lease(
            volume_id=wanted.volume_id,
            target=wanted.path,
            attributes=dict(wanted.attributes),
            reference=str(wanted.spec.reference),
            registry=model.repository.registry,
            repository=model.repository.repository,
            manifest=str(model.manifest),
            pod_uid=wanted.pod_uid,
            namespace=wanted.namespace,
            pod="" if wanted.pod is None else wanted.pod.name,
            owner=self._owner,
            made_directory=now.state.kind == "missing",
        )
        return _located(fresh, tree), tree

    def _find(self, model: Model, wanted: Wanted) -> Tree | None:
        return trees.find(self._store, model.repository.scope, model.manifest, wanted.spec.selection.key)

    def _attach(self, lease: Lease, tree: Tree, target: TargetHandle, flags: frozenset[str]) -> None:
        """Mount, or raise and have no mount."""
        if target.is_mount:
            raise Precondition(Standing(lease.target, None, target.state()).obstacle())
        try:
            mount.clone_readonly(tree.root, target.fd, flags)
        except OSError as e:
            raise _mount_error(e, lease.target) from e

    def _shows(self, lease: Lease) -> bool:
        return Standing(lease.target, lease, self._targets.state(lease.target)).live

    def _undo(self, lease: Lease, before: Standing, because: BaseException, *, attached: bool) -> None:
        """Take back what was done for `lease`. It stays when it stood before, or when its mount can't be removed."""
        path = lease.target
        try:
            if attached:
                if not self._shows(lease):
                    raise Unavailable(f"something was mounted over the model at {path!r}")
                self._targets.unmount_target(path)
            if before.state.kind == "missing" and self._targets.state(path).kind == "directory":
                self._targets.remove_target(path)
            if before.binding is None:
                self._leases.remove(lease.volume_id, path)
        except (ModelMountError, OSError) as e:
            log.exception("could not take back what was done at %s", path)
            raise Unavailable(f"{because}; what is left at {path!r} goes with the next try or the unpublish") from e

    # -- ending

    def _end_recorded(self, now: Standing, lease: Lease) -> None:
        if not now.ended:
            if now.state.kind == "mount" and not (now.live or now.is_dead_mount or self._shows_ours(now.path)):
                raise Precondition(now.obstacle())
            self._take_down(now.path, remove=lease.owner == "csi" or lease.made_directory)
        if not lease.adopted:
            verdicts.mark_used(self._store, lease.model.manifest, lease.namespace)  # it was until now
        self._leases.remove(lease.volume_id, lease.target)

    def _end_unrecorded(self, now: Standing, volume_id: str) -> None:
        match now.state.kind:
            case "missing":
                return
            case "mount" if now.rival is None and self._shows_ours(now.path):
                log.warning("unmounting a tree of ours that no lease records from %s", now.path)
                self._take_down(now.path, remove=True)
                return
            case "directory":
                try:
                    self._targets.remove_target(now.path)
                except Precondition as e:
                    log.warning("volume %s is not published, and its target stays: %s", volume_id, e)
                return
        log.warning("volume %s is not published at %s; what is there is left alone", volume_id, now.path)

    def _take_down(self, path: str, *, remove: bool) -> None:
        atomic.failpoint("volumes.unpublish.before_unmount")
        self._targets.unmount_target(path)
        atomic.failpoint("volumes.unpublish.before_rmdir")
        if remove:
            self._targets.remove_target(path)

    def _shows_ours(self, path: str) -> bool:
        return path in ours.tree_mounts(self._store.root)

    # -- locks

    @contextmanager
    def _locked(self, path: str, attempt: Attempt | None) -> Iterator[None]:
        """Hold the target's lock."""
        lock = self._store.lock(target_lock_name(path))
        try:
            with _on_this_node(path):
                if attempt is None:
                    held = lock.acquire(timeout=LOCK_SECONDS)
                else:
                    held = lock.acquire(timeout=attempt.patience_seconds, cancelled=attempt.is_over)
        except LockTimeout as e:
            busy = f"another call is working on target {path!r}; try again"
            raise (Unavailable(busy) if attempt is None else Pending(busy)) from e
        except LockCancelled as e:
            raise _reason(attempt) from e
        with held:
            yield

    def _store_shared(self, attempt: Attempt) -> Held:
        try:
            return self._store.locks.shared(timeout=attempt.patience_seconds, cancelled=attempt.is_over)
        except LockTimeout as e:
            raise Pending("the store is busy with a sweep; the volume is mounted right after it") from e
        except LockCancelled as e:
            raise _reason(attempt) from e


def _located(lease: Lease, tree: Tree) -> Lease:
    """The lease as of a mount of this tree, here and now."""
    root = mount.identity(tree.root)
    return msgspec.structs.replace(
        lease,
        tree=tree.id,
        bytes=tree.bytes,
        files=tree.files,
        boot_id=host.boot_id(),
        mount_namespace=host.mount_namespace(),
        device=root.device,
        inode=root.inode,
    )


def _reason(attempt: Attempt | None) -> ModelMountError:
    try:
        if attempt is not None:
            attempt.check()
    except ModelMountError as e:
        return e
    return Pending("the call was given up; try again")


@contextmanager
def _keeping(lease: Lease | None) -> Iterator[None]:
    """A publication that stood before stays one: the kubelet must not take an obstacle to its mount for its end."""
    try:
        yield
    except (Precondition, Internal) as e:
        if lease is None:
            raise
        raise Unavailable(f"the model's mount is gone and can't be made again yet: {e}") from e


def _on_this_node(path: str) -> AbstractContextManager[None]:
    return translated(f"record the volume at {path!r}")


def _mount_error(error: OSError, path: str) -> ModelMountError:
    match error.errno:
        case errno.ENOENT | errno.ESTALE:
            return Unavailable(
                f"the model's files were moved away just before they were mounted at {path!r}; try again"
            )
        case errno.ENOSPC:
            return Unavailable(f"no more mounts are allowed on this node, so none was made at {path!r}; fs.mount-max")
        case errno.EPERM | errno.EACCES:
            text = "the driver may not mount: it needs CAP_SYS_ADMIN and a privileged container"
        case _:
            text = f"{error.strerror}; look at the mounts on the node"
    return Internal(f"cannot mount the model at {path!r}: {text}")
