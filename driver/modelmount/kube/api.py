"""The API server, asked with the token of the pod's own service account. The only module that knows lightkube."""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime
import re
from collections.abc import Iterator, Mapping
from typing import Final

import httpx2
import msgspec
from lightkube import Client
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster, User
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.models.core_v1 import EventSource, ObjectReference
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Event, Node, PersistentVolumeClaim, Secret, ServiceAccount
from lightkube.resources.storage_v1 import CSINode
from lightkube.types import PatchType

from modelmount.errors import Forbidden, InvalidRequest, NotFound, Precondition, Unavailable
from modelmount.kube.account import Account
from modelmount.kube.notes import Note

ANSWER_SECONDS: Final = 5.0
"""How long the API server may take for one answer."""
_ENDING: Final = "because it is being terminated"
"""What the API server says, with 403, of a namespace that is on its way out."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)


class Api:
    """One API server and one account. Thread-safe; each call blocks for a few seconds at most.

    Raises Forbidden where the account has no right, NotFound for what isn't there, Unavailable for everything that may
    pass, InvalidRequest for names that Kubernetes doesn't have: a name becomes part of a path.
    """

    def __init__(self, account: Account) -> None:
        """Asks nobody yet. Raises Precondition when the CA's file can't be used.

        The token is read again when the API server doesn't take it any longer: the kubelet renews it.
        """
        config = KubeConfig.from_one(
            cluster=Cluster(server=account.server, certificate_auth=str(account.authority)),
            user=User(token_file=str(account.token)),
        )
        try:
            # Proxies of the environment are none of ours.
            self._client = Client(config.get(), timeout=httpx2.Timeout(ANSWER_SECONDS), trust_env=False)
        except OSError as e:  # also what ssl raises for a file that holds no certificate
            raise Precondition(f"{account.authority} can't be used: {e}") from e

    def close(self) -> None:
        """End all connections; twice is harmless."""
        self._client.close()

    def create_event(self, note: Note, name: str, component: str, node: str) -> None:
        """Write an event of this name, told for the first time."""
        pod, now = note.pod, datetime.datetime.now(datetime.UTC)
        _check(pod.namespace, pod.name)
        event = Event(
            metadata=ObjectMeta(name=name, namespace=pod.namespace),
            involvedObject=ObjectReference(
                apiVersion="v1", kind="Pod", namespace=pod.namespace, name=pod.name, uid=pod.uid
            ),
            type=note.kind,
            reason=note.reason,
            message=note.message,
            source=EventSource(component=component, host=node),
            reportingComponent=component,
            reportingInstance=node,
            firstTimestamp=now,
            lastTimestamp=now,
            count=1,
        )
        with _translated(f"writing an event in namespace {pod.namespace}"):
            self._client.create(event)

    def count_event(self, note: Note, name: str, count: int) -> None:
        """Say that an event has happened again, `count` times altogether. Raises NotFound when it has expired."""
        change = {"count": count, "lastTimestamp": datetime.datetime.now(datetime.UTC)}
        with _translated(f"counting an event in namespace {note.pod.namespace}"):
            self._client.patch(Event, name, change, namespace=note.pod.namespace, patch_type=PatchType.MERGE)

    def claim_annotations(self, namespace: str, name: str) -> Mapping[str, str]:
        """What is annotated at a claim now."""
        _check(namespace, name)
        with _translated(f"reading claim {namespace}/{name}"):
            found = self._client.get(PersistentVolumeClaim, name, namespace=namespace)
        return (found.metadata.annotations if found.metadata else None) or {}

    def pull_secrets(self, namespace: str, account: str) -> tuple[str, ...]:
        """The names of the service account's `imagePullSecrets`, in their order."""
        _check(namespace, account)
        with _translated(f"reading service account {namespace}/{account}"):
            found = self._client.get(ServiceAccount, account, namespace=namespace)
        return tuple(each.name for each in found.imagePullSecrets or () if each.name)

    def secret(self, namespace: str, name: str) -> dict[str, str]:
        """The keys of a Secret that are text, decoded."""
        _check(namespace, name)
        with _translated(f"reading Secret {namespace}/{name}"):
            found = self._client.get(Secret, name, namespace=namespace)
        decoded = {}
        for key, value in (found.data or {}).items():
            with contextlib.suppress(binascii.Error, UnicodeDecodeError):  # what is no text is no credential
                decoded[key] = base64.b64decode(value, validate=True).decode()
        return decoded

    def is_registered(self, node: str, driver: str) -> bool:
        """Whether the kubelet of the node has told the cluster that it knows the driver."""
        _check(node)
        with _translated(f"reading CSINode {node}"):
            found = self._client.get(CSINode, node)
        return any(each.name == driver for each in found.spec.drivers)

    def remove_taint(self, node: str, key: str) -> bool:
        """Take all taints of this key from the node; whether there was one. Unavailable, too, when somebody else
        changed the node's taints meanwhile: try again.
        """
        _check(node)
        with _translated(f"reading node {node}"):
            found = self._client.get(Node, node)
        taints = (found.spec.taints if found.spec else None) or []
        kept = [taint for taint in taints if taint.key != key]
        if len(kept) == len(taints):
            return False
        old, new = ([taint.to_dict() for taint in each] for each in (taints, kept))
        change = [
            {"op": "test", "path": "/spec/taints", "value": old},
            {"op": "replace", "path": "/spec/taints", "value": new},
        ]
        with _translated(f"removing taint {key} from node {node}"):
            self._client.patch(Node, node, change, patch_type=PatchType.JSON)
        return True


def _check(*names: str) -> None:
    for name in names:
        if not _NAME.fullmatch(name) or ".." in name:
            raise InvalidRequest(f"{name[:64]!a} is no name of Kubernetes")


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """What goes wrong while asking, as errors of ours. The API server's own words name the right that is missing."""
    try:
        yield
    except ApiError as e:
        said = f"{what}: {(e.status.message or 'no reason given')[:512]}"
        if e.status.code == 404 or _ENDING in said:
            raise NotFound(said) from e
        if e.status.code in {401, 403}:
            raise Forbidden(said) from e
        raise Unavailable(said) from e
    except (httpx2.HTTPError, httpx2.InvalidURL, ConfigError, OSError) as e:
        raise Unavailable(f"{what}: the API server can't be asked: {str(e) or type(e).__name__}") from e
    except (msgspec.MsgspecError, ValueError, KeyError, AttributeError, TypeError) as e:
        # lightkube leaves an answer that isn't Kubernetes' to the parsers.
        raise Unavailable(f"{what}: the API server's answer makes no sense") from e
