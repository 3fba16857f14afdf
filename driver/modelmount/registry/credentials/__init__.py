"""Whose credential is shown to a registry: the volume's own Secret, else the node's docker configuration, else none.

Rule of this room: a way to find one is a file of its own that knows nothing of the others, and one step in
`Credentials`. What is malformed is named by its key; nothing of a Secret ever gets into a message, a log, a repr or the
cause of an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelmount.config import Settings
from modelmount.errors import InvalidRequest, Unavailable
from modelmount.oci.reference import Repository
from modelmount.registry.credentials import dockerconfig, secret
from modelmount.registry.credentials.base import Credential

__all__ = ["Credential", "Credentials"]

_DOCKER_KEYS: Final = (".dockerconfigjson", ".dockercfg")


class Credentials:
    """Finds credentials. Thread-safe; keeps nothing: the node's file is read each time, since it may be rotated."""

    def __init__(self, settings: Settings) -> None:
        """Reads nothing yet."""
        self._docker_config = settings.auth.docker_config

    def find(self, repository: Repository, secrets: Mapping[str, str]) -> Credential:
        """The credential for `repository`; anonymous where there is none.

        `secrets` are a volume's: the keys of a pull Secret come first, then `username` and `password`, then `token`;
        keys that are none of these don't matter. A Secret without an entry for this registry is as good as none. Raises
        InvalidRequest for a malformed Secret, Unavailable for a malformed or unreadable file of the node.
        """
        for key in _DOCKER_KEYS:
            if secrets.get(key):
                found = dockerconfig.find(secrets[key], repository, f"the Secret's key {key}")
                if found is not None:
                    return found
        return secret.find(secrets) or self._of_the_node(repository) or Credential.anonymous()

    def _of_the_node(self, repository: Repository) -> Credential | None:
        if self._docker_config is None:
            return None
        what = f"the node's docker configuration {self._docker_config}"
        try:
            return dockerconfig.find(Path(self._docker_config).read_text("utf-8"), repository, what)
        except OSError as e:
            raise Unavailable(f"{what} can't be read ({e.strerror}); the admin has to put it right") from e
        except UnicodeDecodeError:
            raise Unavailable(f"{what} isn't text; the admin has to put it right") from None
        except InvalidRequest as e:
            raise Unavailable(f"{e.message}; the admin has to put it right") from e
