"""What a publisher is asked, and what it needs of others: their part that it sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from modelmount.formats import ANY, Choice
from modelmount.formats.selection import Selection
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.reference import Reference, Repository
from modelmount.pull.job import Job
from modelmount.pull.resolver import Model, PullPolicy
from modelmount.registry.credentials import Credential, ServiceAccount


class Request(Protocol):
    """One publish, its fields checked for form but not for meaning."""

    @property
    def volume_id(self) -> str:
        """Any text; it never becomes a path."""

    @property
    def target_path(self) -> str:
        """Where to mount."""

    @property
    def attributes(self) -> Mapping[str, str]:
        """The volume's own, and what the kubelet adds."""

    @property
    def secrets(self) -> Mapping[str, str]:
        """The Secret that the volume names; only the credentials ever see it."""

    @property
    def mount_flags(self) -> tuple[str, ...]:
        """Options on top of the admin's; those that take something away from the mount are added."""


class Resolves(Protocol):
    """Says what a reference means and proves access to it: `pull.resolver.Resolver`."""

    def resolve(self, reference: Reference, policy: PullPolicy, credential: Credential, choice: Choice = ANY) -> Model:
        """The model, after one request to the registry where the admin wants proof."""


class Pulls(Protocol):
    """Runs pulls: `pull.puller.Puller`."""

    def ensure(self, model: Model, selection: Selection, credential: Credential, *, fetch: bool, namespace: str) -> Job:
        """Join or start the model's job, which does without any source unless it may `fetch`; the caller has proved its
        access. A new job counts as that of `namespace`.
        """

    def head(self, model: Model, credential: Credential, descriptor: Descriptor, count: int) -> bytes | None:
        """The first bytes of a blob as its source sends them, not verified; None where it sends less."""

    def release(self, job: Job) -> None:
        """A lease on the job's tree stands, or the job's result is of no use."""


class FindsCredentials(Protocol):
    """Knows what to show to a registry: `registry.credentials.Credentials`."""

    def find(
        self,
        repository: Repository,
        secrets: Mapping[str, str],
        tokens: str = "",
        account: ServiceAccount | None = None,
        *,
        of_pod: bool = False,
    ) -> Credential:
        """The credential for this repository: the volume's own, that of the pod's service account, the node's, else
        anonymous. `of_pod`: the node's only where the admin lets pods have it.
        """


class Audits(Protocol):
    """Keeps who mounted what: `volumes.audit.Audit`."""

    def record(self, event: str, **fields: object) -> None:
        """Something happened just now."""
