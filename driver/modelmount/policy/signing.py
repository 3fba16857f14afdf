"""What a rule wants signed and attested, and whether the statements that were found about a model do.

A demand is met by one statement; a rule by all its demands. Who signed what is found elsewhere: here are the decisions.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Final, Literal

import msgspec

from modelmount.errors import InvalidRequest
from modelmount.oci.reference import Reference

Form = Literal["simple", "bundle", "model"]
"""How a model is signed: cosign's simple signing, a Sigstore bundle over the manifest, OpenSSF model signing (a bundle
over its files).
"""

COSIGN: Final = "https://sigstore.dev/cosign/sign/v1"
"""The predicate of what cosign signs in bundles."""
MODEL_SIGNING: Final = ("https://model_signing/signature/v1.0", "https://model_signing/Digests/v0.1")
KINDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "sbom": (
            "https://cyclonedx.org/bom*",
            "https://spdx.dev/Document*",
            "application/vnd.cyclonedx*",
            "application/spdx*",
            "text/spdx*",
            "application/vnd.goharbor.harbor.sbom.v1",
        ),
        "vulnerabilities": (
            "https://cosign.sigstore.dev/attestation/vuln/v1",
            "https://in-toto.io/attestation/vulns*",
            "application/vnd.aquasec.trivy.report*",
            "application/vnd.security.vulnerability.report*",
            "application/sarif+json",
        ),
        "provenance": ("https://slsa.dev/provenance/*",),
    }
)
"""Names of kinds of attestations: globs of predicate types, and of media types of reports that nobody signed."""
AHEAD_SECONDS: Final = 300.0
"""Clocks differ by so much; what is from further ahead has no age that counts."""
MOST_REASONS: Final = 3


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who a certificate is for, and by whose word: globs."""

    identity: str
    """An e-mail address or a URI, as it stands in the certificate."""
    issuer: str
    """The OpenID provider's URL."""


class Signers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose signatures count: any of them."""

    keys: list[str] = []
    """Files with public keys (PEM)."""
    identities: list[Identity] = []
    """Of certificates that `trusted_root` vouches for."""
    trusted_root: str = ""
    """The file with the certificate authorities and logs that certificates of `identities` must be from."""

    @property
    def are_named(self) -> bool:
        """Whether there are any."""
        return bool(self.keys or self.identities)


class Signature(Signers, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signature that there must be."""

    forms: tuple[Form, ...] = ("simple", "bundle", "model")
    repository: Literal["same", "any"] = "same"
    """Whether a signature that names a repository must name the one that it was found in."""

    def is_about(self, statement: Statement) -> bool:
        """Whether this is a signature, of a form that counts. Of bundles only those that say they sign: an attestation
        makes nothing signed.
        """
        if statement.form == "report" or statement.form not in self.forms:
            return False
        return statement.form != "bundle" or statement.predicate in {"", COSIGN}


class Attestation(Signers, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An attestation that there must be; without signers, also one that nobody signed."""

    type: str
    """One of KINDS, or a glob of predicate types."""
    max_age_hours: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    """How long ago it may say to have been made."""

    def is_about(self, predicate: str) -> bool:
        """Whether this is the type of a statement."""
        return any(fnmatch.fnmatchcase(predicate, each) for each in KINDS.get(self.type, (self.type,)))


Demand = Signature | Attestation


class Signer(msgspec.Struct, frozen=True):
    """Somebody whose signature was found to be good. `authority` says by which key or identity of the policy."""

    authority: str
    name: str


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is said about a model, and who signed it. Without signers it is anybody's word."""

    form: Literal["simple", "bundle", "model", "report"]
    artifact: str
    """The digest of what says so."""
    predicate: str = ""
    subjects: tuple[str, ...] = ()
    """Digests of what it is about."""
    reference: str = ""
    """The image that it names, where it names one."""
    made_at: float | None = None
    """When it was made, by its own word."""
    signers: tuple[Signer, ...] = ()
    problem: str = ""
    """Why it doesn't count at all: the rest of a sentence."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be mounted."""

    reference: Reference
    """As the volume names it."""
    manifest: str
    """The digest that is mounted."""


def check(demands: Sequence[Demand], where: str) -> None:
    """Raise InvalidRequest for demands that nothing can meet. `where` is whose they are."""
    for demand in demands:
        if bool(demand.identities) != bool(demand.trusted_root):
            raise InvalidRequest(f"{where}: `identities` and `trusted_root` go together")
        for path in (*demand.keys, *([demand.trusted_root] if demand.trusted_root else [])):
            if not path.startswith("/"):
                raise InvalidRequest(f"{where}: {path!r} is not an absolute path")
        if isinstance(demand, Signature):
            if not demand.are_named:
                raise InvalidRequest(f"{where}: `signatures` need `keys` or `identities`")
            if not demand.forms:
                raise InvalidRequest(f"{where}: `forms` leaves none")
        elif not demand.type:
            raise InvalidRequest(f"{where}: `attestations` need a `type`")


def lacking(
    demand: Demand, authorities: Collection[str], statements: Iterable[Statement], asked: Asked, now: float
) -> str:
    """What keeps the demand from being met, as a sentence's rest; empty when one of the statements meets it.
    `authorities` are those of its signers.
    """
    reasons: list[str] = []  # the first are of statements by who is named: they tell most
    ours = 0
    for statement in statements:
        if not _is_candidate(demand, statement):
            continue
        why = _fault(demand, authorities, statement, asked, now)
        if not why:
            return ""
        if why in reasons:
            continue
        if any(signer.authority in authorities for signer in statement.signers):
            reasons.insert(ours, why)
            ours += 1
        else:
            reasons.append(why)
    nothing = f"{asked.reference.repository}@{asked.manifest} has no {_called(demand)}"
    if not reasons:
        return nothing
    return f"{nothing} that counts: {'; '.join(reasons[:MOST_REASONS])}"


def signers(
    demand: Demand, authorities: Collection[str], statements: Iterable[Statement], asked: Asked, now: float
) -> set[str]:
    """Who signed the statements that meet the demand; nobody where it takes some that nobody signed."""
    return {
        signer.name
        for statement in statements
        if _is_candidate(demand, statement) and not _fault(demand, authorities, statement, asked, now)
        for signer in statement.signers
        if signer.authority in authorities
    }


def _is_candidate(demand: Demand, statement: Statement) -> bool:
    if isinstance(demand, Attestation):
        return demand.is_about(statement.predicate) or (bool(statement.problem) and not statement.predicate)
    return demand.is_about(statement)


def _fault(demand: Demand, authorities: Collection[str], statement: Statement, asked: Asked, now: float) -> str:
    """Why this statement doesn't meet the demand."""
    if statement.problem:
        return f"one {statement.problem}"
    if demand.are_named and not any(signer.authority in authorities for signer in statement.signers):
        return "one is by none of the keys and identities of the rule"
    if asked.manifest not in statement.subjects:
        about = ", ".join(statement.subjects[:MOST_REASONS]) or "nothing"
        return f"one is about another artifact ({about})"
    if isinstance(demand, Signature):
        return _other_place(demand, statement, asked.reference)
    if demand.max_age_hours is None:
        return ""
    if statement.made_at is None or statement.made_at > now + AHEAD_SECONDS:
        return "one doesn't say when it was made" if statement.made_at is None else "one is from the future"
    hours = (now - statement.made_at) / 3600
    return f"one is {hours:.0f} hours old, and may be {demand.max_age_hours}" if hours > demand.max_age_hours else ""


def _other_place(demand: Signature, statement: Statement, reference: Reference) -> str:
    """What is signed for one repository, or one tag, doesn't count for another."""
    if demand.repository == "any" or not statement.reference:
        return ""
    named, _, _ = statement.reference.partition("@")
    place, colon, tag = named.rpartition(":")
    if not colon or "/" in tag:
        place, tag = named, ""
    if place != str(reference.repository):
        return f"one is for another repository ({place[:128]})"
    if tag and reference.digest is None and tag != (reference.tag or "latest"):
        return f"one is for another tag ({tag[:128]})"
    return ""


def _called(demand: Demand) -> str:
    if isinstance(demand, Attestation):
        return f"attestation of type {demand.type!r}"
    return "signature"
