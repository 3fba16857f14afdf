"""Certificates by an own Sigstore, offline, in the real process without rights."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from modelmount.policy.signing import Statement
from modelmount.signatures import process
from modelmount.signatures.messages import Piece, Task, Vouched
from tests.fakes import signing
from tests.fakes.sigstore import IDENTITY, ISSUER, Sigstore
from tests.unit.signatures.test_checks import DIGEST

OURS = Sigstore()


def judge(
    *bundles: bytes, identity: str = IDENTITY, issuer: str = ISSUER, roots: list[bytes] | None = None
) -> list[Statement]:
    pieces = [Piece("bundle", f"piece {number}", bundle) for number, bundle in enumerate(bundles)]
    roots = [OURS.trusted_root()] if roots is None else roots
    named = [Vouched("ours", identity, issuer, number) for number in range(len(roots))]
    return process.judge(Task(DIGEST, b"a manifest", None, [], named, roots, pieces))


def changed(bundle: bytes, *path: str | int, to: Any) -> bytes:
    """The bundle with one value replaced."""
    whole = json.loads(bundle)
    place = whole
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return json.dumps(whole).encode()


def test_certificates() -> None:
    """All in one process: each start of it takes as long as all the rest."""
    good = OURS.bundle(signing.statement(DIGEST))
    log = ("verificationMaterial", "tlogEntries", 0)
    late = OURS.bundle(signing.statement(DIGEST), logged_after=datetime.timedelta(minutes=11))
    early = OURS.bundle(signing.statement(DIGEST), logged_after=datetime.timedelta(minutes=-1))
    another = OURS.bundle(signing.statement(DIGEST), identity="somebody@example.com")
    elsewhere = OURS.bundle(signing.statement(DIGEST), issuer="https://evil.example.com")
    foreign = Sigstore().bundle(signing.statement(DIGEST))
    payload = changed(good, "dsseEnvelope", "payload", to=json.loads(another)["dsseEnvelope"]["payload"] + "AAAA")
    bundles = {
        "good": good,
        "message": OURS.message_bundle(b"a manifest"),
        "other message": OURS.message_bundle(b"another manifest"),
        "expired": late,
        "not yet": early,
        "identity": another,
        "issuer": elsewhere,
        "authority": foreign,
        "payload": payload,
        "time": changed(good, *log, "integratedTime", to=json.loads(late)[log[0]][log[1]][0]["integratedTime"]),
        "no log": changed(good, "verificationMaterial", "tlogEntries", to=[]),
        "no proof": changed(good, *log, "inclusionProof", to=None),
        "other entry": changed(good, *log, to=json.loads(another)[log[0]][log[1]][0]),
        "rubbish": changed(good, "verificationMaterial", "certificate", "rawBytes", to="AAAA"),
    }
    found = dict(zip(bundles, judge(*bundles.values()), strict=True))
    for name in ("good", "message"):
        assert found[name].problem == ""
        assert [signer.name for signer in found[name].signers] == [f"{IDENTITY} ({ISSUER})"]
        assert found[name].subjects == (DIGEST,)
    refused = {name: statement.problem for name, statement in found.items() if name not in {"good", "message"}}
    assert all(not found[name].signers for name in refused)
    for name, why in {
        "other message": "digest mismatch",
        "expired": "not valid|validity|expired",
        "identity": "it is for somebody@example.com",
        "issuer": "by https://evil.example.com",
    }.items():
        assert any(each in refused[name] for each in why.split("|")), refused[name]
    assert all("has a certificate that doesn't count" in why or "can't be read" in why for why in refused.values())


def test_a_root_that_is_listed_vouches_for_its_own_identities() -> None:
    """Of several roots each counts, and rubbish in their place is the policy's fault, not the model's."""
    other = Sigstore()
    (found,) = judge(OURS.bundle(signing.statement(DIGEST)), roots=[other.trusted_root(), OURS.trusted_root()])
    assert [signer.name for signer in found.signers] == [f"{IDENTITY} ({ISSUER})"]
    with pytest.raises(process.ProcessError, match="trusted_root of the policy can't be used"):
        judge(OURS.bundle(signing.statement(DIGEST)), roots=[b"rubbish"])


def test_what_has_ended_in_a_root_vouches_only_for_what_was_signed_before() -> None:
    """An authority or a log, whose certificates and keys are good for longer. What is signed here is logged a minute
    after `now`.
    """
    good, root = OURS.bundle(signing.statement(DIGEST)), OURS.trusted_root()

    def roots(**span: datetime.timedelta) -> list[bytes]:
        told = {name: (OURS.now + after).isoformat() for name, after in span.items()}
        return [
            changed(root, *path, "validFor", to={"start": "2020-01-01T00:00:00Z", **told})
            for path in (("certificateAuthorities", 0), ("tlogs", 0, "publicKey"), ("ctlogs", 0, "publicKey"))
        ]

    signed = datetime.timedelta(minutes=1)
    second = datetime.timedelta(seconds=1)
    for each in (*roots(end=signed - second), *roots(start=signed + second)):
        (found,) = judge(good, roots=[each])
        assert not found.signers
        assert "has a certificate that doesn't count" in found.problem
    for each in (*roots(end=signed), *roots(start=signed)):
        (found,) = judge(good, roots=[each])
        assert [signer.name for signer in found.signers] == [f"{IDENTITY} ({ISSUER})"]


def test_times_that_no_calendar_has_are_in_nobodys_way() -> None:
    good = OURS.bundle(signing.statement(DIGEST))
    path = ("verificationMaterial", "tlogEntries", 0, "integratedTime")
    times = (10**12, 2**63 - 1, 2**63, 2**64 - 1)
    *refused, last = judge(*(changed(good, *path, to=str(time)) for time in times), good)
    assert last.signers
    assert not any(statement.signers for statement in refused)


def test_bundles_that_are_heavy_to_read_are_refused_and_in_nobodys_way() -> None:
    """Each within what is read of a document; together they leave the process its time and memory for the good one."""
    good = OURS.bundle(signing.statement(DIGEST))
    kept = json.loads(good)
    certificate, entry = kept["verificationMaterial"]["certificate"], kept["verificationMaterial"]["tlogEntries"][0]
    stamp = {"signedTimestamp": "MIIB" * 50}
    hashes = ["A" * 43 + "="] * 60_000
    heavy = [
        changed(good, "verificationMaterial", to={"x509CertificateChain": {"certificates": [certificate] * 3000}}),
        changed(good, "verificationMaterial", "tlogEntries", to=[entry] * 1500),
        changed(good, "verificationMaterial", "tlogEntries", 0, "inclusionProof", "hashes", to=hashes),
        changed(good, "dsseEnvelope", "signatures", to=kept["dsseEnvelope"]["signatures"] * 20_000),
        changed(good, "verificationMaterial", "timestampVerificationData", to={"rfc3161Timestamps": [stamp] * 8000}),
    ]
    *refused, last = judge(*heavy, good)
    assert [signer.name for signer in last.signers] == [f"{IDENTITY} ({ISSUER})"]
    assert not any(statement.signers for statement in refused)
