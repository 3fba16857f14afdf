"""The store's root: its names, presence and scopes. The only file that knows where content lies.

    version  blobs/  unpacked/  ingest/  scopes/  trees/  views/  refs/  models/  volumes/  pulls/  backoff/  locks/  trash/  quarantine/

Any number of threads and processes may use one root at the same time; `flock` orders them. Callers that link or record
what they found present hold `locks.shared()` from the look until the record stands, so that a sweep never falls in
between.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from modelmount.errors import Internal, Precondition
from modelmount.oci.digest import Digest
from modelmount.system import atomic
from modelmount.system.lock import FileLock, StoreLock

VERSION = "1\n"
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


class Store:
    """One root directory. Cheap to construct; holds no state that isn't on disk."""

    def __init__(self, root: Path) -> None:
        """Open or create the store at `root` (0700). Raises Precondition for a layout version that isn't ours."""
        self.root = root
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            root.chmod(0o700)
            for room in ROOMS:
                (root / room).mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (root / "version").exists():
                atomic.write_file(root / "version", VERSION.encode())
        except OSError as e:
            raise Precondition(
                f"the store {root} cannot be used: {e.strerror}; run as root or choose another directory with --root"
            ) from e
        found = (root / "version").read_text()
        if found != VERSION:
            raise Precondition(
                f"the store {root} has layout version {found.strip()!r}, this program knows {VERSION.strip()!r}; "
                "upgrade modelmount"
            )
        self.locks = StoreLock(root / "locks")

    # -- names

    def blob_path(self, digest: Digest) -> Path:
        """Where the verified raw form of `digest` lies, if it does."""
        return self.root / "blobs" / digest.algorithm / digest.hex

    def unpacked_path(self, digest: Digest, rules: int) -> Path:
        """Where the unpacked form lies: `files/<ordinal>` and `index.json`."""
        return self.root / "unpacked" / digest.hex / str(rules)

    def lock(self, name: str) -> FileLock:
        """The lock file `name` in `locks/`: `driver`, `target-<hash>`, `ingest-<…>`, `pull-<id>`, `space`."""
        return FileLock(self.root / "locks" / name)

    # -- presence and scopes

    def has_scope(self, digest: Digest, scope: str) -> bool:
        """Whether this scope had the bytes of `digest` (downloaded or proved), present or not."""
        return (self.root / "scopes" / digest.hex / scope).exists()

    def has_blob(self, digest: Digest, scope: str) -> bool:
        """Whether the raw form is present *and* available to this scope."""
        return self.blob_path(digest).exists() and self.has_scope(digest, scope)

    def unpacked_rules(self, digest: Digest, scope: str) -> int | None:
        """The newest rules version whose unpacked form is present and available to this scope."""
        directory = self.root / "unpacked" / digest.hex
        if not directory.exists() or not self.has_scope(digest, scope):
            return None
        versions = [
            int(name) for name in os.listdir(directory) if name.isdigit() and (directory / name / "index.json").exists()
        ]
        return max(versions, default=None)

    def admit(self, digest: Digest, scope: str) -> None:
        """Record durably that `scope` had the bytes of `digest`. Call only after they were verified from that scope's
        own source.
        """
        directory = self.root / "scopes" / digest.hex
        record = directory / scope
        if record.exists():
            return
        directory.mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(record, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o400))
        atomic.fsync_directory(directory)
        atomic.fsync_directory(directory.parent)

    # -- small documents

    def read_document(self, digest: Digest) -> bytes:
        """The bytes of a small present blob (manifest, config). Raises Internal when they are unreadable."""
        try:
            return self.blob_path(digest).read_bytes()
        except OSError as e:
            raise Internal(f"cannot read {digest} from the store: {e.strerror}; run `modelmount doctor`") from e

    def put_document(self, data: bytes, digest: Digest, scope: str) -> None:
        """Commit a small blob that is in memory and was already verified: same order of writing as any ingest."""
        hasher = digest.hasher()
        hasher.update(data)
        if hasher.hexdigest() != digest.hex:
            raise Internal(f"refusing to store bytes that are not {digest}")
        with self.locks.shared():
            target = self.blob_path(digest)
            if target.exists():
                self.admit(digest, scope)
                return
            temporary = target.with_name(f".{digest.hex}.{os.urandom(6).hex()}")
            try:
                with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    os.fchmod(file.fileno(), 0o444)
                self.commit_blob(temporary, digest, scope)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def commit_blob(self, verified: Path, digest: Digest, scope: str) -> None:
        """Give a verified, fsynced, 0444 file its name in `blobs/`. Somebody else's equal blob wins; `verified` is gone
        afterwards either way.
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
