"""Signing models in tests, with keys made there: what cosign 3, model-signing 1 and Trivy put into a registry, by their
specifications and byte for byte in their order of keys. `fixtures` of `tests/unit/signatures` are of the programs
themselves.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.fakes.push import EMPTY, INDEX, MANIFEST, Artifact, Layer, Pushed, Pusher, RefusedError

SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
IN_TOTO = "application/vnd.in-toto+json"
SIGN = "https://sigstore.dev/cosign/sign/v1"
VULNERABILITIES = "https://cosign.sigstore.dev/attestation/vuln/v1"
CYCLONEDX = "https://cyclonedx.org/bom"
MODEL_SIGNING = "https://model_signing/signature/v1.0"
TRIVY = "application/vnd.aquasec.trivy.report.v1+json"

Private = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


class Key:
    """A key pair; ECDSA on P-256 unless another is given, as cosign makes it."""

    def __init__(self, private: Private | None = None) -> None:
        self.private = private if private is not None else ec.generate_private_key(ec.SECP256R1())

    @property
    def pem(self) -> bytes:
        """The public key."""
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def write(self, path: Path) -> Path:
        """The public key, into a file."""
        path.write_bytes(self.pem)
        return path

    def sign(self, message: bytes) -> bytes:
        """As cosign signs with keys of this kind."""
        match self.private:
            case ec.EllipticCurvePrivateKey() as private:
                return private.sign(message, ec.ECDSA(hashes.SHA256()))
            case ed25519.Ed25519PrivateKey() as private:
                return private.sign(message)
            case rsa.RSAPrivateKey() as private:
                return private.sign(message, padding.PKCS1v15(), hashes.SHA256())

    # -- what is signed

    def simple(self, digest: str, reference: str) -> tuple[bytes, str]:
        """A payload of simple signing, and its signature in base64."""
        critical = {
            "identity": {"docker-reference": reference},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        }
        payload = _json({"critical": critical, "optional": None})
        return payload, _base64(self.sign(payload))

    def envelope(self, statement: Mapping[str, Any], payload_type: str = IN_TOTO) -> dict[str, Any]:
        """A DSSE envelope around an in-toto statement."""
        payload = _json(statement)
        return {
            "payload": _base64(payload),
            "payloadType": payload_type,
            "signatures": [{"sig": _base64(self.sign(pae(payload_type, payload)))}],
        }

    def bundle(self, statement: Mapping[str, Any]) -> bytes:
        """A bundle with an envelope in it."""
        return _json({**self._material(), "dsseEnvelope": self.envelope(statement)})

    def message_bundle(self, message: bytes) -> bytes:
        """A bundle with a signature over bytes, as `cosign sign-blob --bundle` makes it."""
        digest = {"algorithm": "SHA2_256", "digest": _base64(hashlib.sha256(message).digest())}
        return _json(
            {
                **self._material(),
                "messageSignature": {"messageDigest": digest, "signature": _base64(self.sign(message))},
            }
        )

    def _material(self) -> dict[str, Any]:
        der = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        hint = _base64(hashlib.sha256(der).digest())
        return {"mediaType": BUNDLE, "verificationMaterial": {"publicKey": {"hint": hint}}}


def statement(digest: str, predicate_type: str = SIGN, predicate: Any = None) -> dict[str, Any]:
    """An in-toto statement about one manifest."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": predicate_type,
        "predicate": {} if predicate is None else predicate,
    }


def model_statement(files: Mapping[str, bytes], *, ignored: Sequence[str] = ("model.sig", ".git")) -> dict[str, Any]:
    """As model-signing makes it of a directory with these files."""
    digests = {name: hashlib.sha256(files[name]) for name in sorted(files)}
    root = hashlib.sha256(b"".join(each.digest() for each in digests.values())).hexdigest()
    serialization = {
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
        "ignore_paths": list(ignored),
    }
    resources = [{"name": name, "algorithm": "sha256", "digest": d.hexdigest()} for name, d in digests.items()]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model", "digest": {"sha256": root}}],
        "predicateType": MODEL_SIGNING,
        "predicate": {"serialization": serialization, "resources": resources},
    }


def scan(hours_ago: float = 1.0) -> dict[str, Any]:
    """A vulnerability attestation's predicate."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - hours_ago * 3600))
    scanner = {"uri": "pkg:github/aquasecurity/trivy", "version": "0.68.0", "result": {"Results": []}}
    return {"scanner": scanner, "metadata": {"scanStartedOn": at, "scanFinishedOn": at}}


class Attacher:
    """Puts what is signed beside a model, as its tools do."""

    def __init__(self, pusher: Pusher) -> None:
        self._pusher = pusher

    def simple(self, pushed: Pushed, *signed: tuple[bytes, str], digest: str = "", repository: str = "") -> None:
        """Simple signatures under cosign's tag of the model, or of another `digest`."""
        layers = [Layer(SIMPLE, payload, {"dev.cosignproject.cosign/signature": sig}) for payload, sig in signed]
        self._tagged(repository or pushed.repository, tag(digest or pushed.digest) + ".sig", layers)

    def attestation(self, pushed: Pushed, *envelopes: Mapping[str, Any]) -> None:
        """Envelopes under the tag that cosign 2 had for attestations."""
        layers = [Layer(ENVELOPE, _json(each), {"dev.cosignproject.cosign/signature": ""}) for each in envelopes]
        self._tagged(pushed.repository, tag(pushed.digest) + ".att", layers)

    def bundle(self, pushed: Pushed, bundle: bytes, predicate: str = SIGN) -> str:
        """A bundle that refers to the model; the digest of its manifest."""
        annotations = {
            "dev.sigstore.bundle.content": "dsse-envelope",
            "dev.sigstore.bundle.predicateType": predicate,
            "org.opencontainers.image.created": "2026-11-25T10:00:00Z",
        }
        return self.referrer(pushed, BUNDLE, BUNDLE, bundle, annotations)

    def referrer(
        self, pushed: Pushed, artifact_type: str, media_type: str, data: bytes, annotations: Mapping[str, str]
    ) -> str:
        """Something that has the model as its subject: pushed, and listed by the tag that stands for a list (OCI
        distribution-spec 1.1, "Referrers Tag Schema"); the digest of its manifest.
        """
        config, _ = self._pusher.blob(pushed.repository, b"{}")
        blob, size = self._pusher.blob(pushed.repository, data)
        document = _json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "artifactType": artifact_type,
                "config": {"mediaType": EMPTY, "digest": config, "size": 2},
                "layers": [{"mediaType": media_type, "digest": blob, "size": size}],
                "subject": {"mediaType": MANIFEST, "digest": pushed.digest, "size": len(pushed.document)},
                "annotations": dict(annotations),
            }
        )
        digest = f"sha256:{hashlib.sha256(document).hexdigest()}"
        self._pusher.manifest(pushed.repository, digest, document)
        entry = {"mediaType": MANIFEST, "digest": digest, "size": len(document), "artifactType": artifact_type}
        listed = [*self.listed(pushed), {**entry, "annotations": dict(annotations)}]
        index = _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed})
        self._pusher.manifest(pushed.repository, tag(pushed.digest), index, INDEX)
        return digest

    def listed(self, pushed: Pushed) -> list[dict[str, Any]]:
        """What refers to the model."""
        try:
            found: list[dict[str, Any]] = json.loads(self._pusher.fetch(pushed.repository, tag(pushed.digest)))[
                "manifests"
            ]
        except RefusedError:
            return []
        return found

    def _tagged(self, repository: str, name: str, layers: Sequence[Layer]) -> None:
        config = Layer("application/vnd.oci.image.config.v1+json", b'{"architecture":"","os":"","rootfs":{}}')
        self._pusher.artifact(repository, name, Artifact(config, tuple(layers)))


def tag(digest: str) -> str:
    """The tag that stands for a digest."""
    return digest.replace(":", "-")


def pae(payload_type: str, payload: bytes) -> bytes:
    """What a DSSE signature is over."""
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
