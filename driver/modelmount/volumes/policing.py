"""The admin's policy, applied to a publish: by what was asked for, by the manifest, by the files; before each lease."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from modelmount import formats, policy
from modelmount.content.store import Store
from modelmount.errors import (
    BadArtifact,
    Cancelled,
    Forbidden,
    IntegrityError,
    InvalidRequest,
    ModelMountError,
    NotFound,
    Pending,
    Unauthenticated,
    Unavailable,
)
from modelmount.formats.base import Encoding
from modelmount.formats.selection import Selection
from modelmount.oci import manifest as manifests
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Manifest
from modelmount.oci.reference import Reference
from modelmount.policy import Policy, Rule
from modelmount.policy.kinds import HEAD_BYTES
from modelmount.pull.resolver import Model
from modelmount.registry.credentials import Credential
from modelmount.registry.recent import Recent
from modelmount.snapshots import tree as trees
from modelmount.snapshots.tree import Tree
from modelmount.volumes.volume import pod_namespace

log = logging.getLogger(__name__)

KEPT_VERDICTS = 4096
AHEAD_SECONDS = 10.0
"""After so long no more first bytes are asked for: a pull has to begin within the kubelet's call, or it never does."""
Head = Callable[[Descriptor, int], bytes | None]
"""The first so many bytes of a blob, as its source sends them; None where it sends less."""
_TROUBLE = (Unavailable, NotFound, Unauthenticated, IntegrityError)


class FindsSignatures(Protocol):
    """Knows what is signed: `signatures.finder.Finder`."""

    def expect(self, rules: Iterable[Rule]) -> None:
        """These are in force from now on."""

    def require_recorded(self, rule: Rule, reference: Reference, manifest: Digest) -> list[str] | None:
        """By whose signatures the record of the manifest meets the rule's demands; None where it doesn't."""

    def require(self, rule: Rule, reference: Reference, manifest: Digest, credential: Credential) -> list[str]:
        """By whose signatures the manifest meets the rule's demands. Raises Forbidden where it doesn't."""


class Policing:
    """The policy in force: the file is read again whenever it changed. Thread-safe.

    A file that becomes unreadable or wrong is logged once, and what counted before goes on to count: a mistake must not
    open what was closed.
    """

    def __init__(self, store: Store, file: str, signatures: FindsSignatures | None = None) -> None:
        """Reads the file; empty means that there is no policy. Raises InvalidRequest for mistakes in it. Without
        somebody who finds signatures, rules that demand some refuse everything.
        """
        self._store, self._file = store, Path(file) if file else None
        self.signatures = signatures
        self._seen = _signature(self._file) if self._file is not None else None
        self._policy = self._read(self._file) if self._file is not None else None
        self._looked_through: Recent[tuple[str, str, str], bool] = Recent(KEPT_VERDICTS)
        self._looked_ahead: Recent[tuple[str, str, str], bool] = Recent(KEPT_VERDICTS)

    def begin(self, reference: Reference, attributes: Mapping[str, str]) -> Check:
        """The check of one publish, after the words of the volume passed it. Raises Forbidden."""
        current = self._current()
        if current is None:
            return Check(None, "", self)
        rule = current.rule(pod_namespace(attributes), reference)
        check = Check(rule, current.id, self)
        check.enforce(lambda: rule.check_reference(reference))
        return check

    def _current(self) -> Policy | None:
        if self._file is None:
            return None
        seen = _signature(self._file)
        if seen != self._seen:
            self._seen = seen
            try:
                self._policy = self._read(self._file)
                log.info("the policy was changed", extra={"fields": {"policy": self._policy.id}})
            except InvalidRequest as e:
                log.error("the changed policy doesn't count: %s", e)
        return self._policy

    def _read(self, file: Path) -> Policy:
        found = policy.read(file)
        if self.signatures is not None:
            self.signatures.expect(found.rules)
        return found

    def look_ahead(self, check: Check, rule: Rule, model: Model, selection: Selection, head: Head) -> None:
        """Raise Forbidden for the first bytes of a file that the rule doesn't allow. A model that passed isn't asked
        for again: its pull may take many calls.
        """
        store = self._store
        key = (f"{model}{selection.key}", check.policy_id, rule.name)
        if self._looked_ahead.get(key):
            return
        document = manifests.parse(store.read_document(model.manifest))
        if not isinstance(document, Manifest):
            return
        deadline = time.monotonic() + AHEAD_SECONDS
        try:
            layout = formats.decide(document, self._config(document, model, head), selection)
        except (BadArtifact, *_TROUBLE) as e:
            log.info("what %s has can't be known before its pull: %s", model, e)
            return
        for layer in layout.layers:
            descriptor, path = layer.descriptor, layer.path or ""
            if layer.encoding is not Encoding.RAW or store.has_blob(descriptor.digest, model.repository.scope):
                continue
            if time.monotonic() >= deadline:
                break
            try:
                found = head(descriptor, HEAD_BYTES) if descriptor.size else b""
            except _TROUBLE as e:
                log.info("the first bytes of %s could not be looked at before its pull: %s", model, e)
                break
            if found is not None:
                kind = policy.by_content(path, found, descriptor.size)
                rule.check_file(str(model), path, kind)
        self._looked_ahead.put(key, value=True)

    def _config(self, document: Manifest, model: Model, head: Head) -> bytes | None:
        """The config, where the format reads it; kept, as the pull wants it too. Raises BadArtifact for one that is too
        large to be asked for so early, IntegrityError for other bytes.
        """
        descriptor, scope = document.config, model.repository.scope
        if descriptor is None or not formats.reads_config(document):
            return None
        if descriptor.data is not None:
            return descriptor.data
        if self._store.has_blob(descriptor.digest, scope):
            return self._store.read_document(descriptor.digest)
        if descriptor.size > HEAD_BYTES:
            raise BadArtifact(f"its config has {descriptor.size} bytes")
        data = head(descriptor, descriptor.size) or b""
        hasher = descriptor.digest.hasher()
        hasher.update(data)
        if hasher.hexdigest() != descriptor.digest.hex:
            raise IntegrityError(f"the config of {model} came with other bytes than its digest names")
        self._store.put_document(data, descriptor.digest, scope)
        return data

    def look_through(self, check: Check, rule: Rule, what: str, tree: Tree) -> None:
        """Raise Forbidden for a file of the tree that the rule doesn't allow; a tree that passed isn't read again."""
        key = (tree.id, check.policy_id, rule.name)
        if self._looked_through.get(key):
            return
        for path, _, size in _files(self._store, tree):
            with (tree.root / path).open("rb") as file:
                head = file.read(HEAD_BYTES)
            rule.check_file(what, path, policy.by_content(path, head, size))
        self._looked_through.put(key, value=True)


@dataclass(frozen=True, slots=True)
class Check:
    """One publish under the rule that is in force for it; without a rule everything passes."""

    rule: Rule | None
    policy_id: str
    policing: Policing
    signers: list[str] = field(default_factory=list)
    """By whose signatures it passed, once it did; empty where none are demanded."""

    def enforce(self, decide: Callable[[], None]) -> None:
        """Run it; where the rule only warns, a refusal is logged."""
        try:
            decide()
        except Forbidden as e:
            if self.rule is None or self.rule.mode == "enforce":
                raise
            log.warning("%s", e, extra={"fields": {"policy": self.policy_id, "rule": self.rule.name}})

    def model(self, model: Model, store: Store, selection: Selection) -> None:
        """Raise Forbidden by what the manifest of a resolved model says: before any of its blobs is pulled."""
        rule = self.rule
        if rule is None or not (rule.max_bytes is not None or rule.formats or rule.looks_into_files):
            return
        document = manifests.parse(store.read_document(model.manifest))
        if not isinstance(document, Manifest):
            raise BadArtifact(f"{model} is an index where a manifest was expected; resolve the reference again")
        total = sum(size for _, size in {(layer.digest, layer.size) for layer in document.layers})
        self.enforce(lambda: rule.check_artifact(str(model), formats.name(document), total))
        if rule.looks_into_files and not formats.reads_config(document):
            for layer in formats.decide(document, None, selection).layers:
                kind = policy.by_name(layer.path or "")
                if kind is not None and not layer.encoding.is_archive:
                    self.enforce(functools.partial(rule.check_file, str(model), layer.path or "", kind))

    def signed(self, reference: Reference, model: Model, credential: Credential) -> None:
        """Raise Forbidden unless the model is signed and attested as the rule demands: before any of its blobs is
        pulled. Raises what a registry's answers mean, unless the rule only warns.
        """
        rule, finder = self.rule, self.policing.signatures
        if rule is None or not rule.demands:
            return

        def decide() -> None:
            if finder is None:
                raise rule.refuse("nobody checks signatures here")
            try:
                self.signers[:] = finder.require(rule, reference, model.manifest, credential)
            except (Cancelled, Pending, Forbidden):
                raise
            except ModelMountError as e:
                if rule.mode == "enforce":
                    raise
                raise rule.refuse(f"its signatures can't be checked: {e}") from e

        self.enforce(decide)

    def signed_before(self, reference: Reference, manifest: Digest) -> bool:
        """Whether nobody has to be asked for `signed` to pass."""
        rule, finder = self.rule, self.policing.signatures
        if rule is None or not rule.demands or rule.mode == "warn":
            return True
        found = finder.require_recorded(rule, reference, manifest) if finder is not None else None
        self.signers[:] = found or ()
        return found is not None

    def heads(self, model: Model, selection: Selection, head: Head) -> None:
        """Raise Forbidden by the first bytes of files that have yet to be pulled, as their source sends them: early, so
        that nothing large comes in vain. `may_show` has the last word. Raises what `head` does of the call itself;
        trouble with the source is the pull's to tell.
        """
        rule = self.rule
        if rule is None or rule.mode != "enforce" or not rule.looks_into_files:
            return
        self.policing.look_ahead(self, rule, model, selection, head)

    def may_show(self, model: Model, store: Store, selection: Selection) -> bool:
        """Whether the tree of the model is here and passes. Raises Forbidden for files that may not be in it."""
        rule = self.rule
        if rule is None or not rule.looks_into_files:
            return True
        tree = trees.find(store, model.repository.scope, model.manifest, selection.key)
        if tree is None:
            return False
        try:
            self.enforce(lambda: self.policing.look_through(self, rule, str(model), tree))
        except FileNotFoundError:
            return False  # a sweep took it meanwhile: no lock is held for as long as that many files take
        return True


def _files(store: Store, tree: Tree) -> list[tuple[str, str, int]]:
    """As `trees.files`. Raises FileNotFoundError for a tree that is gone."""
    if not tree.root.is_dir():
        raise FileNotFoundError(tree.root)
    return trees.files(store, tree)


def _signature(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
