"""Who may read what is here already: proof of access to one manifest in one repository with one credential.

`always` asks the registry each time; `record` takes an answer for good for a while; both fall back on the record of an
earlier answer while the registry is down, within the time of grace, unless `on_registry_down` says otherwise. A record
is an empty file, `models/<hex>/proofs/<hmac>`, and its mtime says when the registry last agreed: the name is an HMAC
over scope, digest and credential under a key of this node, so that nobody can guess a password from it. No record is as
good as a lost one: it only costs a request.

A record is of one credential, byte by byte, never of whom that says it is: only the registry can tell a true token from
a made-up one with the same claims, and it isn't there when the record counts. So each new token of a service account
is a new record, `token-<hmac>`; when there are too many the oldest goes, of tokens and of other credentials apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import hmac
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from modelmount.config import Auth
from modelmount.content.store import Store
from modelmount.errors import Internal, ModelMountError, Unavailable
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.registry.credentials import Credential
from modelmount.registry.recent import Recent
from modelmount.system import atomic

log = logging.getLogger(__name__)

Proof = Literal["registry", "record", "grace", "down", "preloaded", "off"]
"""By what access was granted: the registry's answer now, an earlier one that still counts, an earlier one because the
registry is down, nothing but that because the admin lets it suffice, the admin who put it here, or nothing, because the
admin wants none.
"""
PRELOADED: Final = "preloaded-"
"""Begins the names of marks that say so; such a mark is no record, and for everybody."""

KEY_FILE: Final = "node.key"
KEY_BYTES: Final = 32
RENEWED_AFTER: Final = 0.1
"""A record is written anew when so much of its time is over: a publish needs no write each time."""
FUTURE_SECONDS: Final = 1.0
"""A record from further ahead comes from a clock that was wrong, and doesn't count."""
DOWN_SECONDS: Final = 30.0
"""How long a registry that was found to be down isn't asked by who has a record: each would wait for it in vain."""
KEPT_TROUBLES: Final = 256
TOKEN: Final = "token-"
"""Begins the names of records of service accounts' tokens, which change by the hour."""
MOST_RECORDS: Final = 256
"""Records of one model, of tokens and of other credentials each; then the oldest goes."""


class Proofs:
    """Decides whether the registry has to be asked, and remembers its answers. Thread-safe; several processes may use
    one store.
    """

    def __init__(self, store: Store, auth: Auth, clock: Callable[[], float] = time.time) -> None:
        """Reads nothing yet. `clock` is the wall clock: records outlive the process."""
        self._store, self._auth, self._clock = store, auth, clock
        self._lock = threading.Lock()
        self._key = b""
        self._down: Recent[tuple[Repository, Credential | None], float] = Recent(KEPT_TROUBLES)
        """Since when it can't be asked: by anybody, or with that credential."""

    @property
    def wanted(self) -> bool:
        """Whether the admin wants any."""
        return self._auth.verification != "never"

    def prove(
        self,
        repository: Repository,
        digest: Digest,
        manifest: Digest,
        credential: Credential,
        ask: Callable[[], None],
    ) -> Proof:
        """By what `credential` may read `digest`, of which `manifest` was chosen; `ask` asks the registry.

        Raises what `ask` raises. A refusal ends what was recorded, and so does any other answer that is neither a yes
        nor a word of trouble: nobody knows what is meant by it, but nothing is down.
        """
        if not self.wanted:
            return "off"
        if self._opens(repository) and os.path.exists(self._mark(repository, digest, manifest)):
            return "preloaded"
        if self._auth.verification == "record" and self._stands(
            repository, digest, manifest, credential, self._auth.record_seconds or None
        ):
            return "record"
        down = self._is_down(repository, credential)
        if down and self._stands(repository, digest, manifest, credential, self._grace):
            return "grace"
        try:
            ask()
        except ModelMountError as e:
            if not isinstance(e, Unavailable) or e.answered:
                self._forget(repository, digest, manifest, credential)
                raise
            self._down.put((repository, None if e.unreachable else credential), self._clock())
            found = self._without_the_registry(repository, digest, manifest, credential)
            if found is None:
                raise
            by = "by an earlier proof" if found == "grace" else "without a proof, as auth.on_registry_down says"
            log.warning("%s, which can't be asked now, is read %s: %s", repository, by, e)
            return found
        self.record(repository, digest, manifest, credential)
        return "registry"

    def preload(self, repository: Repository, digest: Digest, manifest: Digest) -> None:
        """An admin put it here: pods may read it without a proof where `auth.preloaded` says so, now or later. Raises
        OSError.
        """
        path = self._mark(repository, digest, manifest)
        with self._store.locks.shared():
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))

    def record(self, repository: Repository, digest: Digest, manifest: Digest, credential: Credential) -> None:
        """The registry agreed just now. What can't be written is logged: the next publish asks again."""
        lifetime = max(self._grace, self._lifetime())
        if not self.wanted or not lifetime:
            return
        path = self._path(repository, digest, manifest, credential)
        age = self._age(path)
        if age is not None and -FUTURE_SECONDS <= age < lifetime * RENEWED_AFTER:
            return
        directory = os.path.dirname(path)
        try:
            with self._store.locks.shared():
                os.makedirs(directory, mode=0o700, exist_ok=True)
                if age is None:
                    self._make_room(directory, lifetime, is_token=bool(credential.account_token))
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
                now = self._clock()
                os.utime(path, (now, now))
        except OSError as e:
            log.warning("cannot keep a proof of access to %s: %s", repository, e.strerror)

    # -- inside

    @property
    def _grace(self) -> float:
        return 0.0 if self._auth.on_registry_down == "deny" else self._auth.grace_seconds

    def _without_the_registry(
        self, repository: Repository, digest: Digest, manifest: Digest, credential: Credential
    ) -> Proof | None:
        """By what it may be read though the registry can't be asked, if it may."""
        if self._stands(repository, digest, manifest, credential, self._grace):
            return "grace"
        return "down" if self._auth.on_registry_down == "allow_any" else None

    def _opens(self, repository: Repository) -> bool:
        """Whether what is preloaded of it is for everybody."""
        name = str(repository)
        return any(
            name.startswith(pattern.removesuffix("*")) if pattern.endswith("*") else name == pattern
            for pattern in self._auth.preloaded
        )

    def _mark(self, repository: Repository, digest: Digest, manifest: Digest) -> str:
        where, _, name = self._path(repository, digest, manifest, None).rpartition("/")
        return f"{where}/{PRELOADED}{name}"

    def _is_down(self, repository: Repository, credential: Credential) -> bool:
        """Whether it could not be asked a moment ago. By repository: one that answers nobody must not vouch for
        another of the same registry. And by credential once somebody was there: one that a registry chokes on, or that
        has asked too often, must not let another's record count.
        """
        found = (self._down.get((repository, whose)) for whose in (None, credential))
        return any(since is not None and 0 <= self._clock() - since < DOWN_SECONDS for since in found)

    def _lifetime(self) -> float:
        if self._auth.verification != "record":
            return 0.0
        return self._auth.record_seconds or float("inf")

    def _stands(
        self,
        repository: Repository,
        digest: Digest,
        manifest: Digest,
        credential: Credential,
        seconds: float | None,
    ) -> bool:
        """Whether this credential has a record that is young enough, or anybody has: what was read without a credential
        is for everybody, unless the admin says otherwise.
        """
        for each in (credential, *([Credential.anonymous()] if self._auth.anonymous else [])):
            age = self._age(self._path(repository, digest, manifest, each))
            if age is not None and age >= -FUTURE_SECONDS and (seconds is None or max(age, 0.0) < seconds):
                return True
        return False

    def _age(self, path: str) -> float | None:
        try:
            return self._clock() - os.stat(path, follow_symlinks=False).st_mtime
        except OSError:  # a record that can't be read is as good as none
            return None

    def _forget(self, repository: Repository, digest: Digest, manifest: Digest, credential: Credential) -> None:
        try:
            os.unlink(self._path(repository, digest, manifest, credential))
        except FileNotFoundError:
            return
        except OSError as e:
            log.error("cannot forget the proof of access to %s that was refused now: %s", repository, e.strerror)

    def _make_room(self, directory: str, lifetime: float, *, is_token: bool) -> None:
        """For one more of its kind: what counts no longer goes, and the oldest of those that are left."""
        names = [n for n in os.listdir(directory) if n.startswith(TOKEN) == is_token and not n.startswith(PRELOADED)]
        if len(names) < MOST_RECORDS:
            return
        ages = {name: self._age(f"{directory}/{name}") for name in names}
        standing = {name: age for name, age in ages.items() if age is not None and -FUTURE_SECONDS <= age < lifetime}
        kept = heapq.nsmallest(MOST_RECORDS - 1, standing, key=standing.__getitem__)
        for name in ages.keys() - kept:
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                os.unlink(f"{directory}/{name}")

    def _path(self, repository: Repository, digest: Digest, manifest: Digest, credential: Credential | None) -> str:
        parts = (repository.scope, str(digest), *(credential.secrets if credential is not None else ()))
        text = b"".join(len(part).to_bytes(4, "big") + part for part in (each.encode() for each in parts))
        name = hmac.new(self._node_key(), text, hashlib.sha256).hexdigest()
        kind = TOKEN if credential is not None and credential.account_token else ""
        return f"{self._store.root}/models/{manifest.hex}/proofs/{kind}{name}"

    def _node_key(self) -> bytes:
        with self._lock:
            if not self._key:
                self._key = _key(self._store)
            return self._key


def _key(store: Store) -> bytes:
    """This node's key, made where there is none yet: without it all records are void, and nothing else is lost."""
    path = store.root / KEY_FILE
    try:
        if not path.exists():
            _make_key(path)
        found = atomic.read_file(path)
    except OSError as e:
        raise Internal(f"cannot keep the key of proofs, {path}: {e.strerror}; run `modelmount doctor`") from e
    if len(found) != KEY_BYTES:
        raise Internal(f"{path} is damaged; remove it, and access is proved anew")
    return found


def _make_key(path: Path) -> None:
    """The first of several processes wins."""
    temporary = atomic.temporary_beside(path)
    atomic.write_file(temporary, secrets.token_bytes(KEY_BYTES))
    try:
        atomic.rename_noreplace(temporary, path)
    except FileExistsError:
        temporary.unlink()
    atomic.fsync_directory(path.parent)
