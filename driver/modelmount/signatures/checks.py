"""Judging pieces of evidence: whose signatures are good, and what exactly was signed. In a process of its own only.

Sources: cosign `specs/SIGNATURE_SPEC.md` and `specs/BUNDLE_SPEC.md`, Sigstore's bundle v0.3
(`protobuf-specs/protos/sigstore_bundle.proto`), DSSE `protocol.md` v1.0, in-toto `spec/v1/statement.md`, OpenSSF model
signing v1.0. A signature is checked over the bytes as they came, and only then they are read. What the registry says
about a piece counts for nothing.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from modelmount.errors import BadArtifact
from modelmount.oci.manifest import strict_json
from modelmount.policy.signing import MODEL_SIGNING, Signer, Statement
from modelmount.signatures.messages import Key, Piece, Task

IN_TOTO: Final = "application/vnd.in-toto+json"
MOST_SUBJECTS: Final = 64
MOST_SIGNATURES: Final = 16
MOST_CHARACTERS: Final = 512
SIMPLE_TYPE: Final = "cosign container image signature"
BUNDLE_TYPES: Final = (
    "application/vnd.dev.sigstore.bundle.v0.3+json",
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
    "application/vnd.dev.sigstore.bundle+json;version=0.2",
    "application/vnd.dev.sigstore.bundle+json;version=0.1",
)

Certified = Callable[[bytes, Task], "tuple[Signer, bytes | None]"]
"""Who signed a bundle that has a certificate, and what: the envelope's payload, or None where it is the manifest.
Raises Wrong.
"""

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


class Wrong(Exception):
    """The piece is no evidence. The text goes on after "one"."""


class Unusable(Exception):
    """A key or trusted root of the policy can't be used. The text is a sentence's rest."""


def _not_certified(data: bytes, task: Task) -> tuple[Signer, bytes | None]:
    raise Wrong("is by a certificate, and the rule names no identities")


certified: Certified = _not_certified
"""Set by `keyless`, where the policy names identities."""


def judge(task: Task) -> list[Statement]:
    """One statement for each piece, in their order. Raises Unusable for keys and roots."""
    keys = [(key, _public_key(key)) for key in task.keys]
    return [_judge(task, keys, piece) for piece in task.pieces]


def warm_up() -> None:
    """Use everything once: libraries set themselves up at their first use, and open files for it."""
    private = ec.generate_private_key(ec.SECP256R1())
    der = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key = Key("", der, "")
    _is_by(_public_key(key), private.sign(b"", ec.ECDSA(hashes.SHA256())), b"")
    edwards = ed25519.Ed25519PrivateKey.generate()
    _is_by(edwards.public_key(), edwards.sign(b""), b"")
    _is_by(rsa.RSAPublicNumbers(65537, (1 << 2047) + 1).public_key(), bytes(256), b"")
    _time("2026-01-01T00:00:00Z")
    for name in ("sha256", "sha512"):
        hashlib.new(name, b"").hexdigest()
    strict_json(b'{"\\u00e4": [1.5]}')


def _judge(task: Task, keys: Sequence[tuple[Key, PublicKey]], piece: Piece) -> Statement:
    try:
        match piece.kind:
            case "simple":
                return _simple(keys, piece)
            case "envelope":
                return _envelope(task, keys, piece, _object(piece.data, "envelope"))
            case "bundle":
                return _bundle(task, keys, piece)
            case "report":
                return _report(task, piece)
    except Unusable:
        raise
    except Exception as e:  # noqa: BLE001 - whatever a library makes of one piece must not take the others' word
        why = str(e) if isinstance(e, Wrong) else f"can't be read ({type(e).__name__}: {e})"
        return Statement(form=piece.form, artifact=piece.artifact, problem=_short(why))


# -- the forms


def _simple(keys: Sequence[tuple[Key, PublicKey]], piece: Piece) -> Statement:
    signature = _base64(piece.signature)
    signers = _signers(keys, [signature], piece.data)
    if not signers:
        return Statement(form="simple", artifact=piece.artifact)
    critical = _mapping(_object(piece.data, "payload").get("critical"), "critical")
    if critical.get("type") != SIMPLE_TYPE:
        raise Wrong("is no signature of an image by what it says itself")
    digest = _text(_mapping(critical.get("image"), "image").get("docker-manifest-digest"))
    reference = _text(_mapping(critical.get("identity"), "identity").get("docker-reference"))
    return Statement(
        form="simple", artifact=piece.artifact, subjects=(digest,), reference=_reference(reference), signers=signers
    )


def _bundle(task: Task, keys: Sequence[tuple[Key, PublicKey]], piece: Piece) -> Statement:
    bundle = _object(piece.data, "bundle")
    if bundle.get("mediaType") not in BUNDLE_TYPES:
        raise Wrong("is a bundle of a version that isn't read")
    material = _mapping(bundle.get("verificationMaterial"), "verificationMaterial")
    envelope = bundle.get("dsseEnvelope")
    if (envelope is None) == (bundle.get("messageSignature") is None):
        raise Wrong("is a bundle without a signature, or with two")
    if "certificate" in material or "x509CertificateChain" in material:
        signer, payload = certified(piece.data, task)
        if payload is not None:
            return _statement(task, piece, payload, (signer,))
        return Statement(form="bundle", artifact=piece.artifact, subjects=(task.digest,), signers=(signer,))
    if envelope is not None:
        return _envelope(task, keys, piece, _mapping(envelope, "dsseEnvelope"))
    message = _mapping(bundle["messageSignature"], "messageSignature")
    signers = _signers(keys, [_base64(_text(message.get("signature")))], task.manifest)
    if not signers:
        # It may be good over something else, which nobody can tell.
        return Statement(form="bundle", artifact=piece.artifact)
    return Statement(form="bundle", artifact=piece.artifact, subjects=(task.digest,), signers=signers)


def _envelope(
    task: Task, keys: Sequence[tuple[Key, PublicKey]], piece: Piece, envelope: Mapping[str, Any]
) -> Statement:
    payload_type = _text(envelope.get("payloadType"))
    payload = _base64(_text(envelope.get("payload")))
    found = envelope.get("signatures")
    if not isinstance(found, list) or not 0 < len(found) <= MOST_SIGNATURES:
        raise Wrong("is an envelope without signatures, or with very many")
    signatures = [_base64(_text(_mapping(each, "signature").get("sig"))) for each in found]
    if payload_type != IN_TOTO:
        raise Wrong(f"says something of a type that isn't read ({payload_type})")
    return _statement(task, piece, payload, _signers(keys, signatures, pae(payload_type, payload)))


def _statement(task: Task, piece: Piece, payload: bytes, signers: tuple[Signer, ...]) -> Statement:
    """What an in-toto statement says. Without signers it is what somebody says that it says."""
    statement = _object(payload, "statement")
    if not _text(statement.get("_type")).startswith("https://in-toto.io/Statement/"):
        raise Wrong("is no statement of in-toto")
    predicate_type = _text(statement.get("predicateType"))
    listed = statement.get("subject")
    if not predicate_type or not isinstance(listed, list):
        raise Wrong("is a statement about nothing, or of no type")
    predicate = statement.get("predicate")
    if predicate_type in MODEL_SIGNING:
        _require_files(task, predicate_type, listed, predicate)
        return Statement(
            form="model",
            artifact=piece.artifact,
            predicate=predicate_type,
            subjects=(task.digest,),
            signers=signers,
        )
    if len(listed) > MOST_SUBJECTS:
        raise Wrong(f"is a statement about more than {MOST_SUBJECTS} artifacts")
    subjects = tuple(
        f"sha256:{digest}"
        for each in listed
        if (digest := _mapping(_mapping(each, "subject").get("digest") or {}, "digest").get("sha256"))
        and isinstance(digest, str)
        and len(digest) == 64
    )
    return Statement(
        form="bundle",
        artifact=piece.artifact,
        predicate=_short(predicate_type),
        subjects=subjects,
        made_at=_made_at(predicate),
        signers=signers,
    )


def _report(task: Task, piece: Piece) -> Statement:
    """A report as it is, such as Trivy writes it: about the manifest because the registry says so, signed by nobody."""
    try:
        made_at = _made_at(_object(piece.data, "report"))
    except (Wrong, BadArtifact):
        made_at = None  # not every report is JSON
    return Statement(
        form="report",
        artifact=piece.artifact,
        predicate=_short(piece.predicate),
        subjects=(task.digest,),
        made_at=made_at if made_at is not None else _time(piece.made_at),
    )


def _require_files(task: Task, predicate_type: str, listed: list[Any], predicate: Any) -> None:
    """OpenSSF model signing: the files that were signed are exactly those of the model, by the digests of its layers,
    which are those of its files. Raises Wrong.
    """
    if task.files is None:
        raise Wrong("lists files, and this model's are packed, so that their digests aren't known before they are read")
    ignored: list[str] = []
    signed: dict[str, str] = {}
    if predicate_type == MODEL_SIGNING[0]:
        fields = _mapping(predicate, "predicate")
        serialization = _mapping(fields.get("serialization"), "serialization")
        if serialization.get("method") != "files" or serialization.get("hash_type", "sha256") != "sha256":
            raise Wrong("lists files by another method than by the SHA-256 of each")
        ignored = [_text(each) for each in serialization.get("ignore_paths") or []]
        root = hashlib.sha256()
        for each in fields["resources"]:
            if each["algorithm"] != "sha256":
                raise Wrong("lists files by another method than by the SHA-256 of each")
            root.update(bytes.fromhex(each["digest"]))
            _note(signed, each["name"], each["digest"])
        if len(listed) != 1 or listed[0]["digest"]["sha256"] != root.hexdigest():
            raise Wrong("lists other files than its own digest says")
    else:
        for each in listed:
            _note(signed, each["name"], each["digest"]["sha256"])
    for path, digest in task.files:
        if any(path == each or path.startswith(f"{each}/") for each in ignored):
            continue
        found = signed.pop(path, None)
        if found is None:
            raise Wrong(f"doesn't list the file {path!a}, which the model has")
        if f"sha256:{found}" != digest:
            raise Wrong(f"lists other bytes of the file {path!a}")
    if signed:
        raise Wrong(f"lists the file {next(iter(signed))!a}, which the model doesn't have")


def _note(signed: dict[str, str], name: Any, digest: Any) -> None:
    if not isinstance(name, str) or not isinstance(digest, str) or name in signed:
        raise Wrong("lists a file twice, or without a name")
    signed[name] = digest


# -- signatures


def pae(payload_type: str, payload: bytes) -> bytes:
    """What an envelope's signatures are over (DSSE `protocol.md`, "Signature Definition")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _public_key(key: Key) -> PublicKey:
    try:
        found = load_der_public_key(key.data)
    except (ValueError, UnsupportedAlgorithm) as e:
        raise Unusable(f"{key.name} is no public key that can be used: {e}") from e
    if isinstance(found, PublicKey):
        return found
    raise Unusable(f"{key.name} is of a kind that isn't used: ECDSA, Ed25519 and RSA are")


def _signers(keys: Sequence[tuple[Key, PublicKey]], signatures: Sequence[bytes], message: bytes) -> tuple[Signer, ...]:
    return tuple(
        Signer(key.authority, key.name)
        for key, public in keys
        if any(_is_by(public, signature, message) for signature in signatures)
    )


def _is_by(public: PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether the signature over the message is of this key, by one of the ways in which such keys sign."""
    ways: list[Callable[[], None]]
    match public:
        case ec.EllipticCurvePublicKey():
            own = {384: hashes.SHA384(), 521: hashes.SHA512()}.get(public.curve.key_size)
            ways = [
                functools.partial(public.verify, signature, message, ec.ECDSA(each))
                for each in [hashes.SHA256(), *([own] if own is not None else [])]
            ]
        case ed25519.Ed25519PublicKey():
            ways = [lambda: public.verify(signature, message)]
        case _:
            ways = [
                lambda: public.verify(signature, message, padding.PKCS1v15(), hashes.SHA256()),
                lambda: public.verify(
                    signature, message, padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO), hashes.SHA256()
                ),
            ]
    for way in ways:
        try:
            way()
        except InvalidSignature:
            continue
        return True
    return False


# -- reading


def _made_at(predicate: Any) -> float | None:
    """When a predicate or report says that it was made, by what its kinds call it."""
    for path in (
        ("metadata", "scanFinishedOn"),  # cosign's and in-toto's vulnerability attestations
        ("runDetails", "metadata", "finishedOn"),  # SLSA 1
        ("metadata", "buildFinishedOn"),  # SLSA 0.2
        ("metadata", "timestamp"),  # CycloneDX
        ("creationInfo", "created"),  # SPDX
        ("CreatedAt",),  # Trivy
        ("Timestamp",),  # cosign's custom predicate
        ("timestamp",),
    ):
        found: Any = predicate
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, str):
            return _time(found)
    return None


def _time(text: str) -> float | None:
    """RFC 3339; None for what has no zone, or is no time."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return found.timestamp() if found.tzinfo is not None else None


def _object(data: bytes, what: str) -> Mapping[str, Any]:
    return _mapping(strict_json(data), what)


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Wrong(f"has no {what} that can be read")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Wrong("has something else where text belongs")
    return value


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise Wrong("has a signature or payload that is no base64") from e


def _reference(text: str) -> str:
    """As our references name Docker's own registry."""
    if text.startswith("index.docker.io/"):
        return _short(text.replace("index.docker.io/", "docker.io/", 1))
    return _short(text)


def _short(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:MOST_CHARACTERS])
