"""Judging evidence: what cosign and model-signing themselves wrote, keys of every kind, and what is no evidence."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from modelmount.policy.signing import Signer, Statement
from modelmount.signatures import checks
from modelmount.signatures.messages import Key, Piece, Task
from tests.fakes import signing

HERE = Path(__file__).parent
DIGEST = "sha256:" + hashlib.sha256(b"a manifest").hexdigest()


def key_of(pem: bytes) -> Key:
    der = load_pem_public_key(pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Key("ours", der, "ours.pub")


def judge(pem: bytes, *pieces: Piece, digest: str = DIGEST, **changes: Any) -> list[Statement]:
    fields = {"manifest": b"a manifest", "files": None, "identities": [], "roots": [], **changes}
    return checks.judge(Task(digest=digest, keys=[key_of(pem)], pieces=list(pieces), **fields))


def test_what_cosign_itself_wrote() -> None:
    """Each form of cosign 3.1.3: simple signing, both kinds of attestations, a bundle of each kind."""
    made = json.loads((HERE / "cosign.json").read_text())
    pieces = [Piece(p["kind"], f"piece {n}", p["data"].encode(), p["signature"]) for n, p in enumerate(made["pieces"])]
    manifest = base64.b64decode(made["manifest"])
    found = judge(made["key"].encode(), *pieces, digest=made["digest"], manifest=manifest)
    assert [(s.form, s.predicate) for s in found] == [
        ("simple", ""),
        ("bundle", signing.CYCLONEDX),
        ("bundle", signing.SIGN),
        ("bundle", signing.CYCLONEDX),
        ("bundle", ""),
    ]
    for statement in found:
        assert statement.problem == ""
        assert statement.subjects == (made["digest"],)
        assert statement.signers == (Signer("ours", "ours.pub"),)
    assert found[0].reference == made["place"]
    assert found[1].made_at == found[3].made_at == 1795600800.0
    by_nobody = judge(signing.Key().pem, *pieces, digest=made["digest"], manifest=manifest)
    assert [s.signers for s in by_nobody] == [()] * 5


def test_what_model_signing_itself_wrote() -> None:
    made = json.loads((HERE / "model_signing.json").read_text())
    piece = Piece("bundle", "model.sig", made["bundle"].encode())
    files = list(made["files"].items())
    (found,) = judge(made["key"].encode(), piece, files=files)
    assert (found.form, found.subjects, found.problem) == ("model", (DIGEST,), "")
    assert found.signers == (Signer("ours", "ours.pub"),)
    for other, problem in (
        ([*files, ("more.bin", DIGEST)], "doesn't list the file 'more.bin'"),
        (files[:1], "lists the file 'sub/model.safetensors', which the model doesn't have"),
        ([files[0], (files[1][0], DIGEST)], "lists other bytes of the file 'sub/model.safetensors'"),
        (None, "are packed"),
    ):
        (found,) = judge(made["key"].encode(), piece, files=other)
        assert problem in found.problem
        assert found.signers == ()
    (ignored,) = judge(made["key"].encode(), piece, files=[*files, (".git/config", DIGEST)])
    assert ignored.problem == ""


@pytest.mark.parametrize(
    "private",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate,
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["p256", "p384", "p521", "ed25519", "rsa"],
)
def test_keys(private: Callable[[], signing.Private]) -> None:
    key = signing.Key(private())
    payload, signature = key.simple(DIGEST, "a.example/b")
    pieces = [
        Piece("simple", "1", payload, signature),
        Piece("bundle", "2", key.bundle(signing.statement(DIGEST))),
        Piece("bundle", "3", key.message_bundle(b"a manifest")),
    ]
    assert [s.signers for s in judge(key.pem, *pieces)] == [(Signer("ours", "ours.pub"),)] * 3
    assert [s.signers for s in judge(signing.Key().pem, *pieces)] == [()] * 3


KEY = signing.Key()


def tampered() -> Piece:
    bundle = json.loads(KEY.bundle(signing.statement(DIGEST)))
    statement = json.dumps(signing.statement(DIGEST, "https://another.example")).encode()
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(statement).decode()
    return Piece("bundle", "x", json.dumps(bundle).encode())


def retyped() -> Piece:
    """The signature covers the type of the payload, too."""
    envelope = KEY.envelope(signing.statement(DIGEST), "application/other")
    envelope["payloadType"] = signing.IN_TOTO
    return Piece("envelope", "x", json.dumps(envelope).encode())


def altered(**changes: Any) -> Piece:
    bundle = json.loads(KEY.bundle(signing.statement(DIGEST)))
    return Piece("bundle", "x", json.dumps({k: v for k, v in {**bundle, **changes}.items() if v is not None}).encode())


def stated(value: object) -> Piece:
    return Piece("envelope", "x", json.dumps(KEY.envelope(value)).encode())  # type: ignore[arg-type]


@pytest.mark.parametrize("piece", [tampered(), retyped()], ids=["payload", "type"])
def test_a_signature_that_is_not_over_what_it_says(piece: Piece) -> None:
    (found,) = judge(KEY.pem, piece)
    assert found.signers == ()


@pytest.mark.parametrize(
    ("piece", "problem"),
    [
        (Piece("simple", "x", b"{}", "%%"), "no base64"),
        (Piece("simple", "x", b"[]", base64.b64encode(KEY.sign(b"[]")).decode()), "no payload that can be read"),
        (Piece("simple", "x", b"{}", base64.b64encode(KEY.sign(b"{}")).decode()), "no critical that can be read"),
        (Piece("bundle", "x", b""), "can't be read"),
        (Piece("bundle", "x", b'{"a": 1, "a": 2}'), "the same key twice"),
        (Piece("bundle", "x", b"[" * 5000), "nested too deeply"),
        (altered(mediaType="application/vnd.dev.sigstore.bundle.v9+json"), "of a version that isn't read"),
        (altered(dsseEnvelope=None), "without a signature"),
        (altered(messageSignature={}), "or with two"),
        (altered(verificationMaterial={"certificate": {"rawBytes": "AA=="}}), "the rule names no identities"),
        (altered(verificationMaterial=None), "no verificationMaterial"),
        (altered(dsseEnvelope={"payload": "", "payloadType": "x", "signatures": []}), "without signatures"),
        (stated([]), "no statement that can be read"),
        (stated({**signing.statement(DIGEST), "_type": "https://other.example"}), "no statement of in-toto"),
        (stated({**signing.statement(DIGEST), "predicateType": ""}), "of no type"),
        (stated({**signing.statement(DIGEST), "subject": 5}), "about nothing"),
        (stated({**signing.statement(DIGEST), "subject": [{"digest": {"sha256": "0" * 64}}] * 99}), "more than 64"),
        (
            stated({**signing.statement(DIGEST), "subject": [{"digest": {"sha256": "\ud800" * 64}}]}),
            "half of a surrogate",
        ),
        (stated({**signing.statement(DIGEST), "predicate": {"Timestamp": "\udfff"}}), "half of a surrogate"),
        (stated({**signing.model_statement({"a": b""}), "subject": []}), "are packed"),
    ],
)
def test_what_is_no_evidence(piece: Piece, problem: str) -> None:
    (found,) = judge(KEY.pem, piece)
    assert problem in found.problem
    assert found.signers == ()


def test_whatever_a_library_makes_of_one_piece_the_others_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(data: bytes, task: Task) -> Any:
        raise OverflowError("too large")

    monkeypatch.setattr(checks, "certified", breaks)
    ours = signing.Key()
    good = ours.bundle(signing.statement(DIGEST))
    bad = json.dumps({**json.loads(good), "verificationMaterial": {"certificate": {}}}).encode()
    broken, found = judge(ours.pem, Piece("bundle", "bad", bad), Piece("bundle", "good", good))
    assert broken.problem == "can't be read (OverflowError: too large)"
    assert not broken.signers
    assert found.signers == (Signer("ours", "ours.pub"),)


def test_lists_of_files_that_contradict_themselves() -> None:
    files = [("a", "sha256:" + hashlib.sha256(b"x").hexdigest())]
    good = signing.model_statement({"a": b"x"})
    (found,) = judge(KEY.pem, stated(good), files=files)
    assert found.problem == ""
    wrong_root = {**good, "subject": [{"name": "m", "digest": {"sha256": "0" * 64}}]}
    resources = good["predicate"]["resources"]
    twice = {**good, "predicate": {**good["predicate"], "resources": resources * 2}}
    shards = {**good, "predicate": {**good["predicate"], "serialization": {"method": "shards"}}}
    for statement, problem in (
        (wrong_root, "other files than its own digest says"),
        (twice, "lists a file twice"),
        (shards, "by another method"),
    ):
        (found,) = judge(KEY.pem, stated(statement), files=files)
        assert problem in found.problem
        assert found.signers == ()


def test_a_key_of_a_kind_that_is_not_used() -> None:
    with pytest.raises(checks.Unusable, match=r"ours\.pub is no public key"):
        checks.judge(Task(DIGEST, b"", None, [Key("ours", b"rubbish", "ours.pub")], [], [], []))
