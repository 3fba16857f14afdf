"""The API server, asked as kubectl does: JSON over HTTPS with a token. And waiting for what it says."""

from __future__ import annotations

import json
import ssl
import time
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import urllib3

Object = dict[str, Any]
T = TypeVar("T")

_GROUPS = {
    "Deployment": "apis/apps/v1",
    "ReplicaSet": "apis/apps/v1",
    "DaemonSet": "apis/apps/v1",
    "StorageClass": "apis/storage.k8s.io/v1",
    "CSIDriver": "apis/storage.k8s.io/v1",
    "CSINode": "apis/storage.k8s.io/v1",
    "CSIStorageCapacity": "apis/storage.k8s.io/v1",
}
"""Kinds that are not in the core group."""
_OF_THE_CLUSTER = {"PersistentVolume", "Namespace", "Node", "StorageClass", "CSIDriver", "CSINode"}
_TICK_SECONDS = 0.05


class ApiError(Exception):
    """The API server said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """A client with one credential; safe for threads."""

    def __init__(self, url: str, ca_file: Path, token: str) -> None:
        context = ssl.create_default_context(cafile=str(ca_file))
        self._pool = urllib3.PoolManager(ssl_context=context, maxsize=16, retries=False)
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}

    def call(self, method: str, path: str, body: Any = None, *, kind: str = "application/json") -> bytes:
        """The answer's body. Raises ApiError unless the status is 2xx."""
        headers = {**self._headers, **({"Content-Type": kind} if body is not None else {})}
        data = None if body is None else json.dumps(body).encode()
        answer = self._pool.request(method, f"{self._url}/{path}", body=data, headers=headers, timeout=60.0)
        if not 200 <= answer.status < 300:
            try:
                message = json.loads(answer.data)["message"]
            except (ValueError, KeyError):
                message = answer.data.decode(errors="replace")[:500]
            raise ApiError(answer.status, message)
        return answer.data

    def create(self, *objects: Object) -> None:
        """Create each, in order."""
        for o in objects:
            self.call("POST", _path(o["kind"], o["metadata"].get("namespace", "default")), o)

    def get(self, kind: str, name: str, namespace: str = "default") -> Object | None:
        """The object, None when there is none."""
        try:
            found: Object = json.loads(self.call("GET", f"{_path(kind, namespace)}/{name}"))
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return found

    def all(self, kind: str, namespace: str = "default", **labels: str) -> list[Object]:
        """All of a kind in the namespace, those with these labels."""
        query = urllib.parse.urlencode({"labelSelector": ",".join(f"{k}={v}" for k, v in labels.items())})
        items: list[Object] = json.loads(self.call("GET", f"{_path(kind, namespace)}?{query}"))["items"]
        return items

    def patch(self, kind: str, name: str, change: Mapping[str, Any], namespace: str = "default") -> None:
        """Merge a change in."""
        self.call("PATCH", f"{_path(kind, namespace)}/{name}", change, kind="application/merge-patch+json")

    def delete(self, kind: str, name: str, namespace: str = "default", *, grace: int | None = None) -> None:
        """Ask for its end; what isn't there needs none."""
        body = None if grace is None else {"gracePeriodSeconds": grace}
        try:
            self.call("DELETE", f"{_path(kind, namespace)}/{name}", body)
        except ApiError as error:
            if error.status != 404:
                raise

    def log(self, pod: str, namespace: str = "default") -> str:
        """What the pod's only container printed."""
        return self.call("GET", f"api/v1/namespaces/{namespace}/pods/{pod}/log").decode()

    def events(self, uid: str, namespace: str = "default") -> list[Object]:
        """The events about an object, oldest first."""
        query = urllib.parse.urlencode({"fieldSelector": f"involvedObject.uid={uid}"})
        items: list[Object] = json.loads(self.call("GET", f"api/v1/namespaces/{namespace}/events?{query}"))["items"]
        return sorted(items, key=lambda e: (e.get("firstTimestamp") or "", int(e["metadata"]["resourceVersion"])))


def wait(what: str, look: Callable[[], T], seconds: float) -> T:
    """Look until the answer is true, and return it. Raises TimeoutError that names `what` and the last answer."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s, last seen: {found!r}")
        time.sleep(_TICK_SECONDS)


def _path(kind: str, namespace: str) -> str:
    irregular = {"StorageClass": "storageclasses", "CSIStorageCapacity": "csistoragecapacities"}
    plural = irregular.get(kind, f"{kind.lower()}s")
    middle = "" if kind in _OF_THE_CLUSTER else f"/namespaces/{namespace}"
    return f"{_GROUPS.get(kind, 'api/v1')}{middle}/{plural}"
