"""The `imagePullSecrets` of a pod's service account, as the API server has them now: what opens a namespace's images
opens its models. Only where the admin wants it, for the driver must be let read Secrets for that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from modelmount.errors import Forbidden, NotFound
from modelmount.oci.reference import Repository
from modelmount.registry.credentials import dockerconfig
from modelmount.registry.credentials.base import Credential

log = logging.getLogger(__name__)

KEYS: Final = (".dockerconfigjson", ".dockercfg")
"""Of Secrets that hold credentials for registries."""


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A pod's service account, as the kubelet names it."""

    namespace: str
    name: str


class Reads(Protocol):
    """Reads objects: `kube.api.Api`."""

    def pull_secrets(self, namespace: str, account: str) -> tuple[str, ...]:
        """The names of the service account's `imagePullSecrets`, in their order."""

    def secret(self, namespace: str, name: str) -> Mapping[str, str]:
        """The keys of a Secret that are text, decoded."""


class PullSecrets:
    """Thread-safe; nothing is kept, so that a changed Secret counts at the next call."""

    def __init__(self, api: Reads) -> None:
        """Asks nobody yet."""
        self._api = api
        self._complained = False

    def find(self, repository: Repository, account: ServiceAccount) -> Credential | None:
        """The first of its Secrets' credentials for `repository`. What isn't there is passed over, as the kubelet does;
        without the right to look, which is said once, there are none. Raises Unavailable for passing trouble with the
        API server, InvalidRequest for a Secret that can't be used. Blocks for a few seconds at most for each.
        """
        try:
            for name in self._api.pull_secrets(account.namespace, account.name):
                found = self._in(repository, account.namespace, name)
                if found is not None:
                    return found
        except NotFound:
            pass
        except Forbidden as e:
            if not self._complained:
                log.warning(
                    "imagePullSecrets of service accounts are not used: %s; let the driver's service account get "
                    "serviceaccounts and secrets there (the chart's pullSecrets), or set kubernetes.pull_secrets = "
                    "false",
                    e,
                )
            self._complained = True
        return None

    def _in(self, repository: Repository, namespace: str, name: str) -> Credential | None:
        try:
            secret = self._api.secret(namespace, name)
        except NotFound:
            return None
        for key in KEYS:
            if secret.get(key):
                found = dockerconfig.find(secret[key], repository, f"Secret {name} of the service account, key {key}")
                if found is not None:
                    return found
        return None
