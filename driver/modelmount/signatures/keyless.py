"""`worker`, with what certificates and logs take: heavy, so it is there only where the policy names identities."""

from __future__ import annotations

import codecs

from modelmount.signatures import certificates, checks
from modelmount.signatures.worker import work

__all__ = ["prepare", "work"]


def prepare() -> None:
    """As `worker.prepare`."""
    checks.warm_up()
    for name in ("utf-16-be", "idna", "ascii", "latin-1"):  # codecs are files that are imported at their first use
        codecs.lookup(name)
    checks.certified = certificates.certified
