"""Whether a model is signed and attested as a rule demands: from the record, or by looking."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from modelmount import formats
from modelmount.content.store import Store
from modelmount.errors import BadArtifact, InvalidRequest, Unavailable
from modelmount.formats.base import Encoding
from modelmount.oci import manifest as manifests
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.digest import Digest
from modelmount.oci.manifest import Index, Manifest
from modelmount.oci.reference import Reference
from modelmount.policy import Rule, signing
from modelmount.policy.signing import Asked, Statement
from modelmount.registry.credentials import Credential
from modelmount.registry.recent import Recent
from modelmount.signatures import evidence, material, process, records
from modelmount.signatures.evidence import Documents
from modelmount.signatures.material import Material
from modelmount.signatures.messages import Task
from modelmount.signatures.process import ProcessError
from modelmount.signatures.records import Record

log = logging.getLogger(__name__)

OWN_SIGNATURE = "model.sig"
WAIT_SECONDS = 60.0
"""How long a call waits for another one that looks for the same."""
KEPT_LOCKS = 1024
KEPT_RECORDS = 256
"""In memory: they are facts, so a record that goes from the disk takes nothing back."""
Judge = Callable[[Task], list[Statement]]


@dataclass(frozen=True, slots=True)
class _Look:
    """What came of looking, for all who waited for it. `beyond` is what wasn't read."""

    ended: float
    statements: list[Statement]
    beyond: str = ""
    failed: ProcessError | Unavailable | None = None


class Finder:
    """Knows what is signed. Thread-safe; of many who ask about one model in one repository, one looks, and what comes
    of it, be it that the registry or the process fails, is for all who waited.
    """

    def __init__(self, store: Store, client: Documents, judge: Judge = process.judge) -> None:
        """Asks nobody yet. `judge` says which signatures are good."""
        self._store, self._client, self._judge = store, client, judge
        self._looking: Recent[tuple[str, str, str], threading.Lock] = Recent(KEPT_LOCKS)
        self._material_of: Recent[str, tuple[Rule, material.Signature, Material]] = Recent(KEPT_RECORDS)
        self._known: Recent[tuple[str, str, str], list[Statement]] = Recent(KEPT_RECORDS)
        self._looked: Recent[tuple[str, str, str], _Look] = Recent(KEPT_RECORDS)

    def expect(self, rules: Iterable[Rule]) -> None:
        """These rules are in force: what judges by them begins to start, so that no pod waits for it."""
        for identities in {any(each.identities for each in rule.demands) for rule in rules if rule.demands}:
            process.prepare(identities=identities)

    def require_recorded(self, rule: Rule, reference: Reference, manifest: Digest) -> list[str] | None:
        """By whose signatures the record meets the rule's demands, now and with today's keys; None where it doesn't.
        Nobody is asked. Raises Forbidden where the keys can't be read.
        """
        return self._recorded(self._material(rule), reference, manifest)

    def require(self, rule: Rule, reference: Reference, manifest: Digest, credential: Credential) -> list[str]:
        """Raise Forbidden unless the rule's demands are met by what is said about `manifest`, the digest that is to be
        mounted and is in the store, in the repository of `reference`; return who signed that. Where the record doesn't
        meet them, the registry is asked, and raises what its answers mean.
        """
        repository = reference.repository
        found = self._material(rule)
        recorded = self._recorded(found, reference, manifest)
        if recorded is not None:
            return recorded
        key = (repository.scope, str(manifest), found.bound)
        looking, began = self._looking.setdefault(key, threading.Lock), time.monotonic()
        if not looking.acquire(timeout=WAIT_SECONDS):
            raise Unavailable(
                f"the signatures of {repository}@{manifest} are being looked for, which takes longer than "
                f"{WAIT_SECONDS:.0f} s; the next try may find them"
            )
        try:
            recorded = self._recorded(found, reference, manifest)
            if recorded is not None:
                return recorded  # somebody else looked meanwhile
            look = self._looked.get(key)
            if look is None or look.ended < began:
                look = self._look(rule, found, reference, manifest, credential)
                self._looked.put(key, look)
        finally:
            looking.release()
        if isinstance(look.failed, ProcessError):
            raise rule.refuse(f"the process that checks signatures {look.failed}")
        if look.failed is not None:
            raise Unavailable(look.failed.message, retry_after=look.failed.retry_after)
        lacking = _lacking(found, look.statements, reference, manifest)
        if lacking:
            raise rule.refuse(f"{lacking}; {look.beyond}" if look.beyond else lacking)
        names = _signers(found, look.statements, reference, manifest)
        log.info(
            "signatures were checked",
            extra={"fields": {"model": f"{repository}@{manifest}", "rule": rule.name, "signers": names}},
        )
        return names

    def _recorded(self, found: Material, reference: Reference, manifest: Digest) -> list[str] | None:
        key = (reference.repository.scope, str(manifest), found.bound)
        statements = self._known.get(key)
        if statements is None:
            record = records.read(self._store, reference.repository, manifest, found.bound)
            if record is None:
                return None
            statements = record.statements
            self._known.put(key, statements)
        if _lacking(found, statements, reference, manifest):
            return None
        return _signers(found, statements, reference, manifest)

    def _look(
        self, rule: Rule, found: Material, reference: Reference, manifest: Digest, credential: Credential
    ) -> _Look:
        """What is found out is recorded; a refusal of this credential, in whatever words, is raised, and nobody else's
        matter.
        """
        repository = reference.repository
        self.expect([rule])
        document = self._store.read_document(manifest)
        contents = Contents.of(manifests.parse(document))
        statements: list[Statement] = []
        try:
            gathered = evidence.gather(
                self._client, repository, manifest, found.demands, credential, contents.signature
            )
            if gathered.pieces:
                task = Task(
                    digest=str(manifest),
                    manifest=document,
                    files=contents.files,
                    keys=list(found.keys),
                    identities=list(found.identities),
                    roots=list(found.roots),
                    pieces=gathered.pieces,
                )
                statements = self._judge(task)
        except ProcessError as e:
            # Never the one that was raised: its traceback would keep all that was gathered, and the credential.
            return _Look(time.monotonic(), [], failed=ProcessError(str(e)))
        except Unavailable as e:
            if e.answered:
                raise  # a word on what this credential asked
            return _Look(time.monotonic(), [], failed=Unavailable(e.message, retry_after=e.retry_after))
        record = Record(
            version=records.VERSION,
            digest=str(manifest),
            repository=str(repository),
            bound=found.bound,
            rule=rule.name,
            at=time.time(),
            statements=statements,
        )
        records.write(self._store, repository, manifest, record)
        self._known.put((repository.scope, str(manifest), found.bound), statements)
        return _Look(time.monotonic(), statements, gathered.beyond)

    def _material(self, rule: Rule) -> Material:
        """Read anew where a file isn't what it was, or the policy was read anew."""
        seen = material.signature(rule.demands)
        last = self._material_of.get(rule.name)
        if last is not None and last[0] is rule and last[1] == seen:
            return last[2]
        try:
            found = material.read(rule.demands)
        except InvalidRequest as e:
            raise rule.refuse(e.message) from e
        self._material_of.put(rule.name, (rule, seen, found))
        return found


def _lacking(found: Material, statements: list[Statement], reference: Reference, manifest: Digest) -> str:
    asked, now = Asked(reference, str(manifest)), time.time()
    for demand, authorities in zip(found.demands, found.authorities, strict=True):
        lacking = signing.lacking(demand, authorities, statements, asked, now)
        if lacking:
            return lacking
    return ""


def _signers(found: Material, statements: list[Statement], reference: Reference, manifest: Digest) -> list[str]:
    """Of the statements that count."""
    asked, now = Asked(reference, str(manifest)), time.time()
    names: set[str] = set()
    for demand, authorities in zip(found.demands, found.authorities, strict=True):
        names |= signing.signers(demand, authorities, statements, asked, now)
    return sorted(names)


@dataclass(frozen=True, slots=True)
class Contents:
    """A model's files by path and digest, as far as the manifest alone says them (None where it doesn't), and the one
    of them that model-signing writes its signature to.
    """

    files: list[tuple[str, str]] | None
    signature: Descriptor | None

    @classmethod
    def of(cls, document: Manifest | Index) -> Contents:
        """What a manifest says."""
        try:
            if not isinstance(document, Manifest) or formats.reads_config(document):
                return cls(None, None)
            layers = formats.decide(document, None).layers
        except (BadArtifact, InvalidRequest):
            return cls(None, None)
        own = next((each for each in layers if each.encoding is Encoding.RAW and each.path == OWN_SIGNATURE), None)
        if any(layer.encoding is not Encoding.RAW or layer.path is None for layer in layers):
            return cls(None, None)
        files = [(layer.path or "", str(layer.descriptor.digest)) for layer in layers]
        return cls(files, own.descriptor if own is not None else None)
