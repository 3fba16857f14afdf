"""What is said between the driver and the process that judges evidence."""

from __future__ import annotations

from typing import Literal

import msgspec

from modelmount.policy.signing import Statement
from modelmount.system import confine

Kind = Literal["simple", "envelope", "bundle", "report"]
"""A payload of cosign's simple signing, a DSSE envelope, a Sigstore bundle, a report that nobody signed."""


class Piece(msgspec.Struct, frozen=True):
    """One piece of evidence, as it was found: anybody may have written it."""

    kind: Kind
    artifact: str
    """The digest of what it was found in."""
    data: bytes
    signature: str = ""
    """Of simple signing: base64."""
    predicate: str = ""
    """What its manifest says that it is: of reports all there is."""
    made_at: str = ""
    """When its manifest says that it was made: of reports that don't say it themselves."""

    @property
    def form(self) -> Literal["simple", "bundle", "report"]:
        """That of a statement of which no more is known."""
        return "bundle" if self.kind == "envelope" else self.kind


class Key(msgspec.Struct, frozen=True):
    """A public key of the policy (DER)."""

    authority: str
    data: bytes
    name: str


class Vouched(msgspec.Struct, frozen=True):
    """An identity of the policy: globs, and which of the task's trusted roots vouches for it."""

    authority: str
    identity: str
    issuer: str
    root: int


class Task(msgspec.Struct, frozen=True):
    """What to judge."""

    digest: str
    """Of the manifest that is to be mounted."""
    manifest: bytes
    files: list[tuple[str, str]] | None
    """Its files, as far as that is known without reading them: path and digest. None where it isn't."""
    keys: list[Key]
    identities: list[Vouched]
    roots: list[bytes]
    pieces: list[Piece]


class Order(msgspec.Struct, frozen=True):
    """How many bytes of a task follow, in messages, and what may be spent on them."""

    size: int
    bounds: confine.Limits


class Answer(msgspec.Struct, frozen=True):
    """One statement for each piece, in their order; or what kept it from judging at all."""

    statements: list[Statement]
    trouble: str = ""
