"""Bundles with a certificate, by the library that Sigstore itself maintains, offline: against the trusted roots of the
policy and nothing else. In a process of its own only; nothing else imports what this does.
"""

from __future__ import annotations

import datetime
import fnmatch
from collections.abc import Sequence

from cryptography import x509
from pydantic import ValidationError
from sigstore import errors
from sigstore.hashes import Hashed
from sigstore.models import Bundle, TrustedRoot
from sigstore.verify import Verifier
from sigstore_models.common.v1 import HashAlgorithm, TimeRange
from sigstore_models.trustroot.v1 import TrustedRoot as Root

from modelmount.policy.signing import Signer
from modelmount.signatures.checks import IN_TOTO, Unusable, Wrong
from modelmount.signatures.messages import Task, Vouched

_ISSUER_2 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_ISSUER_1 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
"""Of Fulcio (`fulcio/docs/oid-info.md`): DER text, and from before 2023 bare text."""


def certified(data: bytes, task: Task) -> tuple[Signer, bytes | None]:
    """As `checks.Certified`: good under one of the roots, for one of the identities that it vouches for."""
    try:
        bundle = Bundle.from_json(data)
        times = _times(bundle)
    except (errors.Error, ValidationError, ValueError, OverflowError, OSError) as e:  # the last two are of times
        raise Wrong(f"can't be read ({e})") from e
    faults: list[str] = []
    for number, text in enumerate(task.roots):
        root = _root(text, times)
        named = _Named([each for each in task.identities if each.root == number])
        try:
            payload = _verify(Verifier(trusted_root=root), bundle, named, task)
        except (errors.Error, ValidationError, ValueError, x509.ExtensionNotFound) as e:
            faults.append(str(e) or type(e).__name__)
            continue
        if named.found is not None:
            return named.found, payload
    raise Wrong(f"has a certificate that doesn't count ({'; '.join(faults) or 'there is no trusted root'})")


def _times(bundle: Bundle) -> list[datetime.datetime]:
    """When it was signed, by each word on it that the library may take: it proves one, or takes none."""
    stamps = bundle.verification_material.timestamp_verification_data
    times = [each.tst_info.gen_time for each in stamps.rfc3161_timestamps] if stamps is not None else []
    entry = bundle.log_entry._inner
    if entry.integrated_time and entry.inclusion_promise:
        times.append(datetime.datetime.fromtimestamp(entry.integrated_time, tz=datetime.UTC))
    return times


def _root(text: bytes, times: Sequence[datetime.datetime]) -> TrustedRoot:
    """What of a trusted root held at all these times. The library goes by the validity of certificates alone: an
    authority or log whose time has ended, perhaps because its key was lost, would go on to vouch for what is new.
    """
    try:
        root = Root.from_json(text)
        held = {
            "certificate_authorities": [each for each in root.certificate_authorities if _held(each.valid_for, times)],
            "tlogs": [each for each in root.tlogs if _held(each.public_key.valid_for, times)],
            "ctlogs": [each for each in root.ctlogs if _held(each.public_key.valid_for, times)],
        }
        return TrustedRoot(root.model_copy(update=held))
    except (ValidationError, ValueError, TypeError, errors.Error) as e:
        raise Unusable(f"a trusted_root of the policy can't be used: {e}") from e


def _held(span: TimeRange | None, times: Sequence[datetime.datetime]) -> bool:
    return span is None or all(span.start <= each and (span.end is None or each <= span.end) for each in times)


def _verify(verifier: Verifier, bundle: Bundle, named: _Named, task: Task) -> bytes | None:
    if bundle._dsse_envelope is not None:
        kind, payload = verifier.verify_dsse(bundle, named)
        if kind != IN_TOTO:
            raise Wrong(f"says something of a type that isn't read ({kind})")
        return payload
    hashed = Hashed(algorithm=HashAlgorithm.SHA2_256, digest=bytes.fromhex(task.digest.removeprefix("sha256:")))
    verifier.verify_artifact(hashed, bundle, named)
    return None


class _Named:
    """A policy of the library's: who the certificate is for is one of those that are listed."""

    def __init__(self, listed: Sequence[Vouched]) -> None:
        self._listed = listed
        self.found: Signer | None = None

    def verify(self, certificate: x509.Certificate) -> None:
        """Raise VerificationError unless it is."""
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        who = [*names.get_values_for_type(x509.RFC822Name), *names.get_values_for_type(x509.UniformResourceIdentifier)]
        issuer = _issuer(certificate)
        for each in self._listed:
            for name in who:
                if fnmatch.fnmatchcase(name, each.identity) and fnmatch.fnmatchcase(issuer, each.issuer):
                    self.found = Signer(each.authority, f"{name} ({issuer})")
                    return
        raise errors.VerificationError(f"it is for {', '.join(who) or 'nobody'}, by {issuer or 'nobody'}")


def _issuer(certificate: x509.Certificate) -> str:
    for oid in (_ISSUER_2, _ISSUER_1):
        try:
            value = certificate.extensions.get_extension_for_oid(oid).value
        except x509.ExtensionNotFound:
            continue
        if isinstance(value, x509.UnrecognizedExtension):
            data = value.value
            # DER of a UTF8String of less than 128 bytes, which an issuer's address is.
            return (data[2:] if oid is _ISSUER_2 and data[:1] == b"\x0c" and data[1] < 0x80 else data).decode()
    return ""
