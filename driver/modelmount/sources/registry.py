"""The registry itself as a source."""

from __future__ import annotations

from collections.abc import Callable

from modelmount.errors import IntegrityError
from modelmount.oci.descriptor import Descriptor
from modelmount.oci.reference import Repository
from modelmount.registry.client import Client
from modelmount.registry.credentials import Credential
from modelmount.sources.base import BlobSource, Opened


class RegistrySource(BlobSource):
    """The blobs of one repository. Thread-safe."""

    def __init__(
        self,
        client: Client,
        repository: Repository,
        credential: Callable[[], Credential],
        *,
        name: str | None = None,
        query: str = "",
    ) -> None:
        """`credential` is asked at each `open`: a pull outlives the Secret that it began with. A mirror has a `name` of
        its own, and a `query` that goes with each request.
        """
        self._client, self._repository, self._credential, self._query = client, repository, credential, query
        self._name = name or repository.registry

    @property
    def name(self) -> str:
        """The registry, as it stands in references; a mirror's own name."""
        return self._name

    def open(self, descriptor: Descriptor, offset: int, end: int | None = None) -> Opened:
        """Ask the registry for the blob, wherever it was redirected to before. Raises as every source does."""
        body = self._client.blob(
            self._repository, descriptor.digest, offset, self._credential(), end, query=self._query
        )
        if body.total is not None and body.total != descriptor.size:
            body.close()
            raise IntegrityError(
                f"{self.name} says that blob {descriptor.digest} of {self._repository} has {body.total} bytes, where "
                f"the manifest says {descriptor.size}; have the registry's copy checked or push the model again"
            )
        return body
