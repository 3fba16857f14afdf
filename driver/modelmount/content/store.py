"""The store's root: its names, presence and scopes. The only file that knows where content lies.

    version  blobs/  unpacked/  ingest/  scopes/  trees/  views/  refs/  models/  volumes/  pulls/  backoff/  locks/
    trash/  quarantine/

Any number of threads and processes may use one root at the same time; `flock` orders them. Callers that link or record
what they found present hold `locks.shared()` from the look until the record stands, so that a sweep never falls in
between.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelmount.content import scopes, versions
from modelmount.content.diskerrors import disk_error, is_full, translated
from modelmount.errors import BadArtifact, Internal, Precondition
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import MAX_DOCUMENT_BYTES
from modelmount.system import atomic
from modelmount.system.lock import ByteLocks, Counts, FileLock, LockTimeout, StoreLock

MIGRATION_SECONDS = 5.0
"""How long the command line waits for another process that migrates the store, or for a driver that ends."""
ROOMS = (
    "blobs/sha256",
    "blobs/sha512",
    "unpacked",
    "ingest",
    "scopes",
    "trees",
    "views",
    "refs",
    "models",
    "volumes",
    "pulls",
    "backoff",
    "locks",
    "trash",
    "quarantine",
)


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A small layer whose archive was verified. `make` makes its directory; it need not sync anything."""

    digest: Digest
    rules: int
    make: Callable[[Path], None]


class Store:
    """One root directory. Cheap to construct; holds no state that isn't on disk."""

    def __init__(self, root: Path, *, as_it_is: bool = False, to_look: bool = False) -> None:
        """Open the store at `root`, or make one (0700) where there is nothing or an empty directory. One of an older
        layout version is migrated first, if no driver uses it; `as_it_is` leaves that to `migrate`, and until then only
        its locks are of use. With `to_look` nothing is made, changed or migrated: there has to be one.

        Raises Precondition for a layout version that isn't ours, for a directory with somebody's files in it, and where
        it can't be used; of the first two nothing has changed. Raises NoSpace where there is no room for it.
        """
        self.root = root
        self._text = str(root)  # paths on the way of every publish are joined as text: pathlib takes ten times as long
        self.locks = StoreLock(root / "locks")
        with self._opening():
            version = _check(root)
            if to_look:
                versions.require(root, version)
                return
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            root.chmod(0o700)
            self._make_rooms()
            if version is None:
                versions.write(root)
        if not as_it_is and version is not None and version < versions.VERSION:
            self._migrate_alone()

    def migrate(self) -> None:
        """Bring a store of an older layout version to ours, in place; mounts stay. The caller holds the `driver` lock.
        Raises NoSpace, Precondition.
        """
        with self._opening():
            if versions.found(self.root) != versions.VERSION:
                with self.locks.exclusive():
                    versions.migrate(self.root)

    def _migrate_alone(self) -> None:
        try:
            with self.lock("driver").acquire(timeout=MIGRATION_SECONDS):
                self.migrate()
        except LockTimeout as e:
            if versions.found(self.root) == versions.VERSION:
                return  # by a driver that has just started
            raise Precondition(
                f"the store {self.root} has an older layout version, and the driver of that version still uses it; "
                "upgrade the driver, which migrates the store when it starts"
            ) from e

    @contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            if is_full(e):
                raise disk_error(e, f"open the store {self.root}") from e
            raise Precondition(
                f"the store {self.root} cannot be used: {e.strerror}; run as root or choose another directory with "
                "--root"
            ) from e

    def _make_rooms(self) -> None:
        missing = [self.root / room for room in ROOMS if not (self.root / room).is_dir()]
        for room in missing:
            room.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in {room.parent for room in missing}:
            atomic.fsync_directory(directory)
        if missing:
            atomic.fsync_directory(self.root)
            atomic.fsync_directory(self.root.parent)

    # -- names

    def blob_path(self, digest: Digest) -> Path:
        """Where the verified raw form of `digest` lies, if it does."""
        return Path(self.blob_name(digest))

    def blob_name(self, digest: Digest) -> str:
        """The same as text, for who has thousands of them."""
        return f"{self._text}/blobs/{digest.algorithm}/{digest.hex}"

    def unpacked_path(self, digest: Digest, rules: int) -> Path:
        """Where the unpacked form lies: `files/<number>` and `index.json`."""
        return self.root / "unpacked" / digest.hex / str(rules)

    def lock(self, name: str) -> FileLock:
        """The lock file `name` in `locks/`: `driver`, `target-<hash>`, `ingest-<…>`, `pull-<id>`, `space`."""
        return FileLock(f"{self._text}/locks/{name}")

    def small_locks(self) -> ByteLocks:
        """The locks of small blobs, by the same names, of which each costs next to nothing. Raises OSError."""
        return ByteLocks(f"{self._text}/locks/smalls")

    def connection_counts(self) -> Counts:
        """What each process on this root says of its connections."""
        return Counts(f"{self._text}/locks/connections")

    # -- presence and scopes

    def has_scope(self, digest: Digest, scope: str) -> bool:
        """Whether this scope had the bytes of `digest` (downloaded or proved), present or not."""
        return os.path.exists(f"{self._text}/scopes/{digest.hex}/{scope}")

    def has_blob(self, digest: Digest, scope: str) -> bool:
        """Whether the raw form is present *and* available to this scope."""
        return os.path.exists(self.blob_name(digest)) and self.has_scope(digest, scope)

    def unpacked_rules(self, digest: Digest, scope: str, among: Container[int] | None = None) -> int | None:
        """The newest rules version, of those in `among`, whose unpacked form is present and available to this scope."""
        if not self.has_scope(digest, scope):
            return None
        found = self._unpacked_versions(digest.hex)
        return max((version for version in found if among is None or version in among), default=None)

    def holds(self, hex_digits: str, scope: str, *, unpacked: bool) -> bool:
        """`has_blob`, or whether any unpacked form is there for this scope, by the digest's hex digits alone."""
        if not os.path.isfile(f"{self._text}/scopes/{hex_digits}/{scope}"):
            return False
        if unpacked:
            return bool(self._unpacked_versions(hex_digits))
        return any(os.path.isfile(f"{self._text}/blobs/{each}/{hex_digits}") for each in ("sha256", "sha512"))

    def _unpacked_versions(self, hex_digits: str) -> list[int]:
        directory = self.root / "unpacked" / hex_digits
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return []
        return [int(n) for n in names if n.isascii() and n.isdigit() and (directory / n / "index.json").exists()]

    def admit(self, digest: Digest, scope: str) -> None:
        """Record durably that `scope` had the bytes of `digest`. Call only after they were verified from that scope's
        own source.
        """
        scopes.record(self._text, digest.hex, scope)
        # Also where the record was there: whoever wrote it may have died before it was durable.
        scopes.sync(self._text, digest.hex)

    # -- small documents
    # ------------------------------------------------------------------------------------------------------------------

    def read_document(self, digest: Digest) -> bytes:
        """The bytes of a small present blob (manifest, config), verified once more.

        Raises BadArtifact for a blob that is too large to be one (a reference may name any digest), Internal when it is
        unreadable or damaged.
        """
        try:
            with self.blob_path(digest).open("rb") as file:
                data = file.read(MAX_DOCUMENT_BYTES + 1)
        except OSError as e:
            raise Internal(f"cannot read {digest} from the store: {e.strerror}; run `modelmount doctor`") from e
        if len(data) > MAX_DOCUMENT_BYTES:
            raise BadArtifact(
                f"{digest} is neither a manifest nor a config: it has more than {MAX_DOCUMENT_BYTES} bytes; name a "
                "model by its manifest's digest"
            )
        if not _is(data, digest):
            raise Internal(f"{digest} is damaged in the store; look at the node's disk and run `modelmount doctor`")
        return data

    def put_document(self, data: bytes, digest: Digest, scope: str) -> None:
        """Commit a small blob that is in memory and was already verified: same order of writing as any ingest. Raises
        NoSpace, Internal.
        """
        if not _is(data, digest):
            raise Internal(f"refusing to store bytes that are not {digest}")
        with self.locks.shared(), translated(f"store {digest}"):
            target = self.blob_path(digest)
            if target.exists():
                self.admit(digest, scope)
                atomic.fsync_directory(target.parent)
                return
            temporary = atomic.temporary_beside(target)
            try:
                _write_blob(temporary, data)
                self.commit_blob(temporary, digest, scope)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def put_group(self, blobs: Mapping[Digest, bytes], scope: str, layers: Sequence[NewLayer] = ()) -> None:
        """`put_document` for many at once, at the price of one, and of small layers too: a sync of the file system
        covers all of them and their scope records, one fsync their names, or another sync where those lie in a
        directory each. Raises like it, and what makes the layers; the ones that have their names by then keep them.
        """
        if len(blobs) + len(layers) < 2 or not atomic.syncs_groups():
            for digest, data in blobs.items():
                self.put_document(data, digest, scope)
            for layer in layers:
                self._put_layer(layer, scope)
            return
        if wrong := next((digest for digest, data in blobs.items() if not _is(data, digest)), None):
            raise Internal(f"refusing to store bytes that are not {wrong}")
        made: dict[str | Path, str | Path] = {}  # of blobs as text, for there are thousands
        mark = secrets.token_hex(8)
        record: str | None = None
        try:
            with (
                self.locks.shared(),
                translated(f"store {len(blobs) + len(layers)} small blobs"),
                atomic.GroupSync(self.root) as group,
            ):
                for digest, data in blobs.items():
                    record = scopes.record(self._text, digest.hex, scope, record)
                    room = f"{self._text}/blobs/{digest.algorithm}"
                    if not os.path.exists(f"{room}/{digest.hex}"):
                        made[half_made := f"{room}/.{digest.hex}.{mark}"] = f"{room}/{digest.hex}"
                        _write_blob(half_made, data, sync=False)
                for layer in layers:
                    record = scopes.record(self._text, layer.digest.hex, scope, record)
                    target = self.unpacked_path(layer.digest, layer.rules)
                    if not target.exists():
                        target.parent.mkdir(mode=0o700, exist_ok=True)
                        made[temporary := atomic.temporary_beside(target)] = target
                        layer.make(temporary)
                atomic.failpoint("content.group.before_sync")
                group.sync(made)
                for source, name in list(made.items()):
                    try:
                        atomic.rename_noreplace(source, name)
                    except FileExistsError:
                        continue
                    del made[source]
                atomic.failpoint("content.group.after_rename")
                if layers:
                    group.sync(())
                else:
                    for directory in {f"{self._text}/blobs/{digest.algorithm}" for digest in blobs}:
                        atomic.fsync_directory(directory)
        finally:
            for source in made:
                _remove(Path(source))

    def _put_layer(self, layer: NewLayer, scope: str) -> None:
        target = self.unpacked_path(layer.digest, layer.rules)
        with self.locks.shared(), translated(f"store the unpacked {layer.digest}"):
            target.parent.mkdir(mode=0o700, exist_ok=True)
            temporary = atomic.temporary_beside(target)
            try:
                layer.make(temporary)
                atomic.sync_tree(temporary)
                self.commit_unpacked(temporary, layer.digest, layer.rules, scope)
            finally:
                _remove(temporary)

    def commit_blob(self, verified: Path, digest: Digest, scope: str) -> None:
        """Give a verified, fsynced, 0444 file its name in `blobs/`. Somebody else's equal blob wins; `verified` is gone
        afterwards either way. An OSError before the rename leaves `verified` where it is.
        """
        atomic.failpoint("content.blob.before_scope")
        self.admit(digest, scope)
        atomic.failpoint("content.blob.before_rename")
        target = self.blob_path(digest)
        try:
            atomic.rename_noreplace(verified, target)
        except FileExistsError:
            verified.unlink()
        atomic.failpoint("content.blob.after_rename")
        atomic.fsync_directory(target.parent)
        atomic.fsync_directory(verified.parent)

    def commit_unpacked(self, verified: Path, digest: Digest, rules: int, scope: str) -> None:
        """Give a verified, fsynced directory (`files/`, `index.json`) its name in `unpacked/`; like `commit_blob`."""
        atomic.failpoint("content.unpacked.before_scope")
        self.admit(digest, scope)
        target = self.unpacked_path(digest, rules)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        atomic.failpoint("content.unpacked.before_rename")
        try:
            atomic.rename_noreplace(verified, target)
        except FileExistsError:
            shutil.rmtree(verified)
        atomic.failpoint("content.unpacked.after_rename")
        atomic.fsync_directory(target.parent)
        atomic.fsync_directory(target.parent.parent)
        atomic.fsync_directory(verified.parent)


def foreign_entry(root: Path) -> str | None:
    """Something in `root` that no store of ours put there, None when there is no such thing.

    A store deletes what looks half-made in its rooms, so it must never be made among somebody's files. A half-made
    store has no version yet, and nothing but empty directories.
    """
    if not root.is_dir() or (root / "version").exists():
        return None
    rooms = {room.partition("/")[0] for room in ROOMS}
    for entry in root.iterdir():
        if entry.name == "lost+found" or entry.name.startswith(".version."):
            continue
        if entry.name not in rooms or any(not below.is_dir() for below in entry.rglob("*")):
            # Another process may have finished the store since we looked, and be at work in it.
            return None if (root / "version").exists() else entry.name
    return None


def _check(root: Path) -> int | None:
    """The version of the store at `root`, None where it may become one. Raises Precondition where it may not."""
    foreign = foreign_entry(root)
    if foreign is not None:
        raise Precondition(
            f"{root} isn't a store, and isn't empty ({foreign!r} is in it); choose a directory of the store's own"
        )
    return versions.found(root)


def _is(data: bytes, digest: Digest) -> bool:
    hasher = digest.hasher()
    hasher.update(data)
    return hasher.hexdigest() == digest.hex


def _remove(path: Path) -> None:
    """A half-made file or directory, if it is still there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_blob(path: str | Path, data: bytes, *, sync: bool = True) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        atomic.seal(fd)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)
