"""Every kind of secret passes through one driver, and none of them stays anywhere. Each test of a driver takes part in
the hunt; here it is seen that there is something to find, and that it would be found.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from tests.fakes import hunt
from tests.fakes.driver import Driver
from tests.fakes.kube import ApiServer
from tests.fakes.wire import Answer, Asked, WireServer

pytestmark = pytest.mark.mount

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONTENT = b'{"a": 1}'
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
EMPTY = f"sha256:{hashlib.sha256(b'{}').hexdigest()}"
MANIFEST = json.dumps({
    "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": "application/x.model",
    "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": EMPTY, "size": 2},
    "layers": [{"mediaType": "application/octet-stream", "digest": DIGEST, "size": len(CONTENT),
                "annotations": {"org.opencontainers.image.title": "config.json"}}],
}).encode()  # fmt: skip


def made(kind: str) -> str:
    return hunt.plant(kind, f"{kind}-{secrets.token_hex(12)}".replace(" ", "-"))


class Everything:
    """A registry behind TLS with client certificates, whose token server exchanges everything and whose storage has
    signed addresses; and a proxy that takes nobody.
    """

    def __init__(self, directory: Path) -> None:
        ca = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("localhost").configure_cert(context)
        ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        client = ca.issue_cert("node-1")
        ca.cert_pem.write_to_path(directory / "ca.pem")
        client.private_key_pem.write_to_path(directory / "client.key")
        (directory / "client.pem").write_bytes(b"".join(each.bytes() for each in client.cert_chain_pems))
        hunt.plant_key(directory / "client.key")
        self.bearer, self.signature = made("bearer token"), made("signature")
        self.registry, self.proxy = WireServer(context=context), WireServer()
        self.proxy_login = f"node:{made('proxy password')}"
        (directory / "login").write_text(self.proxy_login)
        registry = self.registry
        registry.on("/token", Answer(body=json.dumps({"access_token": self.bearer, "token": self.bearer}).encode()))
        registry.on("/v2/llm/tiny/manifests/v1", self._guarded(Answer(body=MANIFEST, headers=self._typed())))
        registry.on(f"/v2/llm/tiny/manifests/sha256:{hashlib.sha256(MANIFEST).hexdigest()}",
                    self._guarded(Answer(body=MANIFEST, headers=self._typed())))  # fmt: skip
        away = f"{registry.url}/storage?X-Amz-Signature={self.signature}"
        registry.on(f"/v2/llm/tiny/blobs/{DIGEST}", self._guarded(Answer(307, headers=[("Location", away)])))
        registry.on("/storage", Answer(403, b"no"), Answer(body=CONTENT))
        self.settings: dict[str, Any] = {
            "metrics_address": f"127.0.0.1:{_free_port()}",
            "audit_file": str(directory / "audit.jsonl"),
            "registries": {
                registry.host: {
                    "ca_file": str(directory / "ca.pem"),
                    "client_certificate": str(directory / "client.pem"),
                    "client_key": str(directory / "client.key"),
                    "service_account_audience": "models",
                },
                "behind.example.com": {
                    "proxy": self.proxy.url,
                    "proxy_login_file": str(directory / "login"),
                },
            },
        }

    def _typed(self) -> list[tuple[str, str]]:
        return [
            ("Content-Type", MANIFEST_TYPE),
            ("Docker-Content-Digest", f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"),
        ]

    def _guarded(self, answer: Answer) -> Callable[[Asked], Answer]:
        def say(asked: Asked) -> Answer:
            if asked.headers.get("authorization") == f"Bearer {self.bearer}":
                return answer
            realm = f'Bearer realm="{self.registry.url}/token",service="models"'
            return Answer(401, b"{}", headers=[("WWW-Authenticate", realm)])

        return say


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_no_kind_of_secret_stays_anywhere(short: Path, tmp_path: Path) -> None:
    there = Everything(tmp_path)
    model = {"model": f"{there.registry.host}/llm/tiny:v1"}
    identity, account, password = made("identity token"), made("service account token"), made("password")
    hunt.plant_login("robot", password)
    auths = {"auths": {there.registry.host: {"username": "robot", "identitytoken": identity}}}
    tokens = json.dumps({"models": {"token": account, "expirationTimestamp": "2040-01-01T00:00:00Z"}})
    ways: list[tuple[str, dict[str, str], dict[str, str]]] = [
        ("identity", model, {".dockerconfigjson": json.dumps(auths)}),
        ("account", {**model, "csi.storage.k8s.io/serviceAccount.tokens": tokens}, {}),
        ("password", model, {"username": "robot", "password": password}),
    ]
    with there.registry, there.proxy, Driver(short, settings=there.settings) as driver:
        with pytest.raises(grpc.RpcError):
            driver.publish("first", driver.target("first"), model, ways[0][2])
        for name, attributes, given in ways:
            driver.publish(name, driver.target(name), attributes, given)
            assert (driver.target(name) / "config.json").read_bytes() == CONTENT
        with pytest.raises(grpc.RpcError):
            driver.publish("behind", driver.target("behind"), {"model": "behind.example.com/llm/tiny:v1"})
        for name, _, _ in ways:
            driver.unpublish(name, driver.target(name))
        driver.stop()  # searches all that it leaves
        asked = b"\n".join(each.body for each in there.registry.asked("/token")).decode()
        assert identity in asked
        assert account in asked
        basic = [each.headers.get("authorization", "") for each in there.registry.asked("/token")]
        assert any(each.startswith("Basic ") for each in basic)
        assert any(there.signature in each.query for each in there.registry.asked("/storage"))
        assert any("proxy-authorization" in each.headers for each in there.proxy.asked())
    assert hunt.kinds() >= {
        "password", "bearer token", "identity token", "service account token", "signature", "proxy password", "key"
    }  # fmt: skip


def _of(pod: str) -> dict[str, str]:
    """What the kubelet says of it."""
    said = {"namespace": "team-a", "name": pod, "uid": f"uid-of-{pod}"}
    return {f"csi.storage.k8s.io/pod.{key}": value for key, value in said.items()}


class Talkative:
    """A registry that says secrets wherever there is a place for one: its own, and those that it was shown."""

    def __init__(self) -> None:
        self.server = WireServer()
        self.bearer, self.jwt = made("bearer token"), f"eyJhbGciOiJFUzI1NiJ9.{made('claims')}.{made('token')}"
        self.signature, self.cookie = made("signature"), made("cookie")
        away = f"{self.server.url}/storage?X-Amz-Signature={self.signature}"
        self.cases: dict[str, Answer | Callable[[Asked], Answer]] = {
            **{f"repeats-{status}": self._repeats(status) for status in (400, 401, 403, 404, 412, 429, 500, 503)},
            "headers": Answer(200, b"{}", [
                ("Docker-Content-Digest", f"sha256:{self.jwt}"), ("Retry-After", self.jwt),
                ("Link", f'<{away}>; rel="next"'), ("Content-Range", f"bytes {self.jwt}"), ("Warning", self.jwt),
            ]),
            "digest": Answer(200, MANIFEST, [("Docker-Content-Digest", self.jwt), ("Content-Type", MANIFEST_TYPE)]),
            "document": Answer(200, f'{{"token": "{self.jwt}", '.encode()),
            "reason": Answer(raw=f"HTTP/1.1 503 {self.jwt}\r\nX: {self.jwt}\r\nContent-Length: 0\r\n\r\n".encode()),
            "rubbish": Answer(raw=f"{self.jwt} {self.jwt}\r\n\r\n".encode()),
            "realm-login": self._wants(f"http://robot:{self.signature}@{self.server.host}/token"),
            "realm-elsewhere": self._wants(f"https://evil.example.com/token?sig={self.signature}"),
            "realm-no-address": self._wants(f"javascript:{self.signature}"),
            "realm-refuses": self._wants(f"{self.server.url}/refuses?sig={self.signature}"),
            "realm-no-token": self._wants(f"{self.server.url}/no-token?sig={self.signature}"),
            "redirect-refused": Answer(307, headers=[("Location", away)]),
            "redirect-login": Answer(307, headers=[("Location", away.replace("//", f"//robot:{self.signature}@"))]),
            "redirect-metadata": Answer(307, headers=[("Location", f"http://169.254.169.254/?sig={self.signature}")]),
            "redirect-scheme": Answer(307, headers=[("Location", f"file:///{self.signature}?sig={self.signature}")]),
            "redirect-nowhere": Answer(307, headers=[("Location", f"http://[{self.signature}/?sig={self.signature}")]),
        }  # fmt: skip
        self.server.on("/storage", self._repeats(503))
        self.server.on("/refuses", self._repeats(403, "invalid_grant"))
        self.server.on("/no-token", Answer(200, json.dumps({"token": f"{self.jwt} {self.jwt}"}).encode()))
        self.server.on("/token", Answer(200, json.dumps({"token": self.bearer}).encode()))
        for name, answer in self.cases.items():
            self.server.on(f"/v2/llm/{name}/manifests/v1", self._guarded(answer) if "realm" not in name else answer)

    def model(self, name: str) -> str:
        return f"{self.server.host}/llm/{name}:v1"

    def _repeats(self, status: int, error: str = "DENIED") -> Callable[[Asked], Answer]:
        def say(asked: Asked) -> Answer:
            shown = asked.headers.get("authorization", "none").partition(" ")[2]
            words = f"https://s3.example.com/b?sig={self.signature}"
            said = [f"{words}: {each}" for each in (shown, asked.body.decode(), self.jwt)]
            errors = [{"code": error, "message": each, "detail": each} for each in said]
            body = {"errors": errors, "error": error, "error_description": said[0]}
            return Answer(status, json.dumps(body).encode(), [("Set-Cookie", f"sid={self.cookie}; Path=/")])

        return say

    def _wants(self, realm: str) -> Answer:
        return Answer(401, b"{}", headers=[("WWW-Authenticate", f'Bearer realm="{realm}",service="{self.jwt}"')])

    def _guarded(self, answer: Answer | Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
        def say(asked: Asked) -> Answer:
            if asked.headers.get("authorization") != f"Bearer {self.bearer}":
                return self._wants(f"{self.server.url}/token")
            return answer(asked) if callable(answer) else answer

        return say


def test_no_secret_that_a_server_says_stays_anywhere(short: Path, tmp_path: Path) -> None:
    """Nor what it repeats of those that it was shown, in logs, errors, metrics, records, events and the audit log."""
    there = Talkative()
    identity, password = made("identity token"), made("password")
    hunt.plant_login("robot", password)
    auths = {"auths": {there.server.host: {"username": "robot", "identitytoken": identity}}}
    ways = [{"username": "robot", "password": password}, {".dockerconfigjson": json.dumps(auths)}]
    settings = {
        "metrics_address": f"127.0.0.1:{_free_port()}",
        "audit_file": str(tmp_path / "audit.jsonl"),
        "log_level": "debug",
        "registries": {there.server.host: {"plain_http": True}},
        "kubernetes": {"account_dir": str(tmp_path / "account")},
    }
    with (
        there.server,
        ApiServer(tmp_path / "account") as api,  # searches all that it was sent
        Driver(short, settings=settings, environment=api.environment) as driver,
    ):

        def refused(name: str, given: dict[str, str]) -> tuple[str, grpc.StatusCode]:
            pod = f"{name}-{len(given)}"
            attributes = {"model": there.model(name), **_of(pod)}
            with pytest.raises(grpc.RpcError) as told:
                driver.publish(pod, driver.target(pod), attributes, given)
            return pod, told.value.code()

        with ThreadPoolExecutor(8) as pool:  # most are tried again after a while
            both = [pool.submit(refused, name, given) for name in there.cases for given in ways]
            outcomes = [each.result() for each in both]
        refusals = {pod for pod, code in outcomes if code is grpc.StatusCode.PERMISSION_DENIED}
        assert len(refusals) > len(ways)
        deadline = time.monotonic() + 60
        while not refusals <= {event["involvedObject"]["name"] for event in api.events}:
            assert time.monotonic() < deadline, "a pod isn't told"
            time.sleep(0.01)
        driver.stop()  # searches all that it leaves
        asked = {each.path for each in there.server.asked()}
        assert asked >= {"/storage", "/refuses", "/no-token", "/token"}
        assert all(f"/v2/llm/{name}/manifests/v1" in asked for name in there.cases)
        assert not any("cookie" in each.headers for each in there.server.asked())
    assert hunt.kinds() >= {"claims", "token", "signature", "cookie", "identity token", "password", "bearer token"}


def test_the_hunt_finds_what_is_there(tmp_path: Path) -> None:
    word = made("password")
    hunt.plant_login("somebody", word)
    for name in ("log", "refs/record", f"names/{word}"):
        store = tmp_path / name.partition("/")[0]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"before {word} after")
        with pytest.raises(hunt.SecretFound) as found:
            hunt.search_files([store]) if store.is_file() else hunt.search_store(store)
        assert word not in str(found.value)
    for what in ("events/one", f"events/{word}"):
        server = ApiServer(tmp_path / what.replace("/", "-"))
        server.answer("POST", f"/api/v1/{what}", None, "application/json", json.dumps({"message": word}).encode())
        with pytest.raises(hunt.SecretFound) as found, server:
            pass
        assert word not in str(found.value)
    for command, environment in (([word], {}), ([], {"X": word})):
        child = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", *command]
        pipe = subprocess.PIPE
        with subprocess.Popen(child, stdin=pipe, stdout=pipe, env={**os.environ, **environment}) as started:
            assert started.stdout is not None
            started.stdout.readline()
            with pytest.raises(hunt.SecretFound):
                hunt.search_process(started.pid)
