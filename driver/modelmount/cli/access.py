"""Who asks a registry, and how it is reached: the options of every command that talks to one."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from modelmount.config import Settings
from modelmount.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated
from modelmount.oci.reference import Repository
from modelmount.registry.credentials import Credential, Credentials

R = TypeVar("R")

HOME_DOCKER_CONFIG = "~/.docker/config.json"


@dataclass(frozen=True, slots=True)
class Access:
    """What the options say. The person at the command line is the admin: what only a configuration file may say about a
    host, this may say too, for one call.
    """

    username: str | None
    password: str | None = field(repr=False)
    docker_config: str | None
    plain_http: bool
    ca_file: str | None

    def applied(self, settings: Settings, repository: Repository) -> Settings:
        """`settings` with these options in them, for this repository's host."""
        host = settings.registry(repository.registry)
        if self.plain_http:
            host = msgspec.structs.replace(host, plain_http=True, ca_file=None, ca_files=[])
        elif self.ca_file is not None:
            host = msgspec.structs.replace(host, plain_http=False, ca_file=self.ca_file, ca_files=[])
        auth = msgspec.structs.replace(settings.auth, docker_config=self._docker_config(settings))
        registries = {**settings.registries, repository.registry: host}
        # The allow-list is for what volumes name.
        return msgspec.structs.replace(settings, registries=registries, auth=auth, allowed_registries=[])

    @property
    def secrets(self) -> dict[str, str]:
        """The login of the options, in the form of a Secret that a volume names; empty without one."""
        if self.username is None or self.password is None:
            return {}
        return {"username": self.username, "password": self.password}

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Errors about access inside the block also say how to log in here; a pod's owner would need a Secret."""
        try:
            yield
        except (Unauthenticated, Forbidden, NotFound) as e:
            if self.username is not None:
                raise
            hint = "here, log in with --username and --password-stdin, or name a file with --docker-config"
            raise type(e)(f"{e.message} ({hint})") from e

    def credential(self, credentials: Credentials, repository: Repository) -> Credential:
        """The credential to use: the options' own, or what the docker configuration has, or none."""
        return credentials.find(repository, self.secrets)

    def _docker_config(self, settings: Settings) -> str | None:
        if self.docker_config is not None:
            return self.docker_config
        if settings.auth.docker_config is not None:
            return settings.auth.docker_config
        own = Path(HOME_DOCKER_CONFIG).expanduser()
        try:
            return str(own) if own.exists() else None
        except OSError as e:
            raise InvalidRequest(
                f"{own} can't be looked at ({e.strerror}); set HOME to your own directory, or name a file with "
                "--docker-config"
            ) from e


def access_options(function: Callable[..., R]) -> Callable[..., R]:
    """The options; the command gets `access: Access`."""

    @click.option("--username", metavar="NAME", help="Log in as NAME; asks for the password.")
    @click.option("--password-stdin", is_flag=True, help="Take the password from standard input.")
    @click.option(
        "--docker-config",
        type=click.Path(exists=True, dir_okay=False, readable=True, resolve_path=True),
        help=f"Credentials as docker keeps them.  [default: auth.docker_config, else {HOME_DOCKER_CONFIG}]",
    )
    @click.option("--plain-http", is_flag=True, help="Talk http to this registry, for this call.")
    @click.option(
        "--ca-file",
        type=click.Path(exists=True, dir_okay=False, readable=True, resolve_path=True),
        help="Trust this CA (PEM) for this registry, for this call.",
    )
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        username: str | None,
        password_stdin: bool,
        docker_config: str | None,
        plain_http: bool,
        ca_file: str | None,
        **kwargs: Any,
    ) -> R:
        if plain_http and ca_file is not None:
            raise click.UsageError("--plain-http and --ca-file exclude each other: without TLS there is no CA to trust")
        password = _password(username, from_stdin=password_stdin)
        return function(*args, access=Access(username, password, docker_config, plain_http, ca_file), **kwargs)

    return wrapped


def _password(username: str | None, *, from_stdin: bool) -> str | None:
    if username is None:
        if from_stdin:
            raise click.UsageError("--password-stdin needs --username")
        return None
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
        if not password:
            raise click.UsageError("there is no password on standard input")
        return password
    if not sys.stdin.isatty():
        raise click.UsageError("--username needs a password: give it with --password-stdin")
    return str(click.prompt("Password", hide_input=True, err=True))
