"""Who this process is to the API server: the pod's service account, as the kubelet mounts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelmount.errors import Precondition

HOST: Final = "KUBERNETES_SERVICE_HOST"
_PORT: Final = "KUBERNETES_SERVICE_PORT"


@dataclass(frozen=True, slots=True)
class Account:
    """Where the API server is, and the files with the token and with its CA. The kubelet renews the token's."""

    server: str
    token: Path
    authority: Path


def find(directory: str, environ: Mapping[str, str]) -> Account:
    """The account of this pod. Raises Precondition, naming what is missing, where this process is no pod's or has no
    token.
    """
    host, port = environ.get(HOST, ""), environ.get(_PORT, "443")
    if not host:
        raise Precondition(f"this process is no pod of Kubernetes: {HOST} isn't set")
    token, authority = Path(directory) / "token", Path(directory) / "ca.crt"
    missing = next((str(path) for path in (token, authority) if not path.is_file()), None)
    if missing is not None:
        raise Precondition(
            f"there is no {missing}; mount the service account's token (automountServiceAccountToken: true)"
        )
    return Account(f"https://{f'[{host}]' if ':' in host else host}:{port}", token, authority)
