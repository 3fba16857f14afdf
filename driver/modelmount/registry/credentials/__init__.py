"""Whose credential is shown to a registry. The first of these that has one for the repository:

1. the volume's own Secret: `.dockerconfigjson`, `.dockercfg`, `username` and `password`, `token`;
2. the token of the pod's service account, for registries that the admin gave an audience;
3. the node's docker configuration: its entries, then the helper program it names;
4. the kubelet's credential provider plugins;
5. the `imagePullSecrets` of the pod's service account, where the admin wants it;
6. none.

Steps 3 and 4 are the node's own credentials. Which pods they open doors for is the admin's word
(`auth.node_credential`); unless told otherwise, those that bring no Secret.

Rule of this room: a way to find one is a file of its own that knows nothing of the others, and one step in
`Credentials`. What is malformed is named by its key; nothing of a Secret ever gets into a message, a log, a repr or the
cause of an error. Programs are the node's own, in one directory that the admin names; nothing of a volume names one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from modelmount.config import Settings
from modelmount.errors import InvalidRequest, Unavailable
from modelmount.oci.reference import Repository
from modelmount.registry.credentials import accounts, dockerconfig, helpers, secret
from modelmount.registry.credentials.base import Credential
from modelmount.registry.credentials.kept import Answer, Kept
from modelmount.registry.credentials.plugins import Plugins
from modelmount.registry.credentials.pullsecrets import KEYS, PullSecrets, Reads, ServiceAccount

__all__ = ["Credential", "Credentials", "ServiceAccount"]


class Credentials:
    """Finds credentials. Thread-safe; the node's files are read each time, since they may be rotated, and only answers
    of programs are kept.
    """

    def __init__(self, settings: Settings, api: Reads | None = None) -> None:
        """Reads and starts nothing yet. `api` has the objects of the cluster, where there is one."""
        self._settings, self._auth = settings, settings.auth
        self._kept = Kept()
        self._pull_secrets = PullSecrets(api) if api is not None and settings.kubernetes.pull_secrets else None
        self._plugins: Plugins | None = None
        if self._auth.provider_config is not None and self._auth.program_dir is not None:
            config, directory = Path(self._auth.provider_config), Path(self._auth.program_dir)
            self._plugins = Plugins(config, directory, self._auth.program_seconds, self._kept)

    def find(
        self,
        repository: Repository,
        secrets: Mapping[str, str],
        tokens: str = "",
        account: ServiceAccount | None = None,
        *,
        of_pod: bool = False,
    ) -> Credential:
        """The credential for `repository`; anonymous where there is none. `of_pod`: by what the admin lets pods have of
        the node's own, otherwise with all of it.

        `secrets` are a volume's: the keys of a pull Secret come first, then `username` and `password`, then `token`;
        keys that are none of these don't matter. A Secret without an entry for this registry is as good as none.
        `tokens` are those of the pod's service account, as the kubelet writes them; `account` is its name. Raises
        InvalidRequest for what is malformed of these, Unavailable for a malformed or unreadable file, a failing program
        of the node and an API server that can't be asked. Blocks for as long as a program may take.
        """
        for key in KEYS:
            if secrets.get(key):
                found = dockerconfig.find(secrets[key], repository, f"the Secret's key {key}")
                if found is not None:
                    return found
        audience = self._settings.registry(repository.registry).service_account_audience
        own = secret.find(secrets) or accounts.find(tokens, audience)
        if own is None and not (of_pod and self._is_withheld(secrets)):
            own = self._of_the_node(repository)
            if own is None and self._plugins is not None:
                own = self._plugins.find(repository, tokens)
        return own or self._of_the_account(repository, account) or Credential.anonymous()

    def _is_withheld(self, secrets: Mapping[str, str]) -> bool:
        """Whether the node's credentials aren't for the pod that brings these."""
        match self._auth.node_credential:
            case "share":
                return False
            case "off":
                return True
            case "deny_if_pod_has_secret":
                return any(secrets.get(key) for key in (*KEYS, *secret.KEYS))

    def _of_the_account(self, repository: Repository, account: ServiceAccount | None) -> Credential | None:
        if self._pull_secrets is None or account is None:
            return None
        return self._pull_secrets.find(repository, account)

    def _of_the_node(self, repository: Repository) -> Credential | None:
        if self._auth.docker_config is None:
            return None
        what = f"the node's docker configuration {self._auth.docker_config}"
        try:
            text = Path(self._auth.docker_config).read_text("utf-8")
            found = dockerconfig.find(text, repository, what)
            return found if found is not None else self._of_a_helper(text, repository, what)
        except OSError as e:
            raise Unavailable(f"{what} can't be read ({e.strerror}); the admin has to put it right") from e
        except UnicodeDecodeError:
            raise Unavailable(f"{what} isn't text; the admin has to put it right") from None
        except InvalidRequest as e:
            raise Unavailable(f"{e.message}; the admin has to put it right") from e

    def _of_a_helper(self, text: str, repository: Repository, what: str) -> Credential | None:
        named = dockerconfig.helper(text, repository, what)
        if named is None or self._auth.program_dir is None:
            return None
        name, server = named
        key, directory, seconds = ("helper", name, server), Path(self._auth.program_dir), self._auth.program_seconds

        def ask() -> Answer:
            return Answer(key, helpers.ask(directory, name, server, what, seconds), helpers.KEPT_SECONDS)

        entry = self._kept.get((key,), seconds, ask)
        return dockerconfig.among({repository.registry: entry}, repository, f"the answer of credential helper {name}")
