"""What a volume's attributes say. The only place that knows the keys, and the only Kubernetes words below `kube/`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from modelmount.config import Settings
from modelmount.errors import Forbidden, InvalidRequest
from modelmount.formats import ANY, Choice
from modelmount.formats.selection import EVERYTHING, Selection
from modelmount.kube.notes import Pod
from modelmount.oci.reference import Reference
from modelmount.pull.resolver import PullPolicy
from modelmount.registry.credentials import ServiceAccount
from modelmount.volumes import aliases, choices
from modelmount.volumes.choices import quoted

log = logging.getLogger(__name__)

KUBERNETES_PREFIX = "csi.storage.k8s.io/"
"""Keys the kubelet adds (pod, service account, tokens): never part of what a volume is."""
TOKENS_KEY = KUBERNETES_PREFIX + "serviceAccount.tokens"
"""Where the kubelet puts the tokens of `tokenRequests`: among the secrets, older ones among the attributes."""
IGNORED_KEYS = frozenset({"storage.kubernetes.io/csiProvisionerIdentity"})
"""Keys that sidecars write into a PV's attributes."""
KNOWN_KEYS = ("model", "pullPolicy", "mode", *choices.KEYS)
LATER_KEYS = frozenset({"exec", "pin"})
ALLOWED_KEY = "allowedReferences"
"""Of a StorageClass only: what its claims may name by annotation."""
ANNOTATION = "modelmount.io/model"
"""Of a claim: the model that it wants, where its class allows that."""
_POLICIES: tuple[PullPolicy, ...] = get_args(PullPolicy)
_REMEMBERED = 256
"""Pods of one deployment ask for the same."""
MAX_BYTES = 4096
"""The CSI specification's limit for a map ("Size Limits"); nobody in front of us enforces it."""


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """The decided meaning of a volume's attributes. Two equal specs are the same volume to an idempotent publish."""

    reference: Reference
    pull_policy: PullPolicy
    selection: Selection = EVERYTHING
    """Which files are shown, and how."""
    choice: Choice = ANY
    """Which entry of an index is the model."""

    @classmethod
    def parse(cls, attributes: Mapping[str, str]) -> VolumeSpec:
        """Read the attributes strictly: a typo must not silently weaken what was meant. Raises InvalidRequest naming
        the key.
        """
        return _parsed(tuple(significant(attributes).items()))

    def check_allowed(self, settings: Settings) -> None:
        """Apply the admin's word on hosts. Raises Forbidden for hosts off the allow-list, InvalidRequest for addresses
        nobody listed.
        """
        check_host_allowed(self.reference, settings)


@functools.lru_cache(_REMEMBERED)
def _parsed(attributes: tuple[tuple[str, str], ...]) -> VolumeSpec:
    if sum(len(k.encode()) + len(v.encode()) for k, v in attributes) > MAX_BYTES:
        raise InvalidRequest(f"the volume's attributes are larger than the {MAX_BYTES} bytes CSI allows")
    own = aliases.own(dict(attributes))
    for key in own:
        if key in LATER_KEYS:
            raise InvalidRequest(
                f"volume attribute {key!r} is not supported by this version; remove it or upgrade modelmount"
            )
        if key == ALLOWED_KEY:
            raise InvalidRequest(f"{ALLOWED_KEY!r} belongs into a StorageClass without a model, not into a volume")
        if key not in KNOWN_KEYS:
            raise InvalidRequest(f"unknown volume attribute {quoted(key)}; known: {', '.join(KNOWN_KEYS)}")
    if not own.get("model"):
        raise InvalidRequest(
            "volume attribute 'model' is missing: name a model, for example `model: "
            "harbor.example.com/llm/llama3-70b:v1`"
        )
    if own.get("mode", "eager") != "eager":
        if own["mode"] == "lazy":
            raise InvalidRequest(
                "mode: lazy does not exist yet; use eager, which mounts a model once all of it is verified"
            )
        raise InvalidRequest(f"volume attribute 'mode' must be eager, not {quoted(own['mode'])}")
    policy = _policy(own.get("pullPolicy", "IfNotPresent"))
    spec = VolumeSpec(Reference.parse(own["model"]), policy, choices.selection(own), choices.choice(own))
    _remark(own["model"], spec.reference)
    return spec


def _remark(text: str, reference: Reference) -> None:
    """Say what its author may not have meant; not for each pod again."""
    if reference.digest is not None:
        if reference.tag:
            log.info("%s has a tag and a digest: the digest counts, and nobody asks what the tag means", reference)
    elif not text.endswith(f":{reference.tag}"):
        log.warning("a volume names neither tag nor digest of %s: what that means may be another model soon", reference)


def check_host_allowed(reference: Reference, settings: Settings) -> None:
    """Whether volumes may name this registry at all, before anything is sent to it."""
    repository = reference.repository
    if repository.is_address_like and repository.registry not in settings.registries:
        raise InvalidRequest(
            f"registry {repository.registry} is an address or this host itself; an admin must list it first: "
            f"[registries.{quoted(repository.registry)}]"
        )
    if not settings.permits(repository.registry):
        raise Forbidden(
            f"registry {repository.registry} is not on this node's allow-list (allowed_registries); ask the cluster's "
            "admin"
        )


def significant(attributes: Mapping[str, str]) -> dict[str, str]:
    """The attributes that are ours: without what Kubernetes adds, tokens included."""
    return {k: v for k, v in attributes.items() if not k.startswith(KUBERNETES_PREFIX) and k not in IGNORED_KEYS}


def pod_uid(attributes: Mapping[str, str]) -> str:
    """The pod the kubelet publishes for, where CSIDriver has podInfoOnMount; never used to decide access."""
    return attributes.get(KUBERNETES_PREFIX + "pod.uid", "")


def pod(attributes: Mapping[str, str]) -> Pod | None:
    """That pod, where the kubelet says all of it."""
    values = [attributes.get(f"{KUBERNETES_PREFIX}pod.{key}", "") for key in ("namespace", "name", "uid")]
    return Pod(*values) if all(values) else None


def pod_name(attributes: Mapping[str, str]) -> str:
    """`namespace/name` of that pod, for logs."""
    name = attributes.get(KUBERNETES_PREFIX + "pod.name", "")
    return f"{attributes.get(KUBERNETES_PREFIX + 'pod.namespace', '')}/{name}" if name else ""


def account_tokens(attributes: Mapping[str, str], secrets: Mapping[str, str]) -> str:
    """The tokens of the pod's service account, as the kubelet wrote them; empty where CSIDriver asks for none."""
    return secrets.get(TOKENS_KEY) or attributes.get(TOKENS_KEY, "")


def pod_identity(attributes: Mapping[str, str]) -> dict[str, str]:
    """All that the kubelet says of that pod, for the audit log."""
    keys = {"namespace": "pod.namespace", "pod": "pod.name", "uid": "pod.uid", "service_account": "serviceAccount.name"}
    return {
        name: attributes[KUBERNETES_PREFIX + key] for name, key in keys.items() if KUBERNETES_PREFIX + key in attributes
    }


def service_account(attributes: Mapping[str, str]) -> ServiceAccount | None:
    """That pod's service account, where the kubelet says all of it."""
    namespace, name = pod_namespace(attributes), attributes.get(KUBERNETES_PREFIX + "serviceAccount.name", "")
    return ServiceAccount(namespace, name) if namespace and name else None


def pod_namespace(attributes: Mapping[str, str]) -> str:
    """The namespace of that pod, empty where the kubelet doesn't say. Only with podInfoOnMount can no volume say it in
    the kubelet's place.
    """
    return attributes.get(KUBERNETES_PREFIX + "pod.namespace", "")


def _policy(text: str) -> PullPolicy:
    for policy in _POLICIES:
        if text == policy:
            return policy
    raise InvalidRequest(f"volume attribute 'pullPolicy' must be one of {', '.join(_POLICIES)}, not {quoted(text)}")
