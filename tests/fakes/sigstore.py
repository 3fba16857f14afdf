"""A Sigstore of a test's own: certificate authority, certificate log and signature log, with keys made there, and the
trusted root that vouches for them. Entries are made as Fulcio, the log of RFC 6962 and Rekor 1 make them.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.fakes.signing import BUNDLE, Key

ISSUER = "https://login.example.com"
IDENTITY = "release@example.com"
_ISSUER_OID = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_SCT_OID = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_ORIGIN = "rekor.example.com - 1"


class Sigstore:
    """One instance; `now` is when its certificates begin and its log writes."""

    def __init__(self) -> None:
        self.now = datetime.datetime.now(datetime.UTC).replace(microsecond=0) - datetime.timedelta(minutes=1)
        self._authority, self._certificates, self._log = Key(), Key(), Key()
        self._root = self._authority_certificate()

    def trusted_root(self) -> bytes:
        """As `trusted_root.json` has it."""
        since = {"start": _rfc3339(self.now - datetime.timedelta(days=1))}

        def log(key: Key, url: str) -> dict[str, Any]:
            public = {"rawBytes": _b64(_der(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": since}
            log_id = {"keyId": _b64(hashlib.sha256(_der(key)).digest())}
            return {"baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": public, "logId": log_id}

        authority = {
            "subject": {"organization": "example", "commonName": "example"},
            "uri": "https://fulcio.example.com",
            "certChain": {"certificates": [{"rawBytes": _b64(self._root.public_bytes(Encoding.DER))}]},
            "validFor": since,
        }
        return _json(
            {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self._log, "https://rekor.example.com")],
                "certificateAuthorities": [authority],
                "ctlogs": [log(self._certificates, "https://ctlog.example.com")],
                "timestampAuthorities": [],
            }
        )

    def bundle(
        self,
        statement: Mapping[str, Any],
        *,
        identity: str = IDENTITY,
        issuer: str = ISSUER,
        logged_after: datetime.timedelta = datetime.timedelta(minutes=1),
    ) -> bytes:
        """A statement signed by `identity`, whose certificate is for ten minutes, and logged so long after it began."""
        key = Key()
        certificate = self._leaf(key, identity, issuer)
        envelope = key.envelope(statement)
        pem = _b64(certificate.public_bytes(Encoding.PEM))
        payload = base64.b64decode(envelope["payload"])
        spec = {
            "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(_json(envelope)).hexdigest()},
            "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
            "signatures": [{"signature": envelope["signatures"][0]["sig"], "verifier": pem}],
        }
        entry = self._entry("dsse", spec, logged_after)
        return self._bundle(certificate, entry, {"dsseEnvelope": envelope})

    def message_bundle(self, message: bytes) -> bytes:
        """A signature over bytes, as `bundle` makes one over a statement."""
        key = Key()
        certificate = self._leaf(key, IDENTITY, ISSUER)
        signature = _b64(key.sign(message))
        digest = hashlib.sha256(message)
        spec = {
            "data": {"hash": {"algorithm": "sha256", "value": digest.hexdigest()}},
            "signature": {
                "content": signature,
                "publicKey": {"content": _b64(certificate.public_bytes(Encoding.PEM))},
            },
        }
        entry = self._entry("hashedrekord", spec, datetime.timedelta(minutes=1))
        described = {"algorithm": "SHA2_256", "digest": _b64(digest.digest())}
        return self._bundle(
            certificate, entry, {"messageSignature": {"messageDigest": described, "signature": signature}}
        )

    def _bundle(self, certificate: x509.Certificate, entry: Mapping[str, Any], content: Mapping[str, Any]) -> bytes:
        material = {
            "certificate": {"rawBytes": _b64(certificate.public_bytes(Encoding.DER))},
            "tlogEntries": [entry],
        }
        return _json({"mediaType": BUNDLE, "verificationMaterial": material, **content})

    def _entry(self, kind: str, spec: Mapping[str, Any], logged_after: datetime.timedelta) -> dict[str, Any]:
        """The only entry of a log, with the log's promise and its proof."""
        body = _json({"apiVersion": "0.0.1", "kind": kind, "spec": spec})
        log_id = hashlib.sha256(_der(self._log)).digest()
        at = int((self.now + logged_after).timestamp())
        promised = {"body": _b64(body), "integratedTime": at, "logID": log_id.hex(), "logIndex": 0}
        promise = self._log.sign(json.dumps(promised, sort_keys=True, separators=(",", ":")).encode())
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"{_ORIGIN}\n1\n{_b64(root)}\n"
        signed = _b64(log_id[:4] + self._log.sign(note.encode()))
        proof = {
            "logIndex": "0",
            "rootHash": _b64(root),
            "treeSize": "1",
            "hashes": [],
            "checkpoint": {"envelope": f"{note}\n— {_ORIGIN.split(' ', maxsplit=1)[0]} {signed}\n"},
        }
        return {
            "logIndex": "0",
            "logId": {"keyId": _b64(log_id)},
            "kindVersion": {"kind": kind, "version": "0.0.1"},
            "integratedTime": str(at),
            "inclusionPromise": {"signedEntryTimestamp": _b64(promise)},
            "inclusionProof": proof,
            "canonicalizedBody": _b64(body),
        }

    # -- certificates

    def _authority_certificate(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "example")])
        public = self._authority.private.public_key()
        usage = {name: name in {"key_cert_sign", "crl_sign"} for name in _USAGES}
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - datetime.timedelta(days=1))
            .not_valid_after(self.now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._authority.private, hashes.SHA256())
        )

    def _leaf(self, key: Key, identity: str, issuer: str) -> x509.Certificate:
        """With the certificate log's promise in it, which is over the certificate without it."""
        usage = {name: name == "digital_signature" for name in _USAGES}
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._root.subject)
            .public_key(key.private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now)
            .not_valid_after(self.now + datetime.timedelta(minutes=10))
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._authority.private.public_key()), critical=False
            )
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(identity)]), critical=True)
            .add_extension(x509.UnrecognizedExtension(_ISSUER_OID, _der_text(issuer)), critical=False)
        )
        unlogged = builder.sign(self._authority.private, hashes.SHA256())
        tbs = unlogged.tbs_certificate_bytes
        at = int(self.now.timestamp() * 1000)
        issuer_hash = hashlib.sha256(_der(self._authority)).digest()
        entry = issuer_hash + len(tbs).to_bytes(3, "big") + tbs
        signed = self._certificates.sign(struct.pack("!BBQH", 0, 0, at, 1) + entry + b"\0\0")
        log_id = hashlib.sha256(_der(self._certificates)).digest()
        sct = b"\0" + log_id + struct.pack("!QHBBH", at, 0, 4, 3, len(signed)) + signed
        listed = struct.pack("!HH", len(sct) + 2, len(sct)) + sct
        octets = b"\x04" + _der_length(len(listed)) + listed
        return builder.add_extension(x509.UnrecognizedExtension(_SCT_OID, octets), critical=False).sign(
            self._authority.private, hashes.SHA256()
        )


_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _der(key: Key) -> bytes:
    return key.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _der_text(text: str) -> bytes:
    return b"\x0c" + _der_length(len(text)) + text.encode()


def _der_length(length: int) -> bytes:
    return (
        bytes([length]) if length < 0x80 else bytes([0x81, length]) if length < 0x100 else b"\x82" + length.to_bytes(2)
    )


def _rfc3339(at: datetime.datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
