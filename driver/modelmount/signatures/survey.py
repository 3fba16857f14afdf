"""What is said about a manifest, for people: everything beside it, and by whom where a record of this node knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from modelmount.content.store import Store
from modelmount.oci.digest import Digest
from modelmount.oci.reference import Repository
from modelmount.policy.signing import KINDS, Attestation, Demand, Signature, Signer, Statement
from modelmount.registry.credentials import Credential
from modelmount.signatures import evidence, process, records
from modelmount.signatures.evidence import Documents
from modelmount.signatures.finder import Contents
from modelmount.signatures.messages import Piece, Task
from modelmount.signatures.process import ProcessError

_ANYTHING: Final[Sequence[Demand]] = (Signature(), Attestation(type="*"))


@dataclass(frozen=True, slots=True)
class Said:
    """One statement. `signers` are those that this node found out for the rule `rule` at `checked_at`; without a rule
    nobody here has checked it.
    """

    statement: Statement
    signers: tuple[Signer, ...]
    rule: str = ""
    checked_at: float | None = None

    @property
    def kind(self) -> str:
        """What people call it."""
        statement = self.statement
        if statement.form == "model":
            return "signature of its files"
        if Signature().is_about(statement):
            return "signature"
        return next(
            (kind for kind in KINDS if Attestation(type=kind).is_about(statement.predicate)),
            "report" if statement.form == "report" else "attestation",
        )


def survey(
    client: Documents,
    store: Store | None,
    repository: Repository,
    manifest: Digest,
    contents: Contents,
    credential: Credential,
) -> list[Said]:
    """Everything beside a manifest, in the order of its registry. What can't be taken apart here, because this
    installation lacks what it takes, is there by its kind only. Raises what the registry's answers mean.
    """
    pieces = evidence.gather(client, repository, manifest, _ANYTHING, credential, contents.signature).pieces
    known = list(records.of(store, repository, manifest)) if store is not None else []
    found = []
    for statement in _read(str(manifest), contents.files, pieces):
        said = Said(statement, ())
        for record in known:
            recorded = next((each for each in record.statements if _same(each, statement)), None)
            if recorded is not None and recorded.signers:
                said = Said(recorded, recorded.signers, record.rule, record.at)
                break
        found.append(said)
    return found


def _read(manifest: str, files: list[tuple[str, str]] | None, pieces: list[Piece]) -> list[Statement]:
    if not pieces:
        return []
    task = Task(digest=manifest, manifest=b"", files=files, keys=[], identities=[], roots=[], pieces=pieces)
    try:
        return process.judge(task)
    except ProcessError:
        return [
            Statement(
                form=piece.form,
                artifact=piece.artifact,
                predicate=piece.predicate,
            )
            for piece in pieces
        ]


def _same(one: Statement, other: Statement) -> bool:
    """Whether both are of one piece: of several in one manifest, those of the same type are taken for each other."""
    return one.artifact == other.artifact and one.form == other.form and other.predicate in {"", one.predicate}
