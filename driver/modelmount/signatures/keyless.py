"""`worker`, with what certificates and logs take: heavy, so it is there only where the policy names identities."""

from __future__ import annotations

from modelmount.signatures import certificates, checks
from modelmount.signatures.worker import work

__all__ = ["prepare", "work"]


def prepare() -> None:
    """As `worker.prepare`."""
    checks.warm_up()
    checks.certified = certificates.certified
