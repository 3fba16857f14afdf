"""A real token server for the registry's bearer authentication: checks names and passwords, signs short-lived JWTs,
counts what was asked.

Protocol: distribution specification "Token Authentication"; the registry checks each token's signature itself, so a
client that sends a wrong, stale or foreign token is refused by real code.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import threading
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from tests.fakes import hunt
from tests.fakes.registry import TokenAuth


@dataclass(frozen=True, slots=True)
class User:
    """A password, and what it opens: repository name to actions; `*` stands for every repository."""

    password: str = field(repr=False)
    access: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"*": ("pull", "push")})


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One question to the token server. `user` is None for an anonymous one; `status` is the answer."""

    user: str | None
    scopes: tuple[str, ...]
    status: int


class TokenServer:
    """Serves `/token` on a free loopback port, in threads of this process, between `__enter__` and `__exit__`.

    `users` and `anonymous` may be changed while it runs. `lifetime_seconds` is what tokens really last (the registry
    allows 60 s of leeway) and, unless `expires_in` says something else, what the answer promises. `harbor_style`
    answers 200 with a powerless token for wrong credentials, where others say 401. While `broken`, it answers 503. Its
    clock is `ahead_seconds` ahead of the registry's.
    """

    def __init__(
        self,
        directory: Path,
        *,
        users: Mapping[str, User] | None = None,
        anonymous: Mapping[str, tuple[str, ...]] | None = None,
        lifetime_seconds: int = 300,
        expires_in: int | None = None,
        harbor_style: bool = False,
    ) -> None:
        self.users = dict(users or {})
        self.anonymous = dict(anonymous or {})
        self.lifetime_seconds = lifetime_seconds
        self.expires_in = expires_in
        self.harbor_style = harbor_style
        self.broken = False
        self.ahead_seconds = 0
        self.requests: list[TokenRequest] = []
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = _self_signed(self._key)
        self._certificates = directory / "token-issuer.pem"
        directory.mkdir(parents=True, exist_ok=True)
        self._certificates.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, name="token-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        """`host:port` of the realm, for an allow-list."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def auth(self) -> TokenAuth:
        """What the registry needs to send its clients here and to believe the tokens."""
        return TokenAuth(f"http://{self.host}/token", "test-registry", "test-issuer", self._certificates)

    def answer(self, query: str, authorization: str | None) -> tuple[int, dict[str, Any]]:
        """Status and document for one request."""
        if self.broken:
            return 503, {}
        scopes = tuple(s for s in urllib.parse.parse_qs(query).get("scope", []))
        name, allowed, wrong = self._who(authorization)
        if wrong and not self.harbor_style:
            self.requests.append(TokenRequest(name, scopes, 401))
            return 401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong name or password"}]}
        self.requests.append(TokenRequest(name, scopes, 200))
        token = self._sign(name or "", [access for s in scopes if (access := _granted(s, allowed)) is not None])
        lifetime = self.lifetime_seconds if self.expires_in is None else self.expires_in
        issued = (datetime.now(UTC) + timedelta(seconds=self.ahead_seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        return 200, {"token": token, "access_token": token, "expires_in": lifetime, "issued_at": issued}

    def _who(self, authorization: str | None) -> tuple[str | None, Mapping[str, tuple[str, ...]], bool]:
        """The asker's name, rights, and whether the password was wrong."""
        if authorization is None:
            return None, self.anonymous, False
        try:
            name, _, password = (
                base64.b64decode(authorization.removeprefix("Basic "), validate=True).decode().partition(":")
            )
        except (binascii.Error, UnicodeDecodeError):
            return None, {}, True
        user = self.users.get(name)
        if user is None or not secrets.compare_digest(user.password.encode(), password.encode()):
            return name, {}, True
        hunt.plant_login(name, password)
        return name, user.access, False

    def _sign(self, subject: str, access: list[dict[str, Any]]) -> str:
        now = int(time.time()) + self.ahead_seconds
        der = self._certificate.public_bytes(serialization.Encoding.DER)
        head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        auth = self.auth
        claims = {
            "iss": auth.issuer,
            "aud": auth.service,
            "sub": subject,
            "iat": now,
            "nbf": now - 10,
            "exp": now + self.lifetime_seconds,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        text = f"{_base64url(json.dumps(head).encode())}.{_base64url(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        signature = _base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        hunt.plant("bearer token", signature)
        return f"{text}.{signature}"


def _granted(scope: str, allowed: Mapping[str, tuple[str, ...]]) -> dict[str, Any] | None:
    kind, _, rest = scope.partition(":")
    name, _, wanted = rest.rpartition(":")
    if kind != "repository" or not name:
        return None
    rights = allowed.get(name, allowed.get("*", ()))
    return {"type": kind, "name": name, "actions": [a for a in wanted.split(",") if a in rights]}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-issuer")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


def _handler(server: TokenServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            status, document = (
                server.answer(query, self.headers.get("Authorization")) if path == "/token" else (404, {})
            )
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Say nothing: requests are recorded by the server."""

    return Handler
