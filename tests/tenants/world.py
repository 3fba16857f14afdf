"""One node with two tenants: Alice, whose model is here and mounted, and Bob, who wants it. A real driver, a real
registry behind a real token server, and a registry of Bob's own that says whatever he likes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets as randomness
import socket
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tests.e2e.conftest import contents
from tests.fakes import mounts, push
from tests.fakes.driver import Driver
from tests.fakes.registry import Registry, Tls
from tests.fakes.tokens import TokenServer, User
from tests.fakes.wire import Answer, Scripted, WireServer, blob

NAMESPACE = "csi.storage.k8s.io/pod.namespace"
TOKENS = "csi.storage.k8s.io/serviceAccount.tokens"
CANARY = b"the weights of alice "
WEIGHTS_BYTES = (9 << 20) + 77
SMALL_BYTES = 3000
BUDGET_BYTES = 48 << 20
SECONDS = 100.0
PULL: tuple[str, ...] = ("pull",)


@dataclass(frozen=True)
class Listed:
    """A host as an admin's configuration names it."""

    host: str
    tls: Tls | None = None


@dataclass(frozen=True)
class Outcome:
    """How a call ended."""

    code: grpc.StatusCode
    message: str


class World:
    """Use as a context manager. `messages` are the words of all refusals; `secrets` what must show nowhere."""

    def __init__(self, short: Path, long: Path) -> None:
        """`short` is a directory whose sockets have short paths; registries live in `long`."""
        self.directory, self._long = short, long
        self._stack = ExitStack()
        self._pods = 0
        self.messages: list[str] = []
        self.secrets = {
            who: f"{who}-{randomness.token_hex(12)}" for who in ("alice", "bob", "node", "admin", "account")
        }

    def __enter__(self) -> World:
        stack = self._stack
        users = {
            "alice": User(self.secrets["alice"], {"team-a/secret": PULL, "team-a/absent": PULL, "team-p/ruled": PULL}),
            "bob": User(self.secrets["bob"], {"team-b/own": PULL, "team-b/more": PULL, "team-p/ruled": PULL}),
            "admin": User(self.secrets["admin"]),
            "node": User(self.secrets["node"], {"team-n/shared": PULL}),
        }
        self.tokens = stack.enter_context(TokenServer(self._long / "tokens", users=users))
        self.registry = stack.enter_context(Registry(self._long / "registry", token=self.tokens.auth))
        self.evil = stack.enter_context(WireServer())
        self.sharing = stack.enter_context(WireServer())
        self.secret = self._push("team-a/secret", _files(1))
        self.absent = self._push("team-a/absent", _files(2))
        self.own = self._push("team-b/own", {"own.bin": random.Random(3).randbytes(20 << 20)})
        self.more = self._push("team-b/more", {"more.bin": random.Random(4).randbytes(30 << 20)})
        self.ruled = self._push("team-p/ruled", {"a.txt": b"for team-a's namespace only"})
        self.driver = stack.enter_context(Driver(self.directory, self._hosts(), settings=self._settings()))
        self.alice_at = self.driver.target("alice")
        self.publish("alice", self.secret.reference, self.login("alice"))
        self.files = contents(self.alice_at)
        self.publish("ruled", self.ruled.reference, self.login("alice"), {NAMESPACE: "team-a"})
        self.registry.forget()
        return self

    def __exit__(self, *exc: object) -> None:
        mounts.detach_below(self.directory)
        self._stack.__exit__(None, None, None)

    # -- to attack with

    def login(self, who: str, password: str | None = None) -> dict[str, str]:
        """A Secret with a name and password."""
        return {"username": who, "password": self.secrets[who] if password is None else password}

    def token(self, who: str, repository: str) -> str:
        """An access token, as the token server gives it to this user."""
        return self._token(who, f"repository:{repository}:pull")

    def manifest(self, *layers: tuple[str, int, str], config: tuple[str, int] | None = None, **more: Any) -> bytes:
        """A ModelPack manifest that names these blobs (digest, size, path), whoever has them."""
        empty = b"{}"
        digest, size = config or (digest_of(empty), len(empty))
        described = [
            {
                "mediaType": "application/vnd.cncf.model.weight.v1.raw",
                "digest": layer,
                "size": length,
                "annotations": {"org.cncf.model.filepath": path},
            }
            for layer, length, path in layers
        ]
        document = {
            "schemaVersion": 2,
            "mediaType": push.MANIFEST,
            "artifactType": push.MODELPACK_ARTIFACT,
            "config": {"mediaType": push.MODELPACK_CONFIG, "digest": digest, "size": size},
            "layers": described,
            **more,
        }
        return json.dumps(document).encode()

    def serve(
        self, document: bytes, blobs: Mapping[str, Scripted] | None = None, *, server: WireServer | None = None
    ) -> str:
        """Bob's registry serves this manifest and these blobs; the reference."""
        server = server or self.evil
        repository = f"bob/{randomness.token_hex(6)}"
        answer = Answer(200, document, [("Content-Type", push.MANIFEST)])
        for name in ("v1", digest_of(document)):
            server.on(f"/v2/{repository}/manifests/{name}", answer)
        server.on(f"/v2/{repository}/blobs/{digest_of(b'{}')}", blob(b"{}"))
        for name, scripted in (blobs or {}).items():
            server.on(f"/v2/{repository}/blobs/{name}", scripted)
        return f"{server.host}/{repository}:v1"

    def layer(self, name: str) -> tuple[str, int]:
        """Digest and size of a file of Alice's model."""
        content = self.files[name]
        return digest_of(content), len(content)

    # -- what happens

    def publish(
        self,
        pod: str,
        model: str,
        secrets: Mapping[str, str],
        attributes: Mapping[str, str] | None = None,
        *,
        volume: str = "",
        timeout: float = SECONDS,
    ) -> None:
        """One call; raises grpc.RpcError."""
        own = {"model": model, NAMESPACE: "team-b", **(attributes or {})}
        self.driver.publish(volume or f"volume-{pod}", self.driver.target(pod), own, secrets, timeout=timeout)

    def attempt(
        self,
        model: str,
        secrets: Mapping[str, str],
        attributes: Mapping[str, str] | None = None,
        *,
        volume: str = "",
        timeout: float = SECONDS,
    ) -> Outcome:
        """A new pod of Bob's tries; what it ended with. What it got is looked at later."""
        self._pods += 1
        try:
            self.publish(f"bob-{self._pods}", model, secrets, attributes, volume=volume, timeout=timeout)
        except grpc.RpcError as e:
            self.messages.append(str(e.details()))
            return Outcome(e.code(), str(e.details()))
        return Outcome(grpc.StatusCode.OK, "")

    # -- what must be true

    def assert_nothing_leaked(self) -> None:
        """Bob's pods see nothing of Alice's; she sees all of it, whatever he did."""
        stolen = set(self.files.values())
        for path in self.driver.kubelet_root.glob("pods/bob-*/**/*"):
            if path.is_file():
                content = path.read_bytes()
                assert CANARY not in content, f"{path} has Alice's bytes"
                assert content not in stolen, f"{path} has Alice's bytes"
        assert contents(self.alice_at) == self.files
        for pod in range(1, self._pods + 1):
            target = self.driver.target(f"bob-{pod}")
            if mounts.below(target.parent):
                self.driver.unpublish(f"volume-bob-{pod}", target)

    def places_with_secrets(self) -> list[str]:
        """Where any of the secrets shows: what the driver wrote, answered, or is, and what Bob's registry heard."""
        found = [f"message {message[:80]!r}" for message in self.messages if self._shows(message.encode())]
        store = self.driver.store
        files = [path for path in _within(store) if path.is_file()]
        process = Path(f"/proc/{self.driver.pid}")
        own = (self._audit, self.driver.log, self.driver.config, process / "cmdline", process / "environ")
        found += [str(path) for path in (*own, *files) if self._shows(_read(path))]
        found += [str(path) for path in _within(store) if self._shows(str(path).encode())]
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=SECONDS) as answer:
            if self._shows(answer.read()):
                found.append("metrics")
        heard = json.dumps([[each.path, each.query, dict(each.headers)] for each in self.evil.asked()])
        for who in ("alice", "node", "admin"):
            basic = push.basic(who, self.secrets[who]).removeprefix("Basic ")
            if self.secrets[who] in heard or basic in heard:
                found.append(f"Bob's registry heard of {who}")
        return found

    def _shows(self, data: bytes) -> bool:
        plain = [secret.encode() for secret in self.secrets.values()]
        encoded = [push.basic(who, secret).removeprefix("Basic ").encode() for who, secret in self.secrets.items()]
        return any(each in data for each in (*plain, *encoded))

    # -- inside

    def _push(self, repository: str, files: Mapping[str, bytes]) -> push.Pushed:
        directory = self._long / repository.replace("/", "-")
        for name, content in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(content)
        authorization = f"Bearer {self._token('admin', f'repository:{repository}:pull,push')}"
        pusher = push.Pusher(self.registry.host, self.registry.connection, authorization=authorization)
        return pusher.artifact(repository, "v1", push.modelpack(directory))

    def _token(self, who: str, scope: str) -> str:
        status, granted = self.tokens.answer(f"scope={scope}", push.basic(who, self.secrets[who]))
        assert status == 200
        return str(granted["token"])

    def _hosts(self) -> list[Listed]:
        return [Listed(self.registry.host), Listed(self.evil.host), Listed(self.sharing.host)]

    def _settings(self) -> dict[str, Any]:
        self._audit = self.directory / "audit.jsonl"
        policy = self.directory / "policy.toml"
        policy.write_text('[default]\n[[rule]]\nname = "ruled"\nmodels = ["*/team-p/*"]\nnamespaces = ["team-a"]\n'
                          '[[rule]]\nname = "others"\nmodels = ["*/team-p*"]\nallow = false\n')  # fmt: skip
        docker = self.directory / "docker.json"
        entry = {"username": "node", "password": self.secrets["node"]}
        docker.write_text(json.dumps({"auths": {f"{self.registry.host}/team-n": entry}}))
        self._metrics = f"127.0.0.1:{_free_port()}"
        plain = {"plain_http": True}
        return {
            "registries": {self.sharing.host: {**plain, "sharing": "proof"}},
            "policy_file": str(policy),
            "audit_file": str(self._audit),
            "auth": {"docker_config": str(docker)},
            "metrics_address": self._metrics,
            "cache": {"max_bytes": BUDGET_BYTES},
            "pull": {"connect_timeout_seconds": 20, "read_timeout_seconds": 20, "document_timeout_seconds": 20},
        }


Attack = Callable[[World], None]


def digest_of(content: bytes) -> str:
    """Its digest, as manifests write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _files(seed: int) -> dict[str, bytes]:
    made = random.Random(seed)
    return {
        "model.safetensors": CANARY + made.randbytes(WEIGHTS_BYTES),
        "config.json": CANARY + made.randbytes(SMALL_BYTES),
        "tokenizer/vocab.txt": CANARY + made.randbytes(SMALL_BYTES),
    }


def _read(path: Path) -> bytes:
    """Its content; nothing where it is large, as models are, or went meanwhile."""
    try:
        return path.read_bytes() if path.stat().st_size < 1 << 20 else b""
    except FileNotFoundError:
        return b""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _within(directory: Path) -> list[Path]:
    """Everything below. What goes meanwhile is left out: the driver lives."""
    return [Path(where, name) for where, names, files in os.walk(directory) for name in (*names, *files)]
